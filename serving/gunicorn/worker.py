"""A gunicorn worker whose threads slow, silent or vanished clients cannot exhaust.

It handles connections and the time that their bytes take; requests and responses are the app's.

A connection gets a thread only when the head of a request has arrived; until then it waits in the main loop. At most
SLOW_CONNECTIONS threads wait for the network at once; beyond that, the connection that is furthest behind
BYTES_PER_SECOND is closed. A thread waits for one request no longer than the worker's `network_seconds`, plus one
second for every BYTES_PER_SECOND moved. So slow clients never take the threads of requests that wait for songs.

The main loop refuses bytes that cannot begin a request, such as TLS, at the first byte.

The worker does not wait for a body that the app leaves unread: it closes the connection after the response. What the
client still sends is read and discarded in the main loop for a while, because closing at once would reset the
connection and lose the response.

Requests start in the order of arrival, a few in each round of the main loop. Health probes skip this queue: one of
URGENT_THREADS answers them at once. Requests without a valid key have UNTRUSTED_THREADS and their own limit of slow
connections, so they never delay others.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.workers import gthread

from serving.descriptors import allow_most_files, most_connections, most_files
from serving.gunicorn.client_socket import ClientSocket, SlowConnections

SLOW_CONNECTIONS = 64
NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
NO_CONNECTION = (errno.EAGAIN, errno.ECONNABORTED)
IDLE_SECONDS = 0.1  # an idle connection may be closed for a new one after this time
# Limits for one round of the main loop. The more threads run, the longer a round takes, and the longer a new connection
# waits to be accepted.
MOST_ACCEPTED = 64
MOST_BEGUN = 4
URGENT_THREADS = 4
UNTRUSTED_THREADS = 8
HEAD_BYTES = 8_192  # of request line and headers; a thread reads the rest of a longer head
HEAD_ENDS = b"\r\n\r\n"
HTTP_BEGINS = re.compile(rb"[\r\nA-Za-z0-9!#$%&'*+.^_`|~-]")  # a method; some clients send a line end in front
TLS_BEGINS = b"\x16"
BODY_FOLLOWS = re.compile(
    rb"\r\n(?:content-length|transfer-encoding):[ \t]*(\d{1,9}(?=[ \t]*(?:\r\n|$)))?", re.IGNORECASE
)
MOST_SKIPPED_BYTES = 64 * 1024  # of an unread body, so that another request may follow
# After its response, a client's further bytes are discarded until it disconnects, pauses this long, or reaches a limit.
LINGER_PAUSE_SECONDS = 5.0
LINGER_SECONDS = 300.0
LINGER_BYTES = 1024**3
LINGER_PIECE_BYTES = 1024**2


class NotHttp(ParseException):
    """The first byte cannot begin a request."""

    def __init__(self, head: bytes) -> None:
        tls = head.startswith(TLS_BEGINS)
        super().__init__("it begins with TLS; this port speaks http, not https" if tls else "it begins with no method")


class Connection(gthread.TConn):
    """A connection in the main loop. No method blocks."""

    def receive(self) -> bool:
        """Read the bytes that have arrived. Return False if the client has disconnected."""
        try:
            data = socket.socket.recv(self.sock, HEAD_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.init()  # creates the parser
        self.parser.unreader.buf.seek(0, 2)
        self.parser.unreader.buf.write(data)
        return bool(data)

    @property
    def head(self) -> bytes:
        """The bytes that are read but not parsed."""
        return self.parser.unreader.buf.getvalue() if self.parser else b""

    @property
    def can_begin(self) -> bool:
        """True if a thread can start the request."""
        head = self.head
        return HEAD_ENDS in head or len(head) >= HEAD_BYTES or self.cfg.is_ssl

    @property
    def is_not_http(self) -> bool:
        """True if the first byte cannot begin a request."""
        return bool(self.head) and not HTTP_BEGINS.match(self.head) and not self.cfg.is_ssl

    @property
    def is_whole(self) -> bool:
        """True if the whole request has arrived, so no thread has to wait for the rest."""
        head, end, body = self.head.partition(HEAD_ENDS)
        lengths = BODY_FOLLOWS.findall(head)
        return bool(end) and (not lengths or (b"" not in lengths and len(body) >= max(map(int, lengths))))

    def skip_body(self) -> bool:
        """Discard the rest of an unread body. Return False if it is long or has not arrived."""
        body, before = self.parser.mesg.body, self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            return not body.failed and len(body.read(MOST_SKIPPED_BYTES)) < MOST_SKIPPED_BYTES
        except Exception:  # it has not arrived, or is not HTTP
            return False
        finally:
            self.sock.settimeout(before)

    def set_timeout(self) -> None:
        """Start the keep-alive time."""
        super().set_timeout()
        self.idle_since = time.monotonic()

    def begin_to_linger(self) -> None:
        """Close the sending side after the response. Raises OSError if the client is gone."""
        self.sock.shutdown(socket.SHUT_WR)
        self.idle_since = now = time.monotonic()
        self.timeout, self.linger_until = now + LINGER_PAUSE_SECONDS, now + LINGER_SECONDS
        self.left_bytes, self.has_sent = LINGER_BYTES, False

    def linger(self, buffer: bytearray) -> bool:
        """Discard the bytes that have arrived. Return False at the end or at the limit."""
        try:
            size = self.sock.recv_into(buffer)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.has_sent = True
        self.left_bytes -= size
        return size > 0 and self.left_bytes > 0

    def lingers_on(self) -> bool:
        """Extend the time and return True if the client has sent something since the last call."""
        now = time.monotonic()
        self.timeout, has_sent, self.has_sent = now + LINGER_PAUSE_SECONDS, self.has_sent, False
        return has_sent and now < self.linger_until


class Worker(gthread.ThreadWorker):
    """gunicorn's threaded worker with the connection handling described above."""

    network_seconds = 30.0
    is_trusted: Callable[[bytes], bool] = staticmethod(lambda head: True)  # decides by the raw head of a request
    urgent_paths: Sequence[str] = ()  # requested by GET or HEAD
    refusal: Callable[[Exception], bytes]  # makes the response to an unreadable or failed request

    def init_process(self) -> None:
        """Raise the limits on open files and connections, then run."""
        allow_most_files()
        least = 2 * self.cfg.threads
        self.worker_connections = min(max(self.cfg.worker_connections, least), most_connections())
        self.max_keepalived = max(self.worker_connections - self.cfg.threads, self.worker_connections // 2)
        if self.worker_connections < least:
            words = "only %d files may be open at once, so no more than %d connections; allow more with ulimit -n 4096"
            self.log.warning(words, most_files(), self.worker_connections)
        self._slow = SlowConnections(min(SLOW_CONNECTIONS, self.worker_connections // 4))
        self._urgent_heads = tuple(f"{name} {path} ".encode() for name in ("GET", "HEAD") for path in self.urgent_paths)
        self._urgent_pool = ThreadPoolExecutor(URGENT_THREADS, thread_name_prefix="urgent")
        self._urgent: set[Future[Any]] = set()
        self._untrusted_pool = ThreadPoolExecutor(UNTRUSTED_THREADS, thread_name_prefix="untrusted")
        self._untrusted_slow = SlowConnections(UNTRUSTED_THREADS // 2)
        self._waiting: deque[Any] = deque()
        self.lingering_conns: deque[Connection] = deque()
        self._discarded = bytearray(LINGER_PIECE_BYTES)
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        """Accept new connections, which then wait in the main loop."""
        for _ in range(MOST_ACCEPTED):
            if self._is_full() or not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        """Accept one connection. Return False if there is none."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in NO_FILES_LEFT:  # gunicorn would exit, and lose every song
                self.log.error("cannot accept a connection: %s", error)
                if not self._drop_an_idle_one():
                    time.sleep(IDLE_SECONDS)
            elif error.errno not in NO_CONNECTION:
                raise
            return False
        sock = ClientSocket(client, self._slow, self.network_seconds)
        self.nr_conns += 1
        self._await_head(Connection(self.cfg, sock, address, listener.getsockname()))
        return True

    def _is_full(self) -> bool:
        """Return True if there is no room for another connection, even after closing an idle one."""
        return self.nr_conns >= self.worker_connections and not self._drop_an_idle_one()

    def _await_head(self, conn: Any) -> None:
        """Let a connection wait for the rest of a request's head, for at most `network_seconds`."""
        conn.idle_since = time.monotonic()
        conn.timeout = conn.idle_since + self.network_seconds
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """Handle bytes of a new request. The connection may have been closed in this same round."""
        if client.fileno() < 0:
            return
        if not self.cfg.is_ssl and not conn.receive():
            self._drop(conn, self.pending_conns)
        elif conn.can_begin or conn.is_not_http:
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Handle the next request or a disconnect. The connection may have been closed in this same round."""
        if client.fileno() < 0:
            return
        if not self.cfg.is_ssl and not conn.receive():
            self._drop(conn, self.keepalived_conns)
        else:
            super().on_client_socket_readable(conn, client)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Run one round of the main loop: handle events, then start the next few waiting requests."""
        if self.nr_conns >= self.worker_connections:  # no connection is accepted in this round
            self._drop_an_idle_one()
            timeout = min(timeout, IDLE_SECONDS)
        super().wait_for_and_dispatch_events(0 if self._waiting else timeout)
        for _ in range(min(MOST_BEGUN, len(self._waiting))):
            self._submit(self.tpool, self._waiting.popleft())

    def enqueue_req(self, conn: Any) -> None:
        """Queue a request once its head has arrived. Called only by the main loop."""
        if conn.is_not_http:
            self._refuse_at_once(conn)
            return
        if not conn.can_begin:
            self._await_head(conn)
            return
        conn.sock.slow = self._slow
        self._urgent = {future for future in self._urgent if not future.done()}
        if len(self._urgent) < URGENT_THREADS and conn.is_whole and conn.head.startswith(self._urgent_heads):
            self._urgent.add(self._submit(self._urgent_pool, conn))
        elif self.is_trusted(conn.head):
            self._waiting.append(conn)
        else:
            conn.sock.slow = self._untrusted_slow
            self._submit(self._untrusted_pool, conn)

    def _submit(self, pool: ThreadPoolExecutor, conn: Any) -> Future[Any]:
        future = pool.submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))
        return future

    def handle(self, conn: Any) -> Any:
        """Handle one request, in a thread."""
        conn.sock.begin()
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request. Close the connection afterwards if the body has not arrived when the response begins."""
        asks_to_close = req.should_close

        def should_close() -> bool:
            if not asks_to_close() and not conn.skip_body():
                req.force_close()
            return bool(asks_to_close())

        req.should_close = should_close
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Send the refusal of an unreadable or failed request; gunicorn then closes the connection."""
        with suppress(OSError):  # the client is gone
            client.sendall(self.refusal(exc))

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """Wait for the next request, or close the connection gently. Called only by the main loop."""
        if fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
        else:
            self._close_gently(conn)

    def _refuse_at_once(self, conn: Any) -> None:
        """Refuse bytes that are not HTTP without a thread: the response fits into the socket's buffer."""
        conn.sock.settimeout(0)
        self.handle_error(None, conn.sock, conn.client, NotHttp(conn.head))
        self._close_gently(conn)

    def _close_gently(self, conn: Any) -> None:
        """Let the client read its response to the end before the connection is closed."""
        try:
            conn.begin_to_linger()
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._linger, conn))
            self.lingering_conns.append(conn)
        except (OSError, ValueError):  # the client is gone
            self.nr_conns -= 1
            conn.close()

    def _linger(self, conn: Connection, client: Any) -> None:
        """Handle bytes after the response. The connection may have been closed in this same round."""
        if client.fileno() >= 0 and not conn.linger(self._discarded):
            self._drop(conn, self.lingering_conns)

    def murder_pending(self) -> None:
        """Close connections whose time has run out."""
        super().murder_pending()
        while self.lingering_conns and self.lingering_conns[0].timeout <= time.monotonic():
            conn = self.lingering_conns[0]
            if conn.lingers_on():
                self.lingering_conns.rotate(-1)
            else:
                self._drop(conn, self.lingering_conns)

    def _cap_keepalive(self, deadline: float) -> None:
        """Apply the deadline of a stopping worker to all idle connections, not only to kept-alive ones."""
        super()._cap_keepalive(deadline)
        for conn in (*self.pending_conns, *self.lingering_conns):
            conn.timeout = min(conn.timeout, deadline)
        for conn in self.lingering_conns:
            conn.linger_until = deadline

    def _drop_an_idle_one(self) -> bool:
        """Close the longest idle connection, first of those without a request or after their last response."""
        unwanted = sorted((self.pending_conns, self.lingering_conns), key=len, reverse=True)
        for idle in (*unwanted, self.keepalived_conns):
            if idle and time.monotonic() - idle[0].idle_since >= IDLE_SECONDS:
                self._drop(idle[0], idle)
                return True
        return False

    def _drop(self, conn: Any, idle: deque[Any]) -> None:
        """Close a connection that no thread handles."""
        idle.remove(conn)
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()
