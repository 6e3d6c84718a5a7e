"""Downloads a model's files, in a process of its own that can be ended at any moment.

It imports no torch, and no Hub library before a download starts.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from inference import catalog, gpu, log_relay
from inference.catalog import TINY, Model, ModelFiles, Repository
from inference.errors import DownloadError, YueError
from inference.tiny import model_files
from inference.weights import hub_settings, sync
from inference.weights.terminal import Terminal
from inference.weights.transfer import Emit, RetryPolicy, Source
from paths import PROJECT
from storage import StorageError

log = logging.getLogger(__name__)

PARTS = ("stage1", "stage2", "codec")
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL

ProgressCallback = Callable[[Mapping[str, object]], None]
"""Called with `repository`, `bytes_done`, `bytes_total`, `overall_done`, `overall_total`, `bytes_per_second` and
`seconds_left` (None: unknown); while no bytes arrive also with `waiting` ({seconds, reason}) or `proving` (the file
that is being verified)."""


def fetch(
    model: Model,
    cache: Path,
    local: Path | str | None = None,
    device: str = "auto",
    *,
    force: bool = False,
    emit: Emit = lambda event, **fields: None,
    retry_policy: RetryPolicy | None = None,
    free_bytes: sync.FreeBytes = sync.free_bytes,
) -> ModelFiles:
    """Fetch the model's folders from `local` (a folder, or a bucket's address) or from the Hub, and verify them.

    Files that an earlier call verified are neither read nor requested again, unless with `force`. The tiny model needs
    no source: it is written under `cache`. If `device` (YUE_DEVICE) is no GPU, a warning is logged before anything is
    fetched. Raises DownloadError.
    """
    if model.name == TINY:
        return _make_tiny(cache)

    def announce(needed_bytes: int) -> None:
        if gpu.is_missing(device):
            log.warning("%s", gpu.warning(model.name, needed_bytes))

    # The records. The folder keeps its old name, so records of earlier versions remain valid.
    options = sync.FetchOptions(cache / "proofs", emit, retry_policy or RetryPolicy(), force, free_bytes, announce)
    copies = [
        sync.LocalCopy(getattr(model, part), source, options) for part, source in _sources(model, cache, local).items()
    ]
    sync.ensure(copies, options)
    folders = {part: copy.folder for part, copy in zip(PARTS, copies, strict=True)}
    return ModelFiles(model.name, copies[0].revision, **folders)


class DownloadProcess:
    """The parent's side. `run` blocks while the child downloads; `cancel` ends the download from another thread."""

    def __init__(
        self,
        model: Model,
        cache: Path,
        local: Path | str | None = None,
        device: str = "auto",
        *,
        force: bool = False,
        first_wait_s: float | None = None,
    ) -> None:
        self._command = [*_command(model, cache, local, force, first_wait_s), "--device", device]
        self._lock = threading.Lock()  # guards the two fields below
        self._child: subprocess.Popen[str] | None = None
        self._cancelled = False

    def run(self, on_progress: ProgressCallback = lambda progress: None) -> ModelFiles:
        """Download the files. Raises DownloadError."""
        child = self._start()
        assert child.stderr is not None
        relay = log_relay.relay(child.stderr, __name__)
        try:
            return self._listen(child, on_progress)
        finally:
            _end(child, relay)

    def cancel(self) -> None:
        """End the download; `run` then raises DownloadError. Fetched bytes are kept."""
        with self._lock:
            self._cancelled = True
            child = self._child
        if child is not None:
            child.terminate()

    def _start(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._cancelled:
                raise DownloadError("the download was cancelled", "cancelled")
            assert self._child is None, "a download runs once"
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=PROJECT, encoding="utf-8", errors="replace"
            )
            return self._child

    def _listen(self, child: subprocess.Popen[str], on_progress: ProgressCallback) -> ModelFiles:
        assert child.stdout is not None
        progress: dict[str, object] = {}
        for line in child.stdout:
            event = json.loads(line)
            match event.pop("event"):
                case "progress":
                    progress = event
                    on_progress(progress)
                case "waiting":
                    on_progress({**progress, "waiting": event})
                case "verifying":
                    on_progress({**progress, "proving": f"{event['repository']}/{event['file']}"})
                case "done":
                    return _from_json(event["files"])
                case "error":
                    raise DownloadError(event["message"], event["reason"])
        if self._cancelled:
            raise DownloadError("the download was cancelled", "cancelled")
        message = f"the download's process ended without a result (exit code {child.wait()}); try again"
        raise DownloadError(message, "failed")


def main(arguments: list[str], output: IO[str]) -> int:
    """The child's side: download, and write JSON lines to `output`, or a progress bar to a terminal.

    Returns the exit code.
    """
    options = _parser().parse_args(arguments)
    if options.end_with_stdin:
        log_relay.write_lines()
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    lock = threading.Lock()  # several files are fetched at the same time
    terminal = Terminal(output) if output.isatty() else None

    def emit(event: str, **fields: object) -> None:
        with lock:
            if terminal:
                terminal.emit(event, **fields)
            else:
                output.write(json.dumps({"event": event, **fields}) + "\n")
                output.flush()

    retry_policy = (
        RetryPolicy() if options.first_wait_seconds is None else RetryPolicy(first_s=options.first_wait_seconds)
    )
    try:
        model = catalog.find(options.model, options.revision)
        local, device = options.local, options.device
        files = fetch(model, options.cache, local, device, force=options.force, emit=emit, retry_policy=retry_policy)
    except Exception as error:  # every error is reported to the parent
        if not isinstance(error, YueError | StorageError):
            log.error("the download failed", exc_info=error)
        reason = error.reason if isinstance(error, DownloadError) else "failed"
        emit("error", error=type(error).__name__, message=str(error), reason=reason)
        return 1
    emit("done", files={name: str(value) for name, value in asdict(files).items()})
    return 0


def _sources(model: Model, cache: Path, local: Path | str | None) -> dict[str, Source]:
    """The source of each part."""
    repositories: dict[str, Repository] = {part: getattr(model, part) for part in PARTS}
    if local is None:
        try:
            from inference.weights.hub import HubSource  # here, because it reads the environment at import
        except ValueError as error:
            hub_settings.check(os.environ)
            raise DownloadError(f"the settings of the Hub's library: {error}", "invalid_setting") from error
        return {part: HubSource(repository) for part, repository in repositories.items()}
    from inference.weights.mirror import LocalSource, MirrorSource
    from storage import Storage, is_address

    if not is_address(str(local)):
        return {part: LocalSource(repository, part, Path(local)) for part, repository in repositories.items()}
    try:
        storage = Storage.at(local)
    except StorageError as error:
        raise DownloadError(f"{error}: check YUE_WEIGHTS", "no_repository") from error
    return {part: MirrorSource(repository, part, storage, cache) for part, repository in repositories.items()}


def _make_tiny(cache: Path) -> ModelFiles:
    try:
        return model_files.ensure(cache)
    except OSError as error:
        reason = f"the tiny model cannot be written to {cache} ({error.strerror})"
        code = "no_space" if error.errno == errno.ENOSPC else "not_writable"
        raise DownloadError(f"{reason}; make room there or set XDG_CACHE_HOME to another folder", code) from error


def _command(model: Model, cache: Path, local: Path | str | None, force: bool, first_wait_s: float | None) -> list[str]:
    command = [sys.executable, "-m", "inference.weights.download", "--end-with-stdin"]
    command += ["--model", model.name, "--cache", str(cache.absolute())]
    if model.stage1.revision is not None:
        command += ["--revision", model.stage1.revision]
    if local is not None:
        command += ["--local", str(local) if "://" in str(local) else str(Path(local).absolute())]
    if first_wait_s is not None:
        command += ["--first-wait-seconds", str(first_wait_s)]
    return command + (["--force"] if force else [])


def _end(child: subprocess.Popen[str], relay: threading.Thread) -> None:
    """End the child, log the rest of its output, and close its pipes."""
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
    relay.join(GRACE_SECONDS)
    with child:  # closes the pipes and waits
        pass


def _from_json(files: Mapping[str, Any]) -> ModelFiles:
    return ModelFiles(files["model"], files["revision"], **{part: Path(files[part]) for part in PARTS})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inference.weights.download", description="Fetch a model's files.")
    parser.add_argument("--model", required=True, help=catalog.ALLOWED_NAMES)
    parser.add_argument("--revision", help="of stage 1, instead of the pinned one")
    parser.add_argument("--cache", type=Path, required=True, help="folder for this program's own files")
    parser.add_argument("--local", help="folder, or gs://, s3:// or az:// address, that holds the weights")
    parser.add_argument("--device", default="auto", help="what will generate: auto, cpu, cuda or cuda:N")
    parser.add_argument("--force", action="store_true", help="resolve the commit and verify every file again")
    parser.add_argument("--first-wait-seconds", type=float, help="before the second try, doubled for each further one")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input is closed")
    return parser


def _end_with_stdin() -> None:
    """End this process when the parent, which holds the other end of the pipe, has ended."""
    sys.stdin.read()
    os._exit(1)  # nothing else stops a download: it may run in a library's threads


if __name__ == "__main__":
    lines = sys.stdout
    with redirect_stdout(sys.stderr):  # no other output may mix with the JSON lines
        code = main(sys.argv[1:], lines)
    os._exit(code)  # not sys.exit, which would wait for downloads that still run after another failed
