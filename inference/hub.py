"""Brings one repository's files from the Hub into the Hub's own cache, and says in plain words why it could not.

It does not know which repositories make up a model. Importing it imports `huggingface_hub`, which reads the
environment: so it is imported where a download begins, in the download's own process.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import DryRunFileInfo, constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from inference.catalog import Repository
from inference.errors import DownloadError

REPORTS = 200  # about so many progress reports a repository
OTHERWISE = "or set YUE_WEIGHTS to a folder that holds the weights"


def fetch_repository(repository: Repository, on_progress: Callable[[int, int], None]) -> Path:
    """The folder of the repository's files, whose name is the commit. `on_progress(bytes_done, bytes_total)`."""
    try:
        plan = _plan(repository)
        _require_room(repository, plan)
        return Path(snapshot_download(**_what(repository), tqdm_class=_counter(plan, on_progress)))
    except DryRunError as error:  # an OSError too; the Hub cannot be asked: what is in the cache may be enough
        return _cached(repository, error.__cause__ or error)
    except (HTTPError, OSError, ValueError, EntryNotFoundError) as error:
        raise DownloadError(_advice(repository, error)) from error


def _what(repository: Repository) -> dict[str, Any]:
    return {
        "repo_id": repository.name,
        "revision": repository.revision,
        "allow_patterns": list(repository.files),
    }


def _plan(repository: Repository) -> list[DryRunFileInfo]:
    """Every file that is needed, and whether it is here already."""
    plan: list[DryRunFileInfo] = snapshot_download(**_what(repository), dry_run=True, tqdm_class=_Silent)
    if not plan:
        wanted = ", ".join(repository.files)
        raise DownloadError(f"{_title(repository)} holds none of the files of a model ({wanted}); check the name")
    return plan


def _cached(repository: Repository, hindrance: BaseException) -> Path:
    """The repository as an earlier download left it, if that was complete."""
    try:
        return Path(snapshot_download(**_what(repository), local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise DownloadError(_advice(repository, hindrance)) from error


def _require_room(repository: Repository, plan: list[DryRunFileInfo]) -> None:
    needed_bytes = sum(file.file_size or 0 for file in plan if file.will_download)
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise DownloadError(
            f"{_title(repository)} needs {needed_bytes:,} bytes, but only {free_bytes:,} are free at {cache}; "
            "make room or set HF_HOME to a larger disk"
        )


def _advice(repository: Repository, error: BaseException) -> str:
    """What happened, and what to do about it."""
    title = _title(repository)
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the Hub could not be asked
    if isinstance(error, GatedRepoError):  # before its parent class
        return f"{title} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account"
    if isinstance(error, RepositoryNotFoundError):
        return f"{title} does not exist, or is private: check the name, or set HF_TOKEN to a token that may read it"
    if isinstance(error, RevisionNotFoundError):
        return f"{title} has no such revision: check it, or leave it out"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{title} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset it, {OTHERWISE}"
    if isinstance(error, HfHubHTTPError):
        return f"{title}: the Hub answered {error.response.status_code}; try again later, {OTHERWISE}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{title}: the disk is full; make room or set HF_HOME to a larger disk"
    if isinstance(error, PermissionError):
        return f"{title}: {error.filename} cannot be written; mend its permissions or set HF_HOME to another folder"
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"{title} cannot be fetched ({reason}): check the network, {OTHERWISE}"


def _title(repository: Repository) -> str:
    revision = f" at revision {repository.revision}" if repository.revision else ""
    return f"repository {repository.name}{revision}"


class _Silent(tqdm):
    """A progress bar that is never drawn, but counts all the same, which tqdm's own does not then."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"disable": True})
        self.counts_bytes = options.get("unit") == "B"  # the others count files
        self.count = options.get("initial", 0)

    def update(self, n: float | None = 1) -> None:
        self.count += n or 0


def _counter(plan: list[DryRunFileInfo], on_progress: Callable[[int, int], None]) -> type[_Silent]:
    """A progress bar class for `snapshot_download` that reports how many of the plan's bytes are here."""
    total_bytes = sum(file.file_size or 0 for file in plan)
    cached_bytes = sum(file.file_size or 0 for file in plan if not file.will_download)
    step_bytes = max(total_bytes // REPORTS, 1)
    lock = threading.Lock()
    reported_bytes = -step_bytes

    def report(new_bytes: int) -> None:
        nonlocal reported_bytes
        with lock:
            done_bytes = min(cached_bytes + new_bytes, total_bytes)
            if done_bytes - reported_bytes >= step_bytes or reported_bytes < done_bytes == total_bytes:
                reported_bytes = done_bytes
                on_progress(done_bytes, total_bytes)

    class Counter(_Silent):
        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self.counts_bytes:
                report(int(self.count))

    report(0)
    return Counter
