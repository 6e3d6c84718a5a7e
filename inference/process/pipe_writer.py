"""Sends messages through a pipe without blocking the sender: they are queued, and one thread writes them."""

from __future__ import annotations

import os
import queue
import socket
import threading
from contextlib import suppress
from multiprocessing.connection import Connection


class PipeWriter:
    """The only writer to one end of a two-way pipe. `put` may be called from any thread."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=name, daemon=True)
        self._thread.start()

    def put(self, message: object) -> None:
        """Send a message, in order. It is dropped if the other side has closed the pipe."""
        assert message is not None, "None ends the queue"
        self._queue.put(message)

    def close(self) -> None:
        """Shut the pipe down for both sides, even with messages in the queue. Blocked readers and writers return."""
        self._queue.put(None)
        self._shut_down()
        self._thread.join()

    def _write(self) -> None:
        try:
            with suppress(OSError):  # the other side has closed the pipe, which the reader of this end notices
                while (message := self._queue.get()) is not None:
                    self._connection.send(message)
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        """Shut the socket down: closing its descriptor alone would not wake the threads that wait for it."""
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)
