"""Gets a model's files onto this machine, in a process of its own that can be ended at any moment.

It does not know what is in the files; it imports no torch, and no Hub library before a download begins.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from inference import catalog
from inference.catalog import TINY, Model, ModelFiles, Repository
from inference.errors import DownloadError

PARTS = ("stage1", "stage2", "codec")
GRACE_SECONDS = 5.0  # between asking the process to end and ending it

ProgressCallback = Callable[[Mapping[str, object]], None]  # repository, bytes_done, bytes_total


def fetch(
    model: Model, cache: Path, local: Path | None = None, on_progress: ProgressCallback = lambda progress: None
) -> ModelFiles:
    """The model's folders: from `local` if given, else from the Hub's own cache, filled as needed.

    The tiny model needs neither: it is made under `cache`. Raises DownloadError.
    """
    if model.name == TINY:
        return _make_tiny(cache)
    if local is not None:
        return _find_local(model, local)
    from inference import hub  # here, because it reads the environment when it is imported

    folders = {}
    for part in PARTS:
        repository: Repository = getattr(model, part)
        folders[part] = hub.fetch_repository(repository, _reporter(repository, on_progress))
    return ModelFiles(model.name, folders["stage1"].name, **folders)


class DownloadProcess:
    """The parent's side: `run` blocks while the child fetches, `cancel` ends it from another thread."""

    def __init__(self, model: Model, cache: Path, local: Path | None = None) -> None:
        self._command = _command(model, cache, local)
        self._lock = threading.Lock()  # of the two fields below
        self._child: subprocess.Popen[str] | None = None
        self._cancelled = False

    def run(self, on_progress: ProgressCallback = lambda progress: None) -> ModelFiles:
        """The files, once all are here. Raises DownloadError."""
        child = self._start()
        try:
            return self._listen(child, on_progress)
        finally:
            _end(child)

    def cancel(self) -> None:
        """End the download; `run` then raises DownloadError. What is already here is kept."""
        with self._lock:
            self._cancelled = True
            child = self._child
        if child is not None:
            child.terminate()

    def _start(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._cancelled:
                raise DownloadError("the download was cancelled")
            assert self._child is None, "a download runs once"
            root = Path(__file__).resolve().parent.parent  # where `-m inference.download` is found
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, cwd=root, encoding="utf-8")
            return self._child

    def _listen(self, child: subprocess.Popen[str], on_progress: ProgressCallback) -> ModelFiles:
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            match event.pop("event"):
                case "progress":
                    on_progress(event)
                case "done":
                    return _from_json(event["files"])
                case "error":
                    raise DownloadError(event["message"])
        if self._cancelled:
            raise DownloadError("the download was cancelled")
        raise DownloadError(f"the download's process ended without an answer (exit code {child.wait()}); try again")


def cache_folder() -> Path:
    """Where this program keeps what it makes: `$XDG_CACHE_HOME/yue-server` or `~/.cache/yue-server`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "yue-server"


def main(arguments: list[str], output: IO[str]) -> int:
    """The child's side: fetch, and write one JSON object a line to `output`. Returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    def emit(event: str, **fields: object) -> None:
        output.write(json.dumps({"event": event, **fields}) + "\n")
        output.flush()

    try:
        model = catalog.find(options.model, options.revision)
        files = fetch(model, options.cache, options.local, lambda progress: emit("progress", **progress))
    except Exception as error:  # whatever it is, the parent must hear of it
        if not isinstance(error, DownloadError):
            traceback.print_exc()
        emit("error", error=type(error).__name__, message=str(error))
        return 1
    emit("done", files={name: str(value) for name, value in asdict(files).items()})
    return 0


def _make_tiny(cache: Path) -> ModelFiles:
    from inference import tiny  # here, because it needs torch

    try:
        return tiny.ensure(cache)
    except OSError as error:
        reason = f"the tiny model cannot be written to {cache} ({error.strerror})"
        raise DownloadError(f"{reason}; make room there or set XDG_CACHE_HOME to another folder") from error


def _find_local(model: Model, local: Path) -> ModelFiles:
    """Each part lies under `local` by its repository's name, as `git clone` would put it, or by its part's."""
    folders = {}
    for part in PARTS:
        name = getattr(model, part).name.split("/")[-1]
        found = next((local / folder for folder in (name, part) if (local / folder).is_dir()), None)
        if found is None:
            raise DownloadError(f"{local} holds no folder {name!r} or {part!r}; put the repository's files there")
        folders[part] = found
    return ModelFiles(model.name, "local", **folders)


def _reporter(repository: Repository, on_progress: ProgressCallback) -> Callable[[int, int], None]:
    def report(bytes_done: int, bytes_total: int) -> None:
        on_progress({"repository": repository.name, "bytes_done": bytes_done, "bytes_total": bytes_total})

    return report


def _command(model: Model, cache: Path, local: Path | None) -> list[str]:
    command = [sys.executable, "-m", "inference.download", "--end-with-stdin"]
    command += ["--model", model.name, "--cache", str(cache.absolute())]
    if model.stage1.revision is not None:
        command += ["--revision", model.stage1.revision]
    return command + (["--local", str(local.absolute())] if local is not None else [])


def _end(child: subprocess.Popen[str]) -> None:
    """Leave nothing behind: no process, no open pipe."""
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
    with child:  # closes the pipes and waits
        pass


def _from_json(files: Mapping[str, Any]) -> ModelFiles:
    return ModelFiles(files["model"], files["revision"], **{part: Path(files[part]) for part in PARTS})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inference.download", description="Fetch a model's files.")
    parser.add_argument("--model", required=True, help=catalog.ALLOWED_NAMES)
    parser.add_argument("--revision", help="of stage 1, instead of the pinned one")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is made here, not fetched")
    parser.add_argument("--local", type=Path, help="folder that holds the weights already")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input is closed")
    return parser


def _end_with_stdin() -> None:
    """The parent holds the other end: when it is gone, however that died, so is this process."""
    sys.stdin.read()
    os._exit(1)  # a download cannot be asked to stop: it may be deep inside a library's threads


if __name__ == "__main__":
    lines = sys.stdout
    with redirect_stdout(sys.stderr):  # whatever else is printed must not get between the lines
        code = main(sys.argv[1:], lines)
    sys.exit(code)
