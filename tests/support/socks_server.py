"""A small SOCKS5 proxy on this machine (RFC 1928, CONNECT only) that leads every connection to one address.

Independent of what is sent through it.

    with SocksServer(port) as socks:
        environment = {"ALL_PROXY": socks.url("socks5")}
        socks.hosts                                     # that were asked for, as they were spelled
"""

from __future__ import annotations

import socket
import struct
import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer

VERSION, NO_LOGIN, CONNECT, NAME, IPV4 = 5, 0, 1, 3, 1
BLOCK_BYTES = 1 << 16


class SocksServer(ThreadingTCPServer):
    """A context manager."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.port = port
        self.hosts: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, name="socks")

    def __enter__(self) -> SocksServer:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def url(self, scheme: str) -> str:
        """What ALL_PROXY has to be."""
        return f"{scheme}://127.0.0.1:{self.server_address[1]}"


class _Connection(StreamRequestHandler):
    server: SocksServer

    def handle(self) -> None:
        _, methods = self.rfile.read(2)
        self.rfile.read(methods)
        self.wfile.write(bytes([VERSION, NO_LOGIN]))
        _, command, _, kind = self.rfile.read(4)
        assert command == CONNECT and kind in (NAME, IPV4)
        host = self.rfile.read(self.rfile.read(1)[0]).decode() if kind == NAME else socket.inet_ntoa(self.rfile.read(4))
        self.rfile.read(2)  # the port
        self.server.hosts.append(host)
        with socket.create_connection(("127.0.0.1", self.server.port)) as other:
            self.wfile.write(bytes([VERSION, 0, 0, IPV4]) + socket.inet_aton("127.0.0.1") + struct.pack("!H", 0))
            back = threading.Thread(target=_pass_on, args=(other, self.connection), daemon=True)
            back.start()
            _pass_on(self.connection, other)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(BLOCK_BYTES):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        """One of the two is gone."""
