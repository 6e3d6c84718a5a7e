"""A client's connection, for which a thread waits only so long, and only while few others wait.

It knows nothing of HTTP, or of who reads and writes.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

BYTES_PER_SECOND = 8 * 1024  # half of what an MP3 of 128 kbit/s takes to be heard while it comes
FILE_BYTES = 256 * 1024  # of a file, in one piece


class SlowConnections:
    """Those connections for which a thread waits now."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, float] = {}  # since when, as if it had fallen behind in one go

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return len(self._waiting)

    @contextmanager
    def taken(self, sock: socket.socket, behind_seconds: float) -> Iterator[None]:
        """A seat for one that is so far behind; where none is free, the one that is furthest behind is closed."""
        with self._lock:
            if len(self._waiting) >= self._limit:
                slowest = min(self._waiting, key=lambda each: self._waiting[each])
                del self._waiting[slowest]
                with suppress(OSError):  # it hangs up itself just now
                    slowest.shutdown(socket.SHUT_RDWR)  # which wakes its thread
            self._waiting[sock] = time.monotonic() - behind_seconds
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(sock, None)


class ClientSocket(socket.socket):
    """A client's connection, for whose bytes a thread waits only so long.

    The system's socket never blocks. A timeout is kept in this object: Python's own methods would wait for it
    themselves, without a seat.
    """

    def __init__(self, client: socket.socket, slow: SlowConnections, seconds: float) -> None:
        super().__init__(client.family, client.type, client.proto, client.detach())
        super().setblocking(False)
        self._timeout: float | None = None
        self.slow, self._seconds = slow, seconds
        self.begin()

    def begin(self) -> None:
        """Another request begins, with all its time."""
        self._waited_seconds = self._behind_seconds = 0.0
        self._moved_bytes = 0

    def settimeout(self, value: float | None) -> None:
        """How long one call may wait; `None` is as long as the request may."""
        self._timeout = value

    def gettimeout(self) -> float | None:
        """What `settimeout` was told."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """Whether a call may wait at all."""
        self._timeout = None if flag else 0.0

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """What is there to be read. Raises TimeoutError."""
        while True:
            try:
                data = super().recv(bufsize, flags)
            except BlockingIOError:
                self._wait(select.POLLIN)
            else:
                self._count(len(data))
                return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send some of it, and return how many bytes that were. Raises TimeoutError."""
        while True:
            try:
                sent = super().send(data, flags)
            except BlockingIOError:
                self._wait(select.POLLOUT)
            else:
                self._count(sent)
                return sent

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it. Raises TimeoutError."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.send(rest, flags) :]

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send so much of a file, or all of it, and return how many bytes that were. Raises TimeoutError."""
        file.seek(offset)
        sent = 0
        while piece := file.read(FILE_BYTES if count is None else min(count - sent, FILE_BYTES)):
            self.sendall(piece)
            sent += len(piece)
        return sent

    def _wait(self, event: int) -> None:
        """Wait until the network is ready, as long as the timeout and this request's time allow."""
        if self._timeout == 0:
            raise BlockingIOError(errno.EAGAIN, "nothing to be done without waiting")
        left = self._seconds + self._moved_bytes / BYTES_PER_SECOND - self._waited_seconds
        seconds = left if self._timeout is None else min(left, self._timeout)
        if seconds <= 0:
            raise _too_slow()
        poll = select.poll()
        poll.register(self, event)
        began = time.monotonic()
        with self.slow.taken(self, self._behind_seconds):
            ready = poll.poll(1_000 * seconds)
        waited = time.monotonic() - began
        self._waited_seconds += waited
        self._behind_seconds += waited
        if not ready:
            raise _too_slow()

    def _count(self, moved_bytes: int) -> None:
        """Bytes moved: they make up for waiting before, but earn nothing for later."""
        self._moved_bytes += moved_bytes
        self._behind_seconds = max(0.0, self._behind_seconds - moved_bytes / BYTES_PER_SECOND)


def _too_slow() -> TimeoutError:
    """gunicorn takes it for a connection that was reset: it closes it, and writes no traceback."""
    return TimeoutError(errno.ECONNRESET, "the client takes too long over its request or its answer")
