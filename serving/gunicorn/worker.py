"""gunicorn's worker, of whose threads slow, silent or vanished clients never hold more than their share.

It knows nothing of what is asked or answered: only of connections, and of the time that their bytes take.

A connection gets a thread when the head of a request is there, not before; until then it waits in the main loop. A
thread that has to wait for the network takes one of SLOW_CONNECTIONS slow; where none is free, the connection that is
furthest behind BYTES_PER_SECOND is closed. For one request a thread waits no longer than the worker's
`network_seconds`, and a second more for every BYTES_PER_SECOND that were moved. So there are always as many threads
left for those who wait for songs as if all clients were quick.

The main loop refuses what can begin no request, such as TLS, at its first byte.

A body that nobody reads is not waited for: the answer closes the connection. What the client still sends is read and
thrown away in the main loop for a while, since closing at once would reset the connection and lose the answer.

Requests are begun in the order they came, a few in each round of the main loop. Who asks whether the server is well
stands in no line: such a request is answered at once by one of URGENT_THREADS of its own. Whoever is not let in has
UNTRUSTED_THREADS and their slow, and so holds up nobody else.
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

from gunicorn import util
from gunicorn.http.errors import ParseException
from gunicorn.workers import gthread

from serving.descriptors import allow_most_files, most_connections, most_files
from serving.gunicorn.client_socket import ClientSocket, SlowConnections

SLOW_CONNECTIONS = 64
NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
NOBODY_CAME = (errno.EAGAIN, errno.ECONNABORTED)
IDLE_SECONDS = 0.1  # after which a connection may have to make way for another
# In one round of the main loop. Python's threads take turns: the more of them run, the longer a round takes, and with
# it the time until a new connection is heard of.
MOST_ACCEPTED = 64
MOST_BEGUN = 4
URGENT_THREADS = 4
UNTRUSTED_THREADS = 8
HEAD_BYTES = 8_192  # of a request, its lines and headers; a thread reads the rest of a longer one
HEAD_ENDS = b"\r\n\r\n"
HTTP_BEGINS = re.compile(rb"[\r\nA-Za-z0-9!#$%&'*+.^_`|~-]")  # a method; some clients send a line end in front
TLS_BEGINS = b"\x16"
BODY_FOLLOWS = re.compile(
    rb"\r\n(?:content-length|transfer-encoding):[ \t]*(\d{1,9}(?=[ \t]*(?:\r\n|$)))?", re.IGNORECASE
)
MOST_SKIPPED_BYTES = 64 * 1024  # of a body that nobody has read, so that another request may follow
# A client that goes on sending after its answer is read from until it hangs up, pauses for so long, or has had so much.
LINGER_PAUSE_SECONDS = 5.0
LINGER_SECONDS = 300.0
LINGER_BYTES = 1024**3
LINGER_PIECE_BYTES = 1024**2


class NoHttp(ParseException):
    """The first byte that came can begin no request."""

    def __init__(self, head: bytes) -> None:
        tls = head.startswith(TLS_BEGINS)
        super().__init__("it begins with TLS; this port speaks http, not https" if tls else "it begins with no method")


class Connection(gthread.TConn):
    """A connection as the main loop sees it: nothing here waits for anybody."""

    def receive(self) -> bool:
        """Read what has come. Whether there may be more: False where the client has hung up."""
        try:
            data = socket.socket.recv(self.sock, HEAD_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.init()  # the parser
        self.parser.unreader.buf.seek(0, 2)
        self.parser.unreader.buf.write(data)
        return bool(data)

    @property
    def head(self) -> bytes:
        """What was read and not parsed."""
        return self.parser.unreader.buf.getvalue() if self.parser else b""

    @property
    def can_begin(self) -> bool:
        """Whether a thread has enough to go on with."""
        head = self.head
        return HEAD_ENDS in head or len(head) >= HEAD_BYTES or self.cfg.is_ssl

    @property
    def is_no_http(self) -> bool:
        """True where the first byte can begin no request."""
        return bool(self.head) and not HTTP_BEGINS.match(self.head) and not self.cfg.is_ssl

    @property
    def is_whole(self) -> bool:
        """Whether all of a request is there, so that no thread has to wait for the rest."""
        head, end, body = self.head.partition(HEAD_ENDS)
        lengths = BODY_FOLLOWS.findall(head)
        return bool(end) and (not lengths or (b"" not in lengths and len(body) >= max(map(int, lengths))))

    def skip_body(self) -> bool:
        """Whether the rest of the request's body, which the app has not read, is here and short; it is thrown away."""
        body, before = self.parser.mesg.body, self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            return not body.failed and len(body.read(MOST_SKIPPED_BYTES)) < MOST_SKIPPED_BYTES
        except Exception:  # it has not come, or it is no HTTP
            return False
        finally:
            self.sock.settimeout(before)

    def set_timeout(self) -> None:
        """It is kept for another request."""
        super().set_timeout()
        self.idle_since = time.monotonic()

    def begin_to_linger(self) -> None:
        """The answer is sent: say that no more follows. Raises OSError where the client is gone."""
        self.sock.shutdown(socket.SHUT_WR)
        self.idle_since = now = time.monotonic()
        self.timeout, self.linger_until = now + LINGER_PAUSE_SECONDS, now + LINGER_SECONDS
        self.left_bytes, self.has_sent = LINGER_BYTES, False

    def linger(self, buffer: bytearray) -> bool:
        """Throw away what has come. Whether there may be more."""
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
        """Whether it gets more time: it has sent something in that which it had."""
        now = time.monotonic()
        self.timeout, has_sent, self.has_sent = now + LINGER_PAUSE_SECONDS, self.has_sent, False
        return has_sent and now < self.linger_until

    def close(self, graceful: bool = False) -> None:
        """Close it at once: gunicorn's own would make the main loop wait 2 s."""
        util.close(self.sock)


class Worker(gthread.ThreadWorker):
    """gunicorn's threaded worker with connections as described above."""

    network_seconds = 30.0
    is_trusted: Callable[[bytes], bool] = staticmethod(lambda head: True)  # by a request's head, as it was sent
    urgent_paths: Sequence[str] = ()  # asked by GET or HEAD
    refusal: Callable[[Exception], bytes]  # what is sent where a request cannot be read, or its answer not be made

    def init_process(self) -> None:
        """Make room for all the connections that may come, then work."""
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
        self._untrusted_seats = SlowConnections(UNTRUSTED_THREADS // 2)
        self._line: deque[Any] = deque()
        self.lingering_conns: deque[Connection] = deque()
        self._thrown_away = bytearray(LINGER_PIECE_BYTES)
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        """Take the new connections, and wait in the main loop until something comes from them."""
        for _ in range(MOST_ACCEPTED):
            if self._is_full() or not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        """Whether there was one."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in NO_FILES_LEFT:  # gunicorn would end, and every song with it
                self.log.error("a connection could not be taken: %s", error)
                if not self._drop_an_idle_one():
                    time.sleep(IDLE_SECONDS)
            elif error.errno not in NOBODY_CAME:
                raise
            return False
        sock = ClientSocket(client, self._slow, self.network_seconds)
        self.nr_conns += 1
        self._await_head(Connection(self.cfg, sock, address, listener.getsockname()))
        return True

    def _is_full(self) -> bool:
        """Whether there is no room for another connection, though one that is idle makes way."""
        return self.nr_conns >= self.worker_connections and not self._drop_an_idle_one()

    def _await_head(self, conn: Any) -> None:
        """Have it wait for the rest of a request's head, which may take so long as a thread would wait."""
        conn.idle_since = time.monotonic()
        conn.timeout = conn.idle_since + self.network_seconds
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """Some of a request has come; the connection may have been dropped in this very round."""
        if client.fileno() < 0:
            return
        if not self.cfg.is_ssl and not conn.receive():
            self._drop(conn, self.pending_conns)
        elif conn.can_begin or conn.is_no_http:
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """It asks again, or hangs up; it may have been dropped in this very round."""
        if client.fileno() < 0:
            return
        if not self.cfg.is_ssl and not conn.receive():
            self._drop(conn, self.keepalived_conns)
        else:
            super().on_client_socket_readable(conn, client)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """One round of the main loop: what came, and then the next few of those who stand in line."""
        if self.nr_conns >= self.worker_connections:  # nobody is accepted in this round
            self._drop_an_idle_one()
            timeout = min(timeout, IDLE_SECONDS)
        super().wait_for_and_dispatch_events(0 if self._line else timeout)
        for _ in range(min(MOST_BEGUN, len(self._line))):
            self._submit(self.tpool, self._line.popleft())

    def enqueue_req(self, conn: Any) -> None:
        """Have a request answered in its turn, when its head is there; called by the main loop alone."""
        if conn.is_no_http:
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
            self._line.append(conn)
        else:
            conn.sock.slow = self._untrusted_seats
            self._submit(self._untrusted_pool, conn)

    def _submit(self, pool: ThreadPoolExecutor, conn: Any) -> Future[Any]:
        future = pool.submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))
        return future

    def handle(self, conn: Any) -> Any:
        """One request, in a thread."""
        conn.sock.begin()
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer it. Where its body is still to come when the answer begins, it is the connection's last."""
        asks_to_close = req.should_close

        def should_close() -> bool:
            if not asks_to_close() and not conn.skip_body():
                req.force_close()
            return bool(asks_to_close())

        req.should_close = should_close
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Refuse what cannot be read, or could not be answered; gunicorn closes the connection then."""
        with suppress(OSError):  # nobody is there any more
            client.sendall(self.refusal(exc))

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """After a request: wait for the next, or take leave; called by the main loop."""
        if fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
        else:
            self._take_leave(conn)

    def _refuse_at_once(self, conn: Any) -> None:
        """Refuse what is no HTTP, without a thread: the answer fits into the buffers of the connection."""
        conn.sock.settimeout(0)
        self.handle_error(None, conn.sock, conn.client, NoHttp(conn.head))
        self._take_leave(conn)

    def _take_leave(self, conn: Any) -> None:
        """Let the client read its answer to the end before the connection is closed."""
        try:
            conn.begin_to_linger()
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._linger, conn))
            self.lingering_conns.append(conn)
        except (OSError, ValueError):  # it is gone already
            self.nr_conns -= 1
            conn.close()

    def _linger(self, conn: Connection, client: Any) -> None:
        """Something came after the answer; the connection may have been dropped in this very round."""
        if client.fileno() >= 0 and not conn.linger(self._thrown_away):
            self._drop(conn, self.lingering_conns)

    def murder_pending(self) -> None:
        """Close those whose time to ask, or to take leave, is over."""
        super().murder_pending()
        while self.lingering_conns and self.lingering_conns[0].timeout <= time.monotonic():
            conn = self.lingering_conns[0]
            if conn.lingers_on():
                self.lingering_conns.rotate(-1)
            else:
                self._drop(conn, self.lingering_conns)

    def _cap_keepalive(self, deadline: float) -> None:
        """Where the worker stops, no idle connection is waited for longer than those that have asked already."""
        super()._cap_keepalive(deadline)
        for conn in (*self.pending_conns, *self.lingering_conns):
            conn.timeout = min(conn.timeout, deadline)
        for conn in self.lingering_conns:
            conn.linger_until = deadline

    def _drop_an_idle_one(self) -> bool:
        """Close the connection that is idle for longest, of those first that never asked or were answered for good."""
        unwanted = sorted((self.pending_conns, self.lingering_conns), key=len, reverse=True)
        for idle in (*unwanted, self.keepalived_conns):
            if idle and time.monotonic() - idle[0].idle_since >= IDLE_SECONDS:
                self._drop(idle[0], idle)
                return True
        return False

    def _drop(self, conn: Any, idle: deque[Any]) -> None:
        """Close a connection that no thread has."""
        idle.remove(conn)
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()
