"""gunicorn's worker, of whose threads slow, silent or vanished clients never hold more than their share.

It knows nothing of what is asked or answered: only of connections, and of the time that their bytes take.

A connection gets a thread when there is something to read, not before. A thread that has to wait for the network takes
one of SLOW_CONNECTIONS seats; where none is free, the connection that has made a thread wait longest is closed. For one
request a thread waits no longer than the worker's `network_seconds`, and a second more for every BYTES_PER_SECOND that
were moved. So there are always as many threads left for those who wait for songs as if all clients were quick.

Requests are begun in the order they came, a few in each round of the main loop. Who asks whether the server is well
stands in no line: such a request, if all of it is there, is answered at once by one of URGENT_THREADS of its own.
"""

from __future__ import annotations

import errno
import resource
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.workers import gthread

SLOW_CONNECTIONS = 64
BYTES_PER_SECOND = 8 * 1024  # half of what an MP3 of 128 kbit/s takes to be heard while it comes
MOST_FILES = 65_536  # that are opened at once, where the system allows it
RESERVED_FILES = 256  # for the storage, the engine and the logs
NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
NOBODY_CAME = (errno.EAGAIN, errno.ECONNABORTED)
REST_SECONDS = 0.1
# In one round of the main loop. Python's threads take turns: the more of them run, the longer a round takes, and with
# it the time until a new connection is heard of.
MOST_ACCEPTED = 64
MOST_BEGUN = 4
URGENT_THREADS = 4
HEAD_BYTES = 8_192  # of a request, its lines and headers; a longer one is not urgent
HEAD_ENDS = b"\r\n\r\n"
BODY_FOLLOWS = (b"\r\ncontent-length:", b"\r\ntransfer-encoding:")


class Seats:
    """Those connections for which a thread waits now."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, float] = {}  # since when, as if it had waited in one go

    @contextmanager
    def taken(self, sock: socket.socket, waited_seconds: float) -> Iterator[None]:
        """A seat for who has waited so long before; the one who waits longest makes way where that is necessary."""
        with self._lock:
            if len(self._waiting) >= self._limit:
                longest = min(self._waiting, key=lambda each: self._waiting[each])
                del self._waiting[longest]
                with suppress(OSError):  # it hangs up itself just now
                    longest.shutdown(socket.SHUT_RDWR)  # which wakes its thread
            self._waiting[sock] = time.monotonic() - waited_seconds
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(sock, None)


class PatientSocket(socket.socket):
    """A client's connection, for whose bytes a thread waits only so long."""

    def __init__(self, client: socket.socket, seats: Seats, seconds: float) -> None:
        super().__init__(client.family, client.type, client.proto, client.detach())
        self._seats, self._seconds = seats, seconds
        self.begin()

    def begin(self) -> None:
        """Another request begins, with all its time."""
        self._waited_seconds, self._moved_bytes = 0.0, 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """What is there to be read. Raises TimeoutError."""
        while True:
            try:
                data = super().recv(size, flags | socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)
            else:
                self._moved_bytes += len(data)
                return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it. Raises TimeoutError."""
        rest = memoryview(data).cast("B")
        while rest:
            try:
                sent = super().send(rest, flags | socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLOUT)
            else:
                self._moved_bytes += sent
                rest = rest[sent:]

    def _wait(self, event: int) -> None:
        """Wait until the network is ready, as long as the socket's own timeout and this request's time allow."""
        timeout = self.gettimeout()
        if timeout == 0:
            raise BlockingIOError(errno.EAGAIN, "nothing to be done without waiting")
        left = self._seconds + self._moved_bytes / BYTES_PER_SECOND - self._waited_seconds
        seconds = left if timeout is None else min(left, timeout)
        if seconds <= 0:
            raise _too_slow()
        poll = select.poll()
        poll.register(self, event)
        began = time.monotonic()
        with self._seats.taken(self, self._waited_seconds):
            ready = poll.poll(1_000 * seconds)
        self._waited_seconds += time.monotonic() - began
        if not ready:
            raise _too_slow()


class Connection(gthread.TConn):
    """A connection that is closed without waiting for anybody: gunicorn's own would make the main loop wait 2 s."""

    def close(self, graceful: bool = False) -> None:
        util.close(self.sock)


class Worker(gthread.ThreadWorker):
    """gunicorn's threaded worker with connections as described above."""

    network_seconds = 30.0
    urgent_paths: Sequence[str] = ()  # asked by GET or HEAD
    refusal: Callable[[Exception], bytes]  # what is sent where a request cannot be read, or its answer not be made

    def init_process(self) -> None:
        """Make room for all the connections that may come, then work."""
        files = _most_files()
        self.worker_connections = max(2 * self.cfg.threads, min(self.cfg.worker_connections, files - RESERVED_FILES))
        self.max_keepalived = self.worker_connections - self.cfg.threads
        self._seats = Seats(SLOW_CONNECTIONS)
        self._urgent_heads = tuple(f"{name} {path} ".encode() for name in ("GET", "HEAD") for path in self.urgent_paths)
        self._urgent_pool = ThreadPoolExecutor(URGENT_THREADS, thread_name_prefix="urgent")
        self._urgent: set[Future[Any]] = set()
        self._line: deque[Any] = deque()
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        """Take the new connections, and wait in the main loop until something comes from them."""
        for _ in range(MOST_ACCEPTED):
            if not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        """Whether there was one."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in NO_FILES_LEFT:  # gunicorn would end, and every song with it
                self.log.error("a connection could not be taken: %s", error)
                if not self._drop_an_idle_one():
                    time.sleep(REST_SECONDS)
            elif error.errno not in NOBODY_CAME:
                raise
            return False
        sock = PatientSocket(client, self._seats, self.network_seconds)
        conn = Connection(self.cfg, sock, address, listener.getsockname())
        self.nr_conns += 1
        conn.timeout = time.monotonic() + self.network_seconds
        self.pending_conns.append(conn)
        self.poller.register(sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))
        if self.nr_conns >= self.worker_connections:
            self._drop_an_idle_one()
        return True

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """Its first bytes came; it may have been dropped in this very round."""
        if conn in self.pending_conns:
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """It asks again; it may have been dropped in this very round."""
        if conn in self.keepalived_conns:
            super().on_client_socket_readable(conn, client)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """One round of the main loop: what came, and then the next few of those who stand in line."""
        super().wait_for_and_dispatch_events(0 if self._line else timeout)
        for _ in range(min(MOST_BEGUN, len(self._line))):
            self._submit(self.tpool, self._line.popleft())

    def enqueue_req(self, conn: Any) -> None:
        """Have what can be read answered, in its turn; called by the main loop alone."""
        self._urgent = {future for future in self._urgent if not future.done()}
        if len(self._urgent) < URGENT_THREADS and self._is_urgent(conn.sock):
            self._urgent.add(self._submit(self._urgent_pool, conn))
        else:
            self._line.append(conn)

    def _submit(self, pool: ThreadPoolExecutor, conn: Any) -> Future[Any]:
        future = pool.submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))
        return future

    def _is_urgent(self, sock: socket.socket) -> bool:
        """Whether a whole request is there, and one for an urgent path."""
        try:
            head = socket.socket.recv(sock, HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return False
        if not head.startswith(self._urgent_heads) or HEAD_ENDS not in head:
            return False
        return not any(sign in head.lower() for sign in BODY_FOLLOWS)

    def handle(self, conn: Any) -> Any:
        """One request, in a thread, which also takes leave of the client where that was the last."""
        conn.sock.begin()
        goes_on = super().handle(conn)
        if not goes_on:
            conn.sock.begin()
            util.close_graceful(conn.sock)
        return goes_on

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Refuse what cannot be read, or could not be answered; gunicorn closes the connection then."""
        with suppress(OSError):  # nobody is there any more
            client.sendall(self.refusal(exc))

    def _cap_keepalive(self, deadline: float) -> None:
        """Where the worker stops, those that have not asked yet are waited for no longer than those that have."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _drop_an_idle_one(self) -> bool:
        """Close the connection that is idle for longest, of those that never asked anything first."""
        idle = self.pending_conns or self.keepalived_conns
        if not idle:
            return False
        conn = idle.popleft()
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()
        return True


def _too_slow() -> TimeoutError:
    """gunicorn takes it for a connection that was reset: it closes it, and writes no traceback."""
    return TimeoutError(errno.ECONNRESET, "the client takes too long over its request or its answer")


def _most_files() -> int:
    """Have as many files open as is allowed; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
