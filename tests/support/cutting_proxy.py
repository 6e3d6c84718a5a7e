"""A small TCP proxy that cuts connections: a network that fails at chosen places.

Independent of what passes through it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

BLOCK_BYTES = 1 << 16


class CuttingProxy:
    """Passes connections on to a port; the n-th is cut after the n-th of `cuts` in bytes of its answer, None: never."""

    def __init__(self, port: int, cuts: Sequence[int | None]) -> None:
        self._port, self._cuts = port, list(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.were_cut = 0
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> CuttingProxy:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the end
            while True:
                client, _ = self._listener.accept()
                cut = self._cuts.pop(0) if self._cuts else None
                self._pass_on(client, cut)

    def _pass_on(self, client: socket.socket, cut: int | None) -> None:
        """One connection at a time is enough: a client of one command has no more."""
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            upwards = threading.Thread(target=_copy, args=(client, server))
            upwards.start()
            left = cut
            while block := server.recv(BLOCK_BYTES if left is None else min(BLOCK_BYTES, max(1, left))):
                if left is not None:
                    if left == 0:
                        break
                    left -= len(block)
                client.sendall(block)
                if left == 0:
                    break
            if left == 0:
                self.were_cut += 1
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            upwards.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(BLOCK_BYTES):
            target.sendall(block)
