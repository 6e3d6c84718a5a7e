"""Syncs all repositories of a model to this machine: inspects, checks free space, fetches, verifies, records.

Independent of where the files come from: a `Source` knows that.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from inference.catalog import Repository
from inference.errors import DownloadError
from inference.weights.checksums import (
    IS_POINTER,
    POINTER_BYTES,
    Record,
    VerifiedFile,
    WantedFile,
    is_pointer,
    is_whole,
    looks_verified,
    mark_verified,
    read_record,
    write_record,
)
from inference.weights.transfer import (
    PARTIAL,
    ByteCounter,
    Emit,
    FileTransfer,
    RetryPolicy,
    Source,
    disk_error,
    unreadable,
)

CONNECTIONS = 4  # files that are fetched at the same time
LOCK_RETRY_S = 0.2  # between two tries to take a lock that another process holds

log = logging.getLogger(__name__)

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """The free bytes on the disk of `folder`, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


@dataclass(frozen=True)
class FetchOptions:
    """The options of a fetch."""

    records: Path  # folder
    emit: Emit
    retry_policy: RetryPolicy
    force: bool = False
    free_bytes: FreeBytes = free_bytes
    announce: Callable[[int], None] = lambda needed_bytes: None  # called with the bytes to fetch, before the first one


@dataclass
class LocalCopy:
    """The local copy of one repository: which files are verified, and which are missing."""

    repository: Repository
    source: Source
    options: FetchOptions
    revision: str = ""
    files: tuple[WantedFile, ...] = ()
    verified_files: dict[str, VerifiedFile] = field(default_factory=dict)  # path -> its record

    def recall(self) -> bool:
        """Read the record of an earlier start. True if it verified all files and they are unchanged."""
        record = None if self.options.force else read_record(self._record)
        if record is None:
            return False
        self.revision, self.files = record.revision, tuple(verified.file for verified in record.files)
        self.verified_files = {verified.file.path: verified for verified in record.files}
        if record.holds(self.folder) and not self._lacking() and self.source.unchanged(self.files):
            return True
        if not self.source.keeps_revisions:
            self.files = ()  # so that they are listed again
        return False

    def inspect(self) -> None:
        """List the files, and verify the existing ones. Raises DownloadError."""
        if not self.files or self._lacking():
            retry_policy, emit, source = self.options.retry_policy, self.options.emit, self.source
            self.revision = retry_policy.run(source.title, source.resolve, emit)
            files = retry_policy.run(source.title, lambda: source.listing(self.revision), emit)
            self.files = tuple(file for file in files if source.wants(file.path))
            self._require_all()
        for file in self.files:
            path = self.source.store(self.revision, file)
            verified = self.verified_files.pop(file.path, None)
            if verified is None or verified.file != file or not looks_verified(path, verified):
                try:
                    verified = self._verify(path, file)
                except OSError as error:
                    raise unreadable(error) from error
            if verified is not None:
                self.verified_files[file.path] = verified

    @property
    def missing(self) -> list[WantedFile]:
        """The files that are still to be fetched."""
        return [file for file in self.files if file.path not in self.verified_files]

    @property
    def folder(self) -> Path:
        """The folder with all files, once they are fetched."""
        return self.source.folder(self.revision)

    def needed_bytes(self) -> int:
        """The bytes that fetching adds to the disk."""
        paths = [(self.source.store(self.revision, file), file.size_bytes) for file in self.missing]
        partials = [path.with_name(path.name + PARTIAL) for path, _ in paths]
        left_bytes = sum(path.stat().st_size for path in partials if path.exists())
        return max(sum(size for _, size in paths) - left_bytes, 0)

    def transfers(self, counter: ByteCounter) -> list[FileTransfer]:
        """The transfers of the missing files."""
        name, source, retry_policy, emit = (
            self.repository.name,
            self.source,
            self.options.retry_policy,
            self.options.emit,
        )

        def count(number: int, fetched: bool) -> None:
            counter.add(name, number, fetched)

        return [FileTransfer(source, self.revision, file, retry_policy, emit, count) for file in self.missing]

    def finish(self) -> None:
        """Link the fetched files into the folder, and record that they were verified."""
        try:
            for file in self.files:
                self.source.link(self.revision, file)
                path = self.source.store(self.revision, file)
                self.verified_files.setdefault(file.path, mark_verified(path, file))
        except OSError as error:
            raise disk_error(self.source.title, error) from error
        try:
            records = tuple(self.verified_files[file.path] for file in self.files)
            write_record(self._record, Record(self.revision, records))
        except OSError as error:  # the weights are usable; only the next start verifies them again
            message = "%s cannot be written (%s): the next start verifies all files again"
            log.warning(message, self._record, error.strerror)

    @property
    def _record(self) -> Path:
        return self.options.records / f"{self.source.key}.json"

    def _lacking(self) -> list[str]:
        return self.repository.lacking(file.path for file in self.files)

    def _verify(self, path: Path, file: WantedFile) -> VerifiedFile | None:
        """The record of a correct file. A wrong file counts as missing, or is an error in a folder."""
        if not path.exists():
            return None
        self.options.emit("verifying", repository=self.repository.name, file=file.path)
        verified, pointer = mark_verified(path, file), is_pointer(path)
        if not pointer and is_whole(path, file):
            return verified
        if self.source.removable:
            return None
        if pointer:
            trouble = f"{IS_POINTER}; run `git lfs pull` in {self.folder}"
        elif file.digest is not None:
            trouble = "does not match the SHA256SUMS of its repository; copy it there again"
        else:
            trouble = "changed while it was read; try again when it is complete"
        raise DownloadError(f"{path} {trouble}", "corrupted")

    def _require_all(self) -> None:
        lacking = self._lacking()
        if not self.files:
            wanted = ", ".join(self.repository.files)
            message = f"{self.source.title} holds none of the files of a model ({wanted}); check the name"
            raise DownloadError(message, "missing_file")
        if lacking:
            raise DownloadError(f"{self.source.title} lacks {', '.join(lacking)}; check the name", "missing_file")


def ensure(copies: list[LocalCopy], options: FetchOptions) -> None:
    """Fetch the missing files of all repositories. Raises DownloadError."""
    unchecked = [copy for copy in copies if not copy.recall()]
    for copy in unchecked:
        copy.inspect()
    missing = [copy for copy in unchecked if copy.missing]
    with _locked(missing, options.emit):
        for copy in missing:
            copy.inspect()  # another process may have fetched it meanwhile
        _fetch(copies, [copy for copy in missing if copy.missing], options)
        for copy in unchecked:
            copy.finish()


def _fetch(copies: list[LocalCopy], missing: list[LocalCopy], options: FetchOptions) -> None:
    if not missing:
        return
    for copy in missing:
        try:
            copy.source.clean(copy.revision, copy.files)
            for file in copy.missing:
                copy.source.store(copy.revision, file).unlink(missing_ok=True)  # its content is wrong
        except OSError as error:
            raise disk_error(copy.source.title, error) from error
    options.announce(_require_free_space(missing, options))
    counter = _counter(copies, options.emit)
    counter.start()
    _transfer_all([transfer for copy in missing for transfer in copy.transfers(counter)])


def _require_free_space(missing: list[LocalCopy], options: FetchOptions) -> int:
    """The bytes of all missing files. Raises DownloadError if they do not fit on the disk."""
    needed = sum(copy.needed_bytes() for copy in missing)
    folder = missing[0].folder  # all are in one cache
    free = options.free_bytes(folder)
    if needed > free:
        names = ", ".join(copy.repository.name for copy in missing)
        raise DownloadError(
            f"{names}: {needed:,} bytes are needed, but only {free:,} are free at {folder}; "
            "make room, or set HF_HOME and XDG_CACHE_HOME to folders on a larger disk",
            "no_space",
        )
    return needed


def _counter(copies: list[LocalCopy], emit: Emit) -> ByteCounter:
    totals: dict[str, int] = {}
    done: dict[str, int] = {}
    for copy in copies:
        name = copy.repository.name
        totals[name] = sum(file.size_bytes for file in copy.files)
        done[name] = totals[name] - sum(file.size_bytes for file in copy.missing)
    return ByteCounter(totals, emit, done)


def _transfer_all(transfers: list[FileTransfer]) -> None:
    """Run several transfers at once: files that may be pointers first, then the largest. The first error ends all."""
    ordered = sorted(transfers, key=lambda each: (each.file.size_bytes >= POINTER_BYTES, -each.file.size_bytes))
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download")
    try:
        for future in [pool.submit(transfer.run) for transfer in ordered]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _locked(copies: list[LocalCopy], emit: Emit) -> Iterator[None]:
    """Lock the repositories against other processes. The system releases the locks when this process ends."""
    with ExitStack() as stack:
        for copy in sorted(copies, key=lambda copy: copy.source.key):  # always in the same order, to prevent deadlocks
            path = copy.source.lock()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("ab"))
            except OSError as error:
                raise disk_error(copy.source.title, error) from error
            _wait_for(file.fileno(), copy, emit)
        yield


def _wait_for(lock: int, copy: LocalCopy, emit: Emit) -> None:
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                emit("waiting", seconds=None, reason=f"another process fetches {copy.repository.name}")
            told = True
            threading.Event().wait(LOCK_RETRY_S)
