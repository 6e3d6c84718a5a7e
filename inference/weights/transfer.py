"""Moves a repository's files to this machine: goes on where it stopped, tries again, proves while it reads.

It does not know the Hub or any bucket: a `Source` reads for it and says what is worth another try.
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
REPORTS = 200  # about so many reports of progress for a whole download
REPORT_S = 1.0  # and one at least so often while bytes come
RATE_SAMPLES = 20  # the rate is that of the last reports
FETCHES = 2  # a file that came wrong is fetched once more


class TemporaryError(Exception):
    """Something that may pass by itself; `wait_s` is how long the other side asked to wait."""

    def __init__(self, cause: str, wait_s: float | None = None) -> None:
        super().__init__(cause, wait_s)
        self.cause, self.wait_s = cause, wait_s


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to wait: `first_s`, twice that, … at most `longest_s`, or what the other side asks."""

    tries: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    longest_asked_s: float = 300.0
    sleep: Callable[[float], None] = time.sleep

    def wait_s(self, failures: int, error: TemporaryError) -> float:
        """How long to wait after that many failures in a row."""
        if error.wait_s is not None:
            return min(max(error.wait_s, 0.0), self.longest_asked_s)
        return min(self.first_s * 2 ** (failures - 1), self.longest_s)

    def run(self, what: str, act: Callable[[], T], emit: Emit) -> T:
        """What `act` returns, tried again after each TemporaryError. Raises DownloadError when it happens too often."""
        for failures in range(1, self.tries + 1):
            try:
                return act()
            except TemporaryError as error:
                self.pause(what, failures, error, emit)
        raise AssertionError("the last try returns or raises")

    def pause(self, what: str, failures: int, error: TemporaryError, emit: Emit) -> None:
        """Wait before the next try, and say so; DownloadError where it was the last one."""
        if failures >= self.tries:
            message = f"{what}: {error.cause}, {failures} times in a row; try again later"
            raise DownloadError(message, "unavailable") from error
        seconds = self.wait_s(failures, error)
        emit("waiting", seconds=seconds, reason=f"{what}: {error.cause}")
        self.sleep(seconds)


class Source(Protocol):
    """Where one repository's files come from."""

    title: str  # for messages
    key: str  # of its records; a file name
    removable: bool  # whether a wrong file may be removed and fetched again
    keeps_revisions: bool  # whether a revision stays what it was, as a commit does and a folder does not

    def resolve(self) -> str:
        """The commit, or what stands for it. Raises TemporaryError and DownloadError."""

    def listing(self, revision: str) -> list[WantedFile]:
        """All its files. Raises TemporaryError and DownloadError."""

    def unchanged(self, files: tuple[WantedFile, ...]) -> bool:
        """Whether it still holds these files, as far as this machine alone can tell. Raises DownloadError."""

    def wants(self, path: str) -> bool:
        """Whether a file of that path is needed."""

    def folder(self, revision: str) -> Path:
        """Where the files lie on this machine."""

    def store(self, revision: str, file: WantedFile) -> Path:
        """Where the file's bytes lie; `folder` may hold no more than a link to it."""

    def link(self, revision: str, file: WantedFile) -> None:
        """Make the file appear in `folder`. Raises OSError."""

    def read(self, revision: str, file: WantedFile, offset: int) -> Generator[bytes, None, None]:
        """Its bytes from `offset` on. Raises TemporaryError and DownloadError."""

    def lock(self) -> Path:
        """The file to lock while its files are changed."""

    def clean(self, revision: str, files: tuple[WantedFile, ...]) -> None:
        """Remove what broken downloads left. Raises OSError."""


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
        """Report where each repository stands."""
        with self._lock:
            self._samples.append((time.monotonic(), 0))
            for name in self.totals:
                self._report(name)

    def add(self, name: str, count: int, fetched: bool) -> None:
        """`count` more bytes are here (fewer, where it is negative)."""
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
        (began, first), (now, last) = self._samples[0], self._samples[-1]
        rate = max(last - first, 0) / (now - began) if now > began else 0.0
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
class Move:
    """One file on its way. `count(bytes, fetched)` hears of each byte, below zero where bytes were in vain."""

    source: Source
    revision: str
    file: WantedFile
    retry_policy: RetryPolicy
    emit: Emit
    count: Callable[[int, bool], None]

    def run(self) -> None:
        """Fetch, prove, put in place. Raises DownloadError."""
        target = self.source.store(self.revision, self.file)
        partial = target.with_name(target.name + PARTIAL)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(FETCHES):
                if self._fetch(partial):
                    self._require_no_pointer(partial)
                    partial.replace(target)  # whole or not at all
                    return
                partial.unlink()
                self.count(-self.file.size_bytes, False)
        except OSError as error:
            raise disk_error(self.what, error) from error
        raise DownloadError(
            f"{self.what} came {FETCHES} times with other content than it should have; try again later, "
            "or fetch it by hand and set YUE_WEIGHTS to its folder",
            "corrupted",
        )

    def _require_no_pointer(self, partial: Path) -> None:
        """The source may hold a pointer, and be right about its digest."""
        if is_pointer(partial):
            partial.unlink()
            advice = "run `git lfs pull` where it was copied from, and copy it again"
            raise DownloadError(f"{self.what} {IS_POINTER}; {advice}", "corrupted")

    @property
    def what(self) -> str:
        """The file, for messages."""
        return f"{self.file.path} of {self.source.title}"

    def _fetch(self, partial: Path) -> bool:
        """All the bytes in `partial`; whether they are the right ones."""
        digest = self._begun(partial)
        failures, before = 0, partial.stat().st_size
        with partial.open("ab") as output:
            while output.tell() < self.file.size_bytes:
                try:
                    self._read(output.tell(), digest, output.write)
                except TemporaryError as error:
                    failures = failures + 1 if output.tell() == before else 1  # bytes came: start counting anew
                    before = output.tell()
                    self.retry_policy.pause(self.what, failures, error, self.emit)
            output.flush()
            os.fsync(output.fileno())
        return agrees(self.file, digest)

    def _begun(self, partial: Path) -> Hash:
        """The hash of what an earlier try left; that is dropped where it cannot be continued."""
        digest = hasher(self.file)
        left_bytes = partial.stat().st_size if partial.exists() else 0
        if left_bytes > self.file.size_bytes or self.file.digest is None:  # it may be of another version
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
                    raise DownloadError(f"{self.what} is longer than announced; try again later", "corrupted")
                write(chunk)
                digest.update(chunk)
                left_bytes -= len(chunk)
                self.count(len(chunk), True)
        if left_bytes:
            raise TemporaryError("the connection ended too early")


def unreadable(error: OSError) -> DownloadError:
    """What cannot be read, and by whom."""
    message = f"{error.filename} cannot be read ({error.strerror}); allow user {os.geteuid()} to read it"
    return DownloadError(message, "not_readable")


def disk_error(what: str, error: OSError) -> DownloadError:
    """What the disk refused, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(f"{what}: the disk is full; make room or set HF_HOME to a larger disk", "no_space")
    advice = f"{what}: {error.filename or 'a file'} cannot be written ({error.strerror})"
    return DownloadError(
        f"{advice}; mend its permissions or set HF_HOME and XDG_CACHE_HOME to other folders", "not_writable"
    )
