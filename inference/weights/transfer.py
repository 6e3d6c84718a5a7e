"""Transfers files to this machine: resumes partial files, retries temporary errors, verifies while it reads.

Independent of the Hub and of buckets: a `Source` reads the bytes and decides which errors are temporary.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from inference.errors import DownloadError
from inference.weights.checksums import IS_POINTER, Hash, WantedFile, agrees, hasher, is_pointer, read_into

T = TypeVar("T")
Emit = Callable[..., None]  # event, and its fields

PARTIAL = ".partial"
REPORTS = 200  # progress reports for a whole download, approximately
REPORT_S = 1.0  # the longest time between two reports while bytes arrive
RATE_SAMPLES = 20  # the rate is measured over the last reports
FETCHES = 2  # a file with wrong content is fetched again once


class TemporaryError(Exception):
    """An error that a retry may overcome. `wait_s` is the wait that the server asked for."""

    def __init__(self, cause: str, wait_s: float | None = None) -> None:
        super().__init__(cause, wait_s)
        self.cause, self.wait_s = cause, wait_s


@dataclass(frozen=True)
class RetryPolicy:
    """The number of tries and the waits between: `first_s`, doubled up to `longest_s`, or what the server asks."""

    tries: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    longest_asked_s: float = 300.0
    sleep: Callable[[float], None] = time.sleep

    def wait_s(self, failures: int, error: TemporaryError) -> float:
        """The wait after that many failures in a row."""
        if error.wait_s is not None:
            return min(max(error.wait_s, 0.0), self.longest_asked_s)
        return min(self.first_s * 2 ** (failures - 1), self.longest_s)

    def run(self, what: str, act: Callable[[], T], emit: Emit) -> T:
        """Call `act`, again after each TemporaryError. Raises DownloadError after the last try."""
        for failures in range(1, self.tries + 1):
            try:
                return act()
            except TemporaryError as error:
                self.pause(what, failures, error, emit)
        raise AssertionError("the last try returns or raises")

    def pause(self, what: str, failures: int, error: TemporaryError, emit: Emit) -> None:
        """Emit the wait before the next try, then wait. Raises DownloadError after the last try."""
        if failures >= self.tries:
            message = f"{what}: {error.cause}, {failures} times in a row; try again later"
            raise DownloadError(message, "unavailable") from error
        seconds = self.wait_s(failures, error)
        emit("waiting", seconds=seconds, reason=f"{what}: {error.cause}")
        self.sleep(seconds)


class Source(Protocol):
    """The source of one repository's files."""

    title: str  # for messages
    key: str  # the file name of its record
    removable: bool  # a wrong file may be removed and fetched again
    keeps_revisions: bool  # the content of a revision never changes: true of a commit, not of a folder

    def resolve(self) -> str:
        """The commit, or a name that stands for it. Raises TemporaryError and DownloadError."""

    def listing(self, revision: str) -> list[WantedFile]:
        """All its files. Raises TemporaryError and DownloadError."""

    def unchanged(self, files: tuple[WantedFile, ...]) -> bool:
        """True if it still holds these files. Sends no requests. Raises DownloadError."""

    def wants(self, path: str) -> bool:
        """True if a model needs the file."""

    def folder(self, revision: str) -> Path:
        """The folder of the files on this machine."""

    def store(self, revision: str, file: WantedFile) -> Path:
        """The path of the file's bytes. `folder` may hold only a link to it."""

    def link(self, revision: str, file: WantedFile) -> None:
        """Put the file, or a link to it, into `folder`. Raises OSError."""

    def read(self, revision: str, file: WantedFile, offset: int) -> Generator[bytes, None, None]:
        """Its bytes from `offset` on. Raises TemporaryError and DownloadError."""

    def lock(self) -> Path:
        """The file that is locked while files change."""

    def clean(self, revision: str, files: tuple[WantedFile, ...]) -> None:
        """Remove partial files that will not be resumed. Raises OSError."""


@dataclass
class ByteCounter:
    """Counts bytes for all repositories together and reports them. Any thread may add."""

    totals: dict[str, int]  # repository -> bytes
    emit: Emit
    done: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_SAMPLES))
    _reported: int = 0
    _fetched: int = 0

    def start(self) -> None:
        """Report the state of each repository."""
        with self._lock:
            self._samples.append((time.monotonic(), 0))
            for name in self.totals:
                self._report(name)

    def add(self, name: str, count: int, fetched: bool) -> None:
        """Add `count` bytes; a negative `count` subtracts them."""
        with self._lock:
            self.done[name] = self.done.get(name, 0) + count
            self._fetched += count if fetched else 0
            overall = sum(self.done.values())
            step = max(sum(self.totals.values()) // REPORTS, 1)
            late = bool(self._samples) and time.monotonic() - self._samples[-1][0] >= REPORT_S
            if overall - self._reported >= step or late or self.done[name] == self.totals[name]:
                self._report(name)

    def _report(self, name: str) -> None:
        overall, total = sum(self.done.values()), sum(self.totals.values())
        self._reported = overall
        self._samples.append((time.monotonic(), self._fetched))
        (started, first), (now, last) = self._samples[0], self._samples[-1]
        rate = max(last - first, 0) / (now - started) if now > started else 0.0
        self.emit(
            "progress",
            repository=name,
            bytes_done=self.done.get(name, 0),
            bytes_total=self.totals[name],
            overall_done=overall,
            overall_total=total,
            bytes_per_second=round(rate),
            seconds_left=round((total - overall) / rate, 1) if rate else None,
        )


@dataclass(frozen=True)
class FileTransfer:
    """The transfer of one file. `count(bytes, fetched)` is called for all bytes; a negative number subtracts them."""

    source: Source
    revision: str
    file: WantedFile
    retry_policy: RetryPolicy
    emit: Emit
    count: Callable[[int, bool], None]

    def run(self) -> None:
        """Fetch, verify, move into place. Raises DownloadError."""
        target = self.source.store(self.revision, self.file)
        partial = target.with_name(target.name + PARTIAL)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(FETCHES):
                if self._fetch(partial):
                    self._require_no_pointer(partial)
                    partial.replace(target)  # atomic
                    return
                partial.unlink()
                self.count(-self.file.size_bytes, False)
        except OSError as error:
            raise disk_error(self.what, error) from error
        raise DownloadError(
            f"{self.what} had wrong content {FETCHES} times; try again later, "
            "or fetch it by hand and set YUE_WEIGHTS to its folder",
            "corrupted",
        )

    def _require_no_pointer(self, partial: Path) -> None:
        """Raise DownloadError for a pointer: the source may hold one, with a matching digest."""
        if is_pointer(partial):
            partial.unlink()
            advice = "run `git lfs pull` where it was copied from, and copy it again"
            raise DownloadError(f"{self.what} {IS_POINTER}; {advice}", "corrupted")

    @property
    def what(self) -> str:
        """The file, for messages."""
        return f"{self.file.path} of {self.source.title}"

    def _fetch(self, partial: Path) -> bool:
        """Fetch the rest of the file into `partial`. True if the content is right."""
        digest = self._hash_partial(partial)
        failures, before = 0, partial.stat().st_size
        with partial.open("ab") as output:
            while output.tell() < self.file.size_bytes:
                try:
                    self._read(output.tell(), digest, output.write)
                except TemporaryError as error:
                    failures = failures + 1 if output.tell() == before else 1  # bytes arrived: count anew
                    before = output.tell()
                    self.retry_policy.pause(self.what, failures, error, self.emit)
            output.flush()
            os.fsync(output.fileno())
        return agrees(self.file, digest)

    def _hash_partial(self, partial: Path) -> Hash:
        """The hash of the bytes in `partial`. Bytes that cannot be resumed are dropped."""
        digest = hasher(self.file)
        left_bytes = partial.stat().st_size if partial.exists() else 0
        if left_bytes > self.file.size_bytes or self.file.digest is None:  # they may belong to another version
            left_bytes = 0
        if not left_bytes:
            partial.write_bytes(b"")
        read_into(partial, digest, lambda count: self.count(count, False))
        return digest

    def _read(self, offset: int, digest: Hash, write: Callable[[bytes], int]) -> None:
        chunks = self.source.read(self.revision, self.file, offset)
        left_bytes = self.file.size_bytes - offset
        with closing(chunks):
            for chunk in chunks:
                if len(chunk) > left_bytes:
                    raise DownloadError(f"{self.what} is longer than its listed size; try again later", "corrupted")
                write(chunk)
                digest.update(chunk)
                left_bytes -= len(chunk)
                self.count(len(chunk), True)
        if left_bytes:
            raise TemporaryError("the connection ended too early")


def unreadable(error: OSError) -> DownloadError:
    """The error for a file that this user cannot read."""
    message = f"{error.filename} cannot be read ({error.strerror}); allow user {os.geteuid()} to read it"
    return DownloadError(message, "not_readable")


def disk_error(what: str, error: OSError) -> DownloadError:
    """The error for a file that cannot be written, with advice."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(f"{what}: the disk is full; make room or set HF_HOME to a larger disk", "no_space")
    advice = f"{what}: {error.filename or 'a file'} cannot be written ({error.strerror})"
    return DownloadError(
        f"{advice}; correct its permissions or set HF_HOME and XDG_CACHE_HOME to other folders", "not_writable"
    )
