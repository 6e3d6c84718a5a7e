"""Client sockets that limit how long, and in how many threads at once, the server waits for the network.

Independent of HTTP.
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

BYTES_PER_SECOND = 8 * 1024  # half the rate of an MP3 of 128 kbit/s


class SlowConnections:
    """The connections that a thread waits for now, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, float] = {}  # when it began to wait, shifted back by its earlier delays

    @property
    def in_use(self) -> int:
        """The number of connections waited for."""
        return len(self._waiting)

    @contextmanager
    def taken(self, sock: socket.socket, behind_seconds: float) -> Iterator[None]:
        """Count a connection that is `behind_seconds` late. At the limit, close the one that is furthest behind."""
        with self._lock:
            if len(self._waiting) >= self._limit:
                slowest = min(self._waiting, key=lambda each: self._waiting[each])
                del self._waiting[slowest]
                with suppress(OSError):  # it has just disconnected by itself
                    slowest.shutdown(socket.SHUT_RDWR)  # which wakes its thread
            self._waiting[sock] = time.monotonic() - behind_seconds
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(sock, None)


class ClientSocket(socket.socket):
    """A client's connection with a limit on the total time that a thread waits for it.

    The system's socket never blocks. The timeout is kept in this object, because Python's own methods would wait
    without being counted in `SlowConnections`.
    """

    def __init__(self, client: socket.socket, slow: SlowConnections, seconds: float) -> None:
        super().__init__(client.family, client.type, client.proto, client.detach())
        super().setblocking(False)
        self._timeout: float | None = None
        self.slow, self._seconds = slow, seconds
        self.begin()

    def begin(self) -> None:
        """Begin a new request, with the full time limit."""
        self._waited_seconds = self._behind_seconds = 0.0
        self._moved_bytes = 0

    def settimeout(self, value: float | None) -> None:
        """Limit how long one call may wait; None: as long as the request may."""
        self._timeout = value

    def gettimeout(self) -> float | None:
        """Return the timeout of one call."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """Allow or forbid calls to wait."""
        self._timeout = None if flag else 0.0

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Read up to `bufsize` bytes, waiting for the first. Raises TimeoutError."""
        while True:
            try:
                data = super().recv(bufsize, flags)
            except BlockingIOError:
                self._wait(select.POLLIN)
            else:
                self._count(len(data))
                return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send some of the data and return the number of bytes sent. Raises TimeoutError."""
        while True:
            try:
                sent = super().send(data, flags)
            except BlockingIOError:
                self._wait(select.POLLOUT)
            else:
                self._count(sent)
                return sent

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of the data. Raises TimeoutError."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.send(rest, flags) :]

    def _wait(self, event: int) -> None:
        """Wait for `event` within the timeout and the request's remaining time. Raises TimeoutError."""
        if self._timeout == 0:
            raise BlockingIOError(errno.EAGAIN, "the call would have to wait")
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
        """Record moved bytes. They reduce the delay so far but earn no credit for later."""
        self._moved_bytes += moved_bytes
        self._behind_seconds = max(0.0, self._behind_seconds - moved_bytes / BYTES_PER_SECOND)


def _too_slow() -> TimeoutError:
    """Return an error that gunicorn treats as a reset connection: it closes it without a traceback."""
    return TimeoutError(errno.ECONNRESET, "the client takes too long over its request or its answer")
