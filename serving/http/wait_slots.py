"""Requests that wait: how many may, and whether their clients are still connected.

Independent of what they wait for.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PEEK_SECONDS = 2.0  # between two checks of whether a client is still connected


class WaitSlots:
    """Limits how many requests may wait, so that some threads are always free for /health."""

    def __init__(self, slots: int) -> None:
        self._free = threading.Semaphore(slots)

    def take(self) -> bool:
        """Take a slot; return False if none is free. The caller gives it back."""
        return self._free.acquire(blocking=False)

    def give_back(self) -> None:
        """Free a slot that was taken."""
        self._free.release()

    @property
    def free(self) -> int:
        """How many more may wait."""
        return self._free._value

    @contextmanager
    def slot(self) -> Iterator[bool]:
        """A slot for the duration of the context; False if none is free."""
        may_wait = self.take()
        try:
            yield may_wait
        finally:
            if may_wait:
                self.give_back()


def is_gone(environ: Mapping[str, Any]) -> bool:
    """True if the client of the WSGI request has disconnected; False where that cannot be known."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return False
    try:
        # The system's own recv: that of the worker's sockets would wait for something to read.
        return not socket.socket.recv(connection, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ValueError:  # it is encrypted, and cannot be peeked at
        return False
    except OSError:  # it was reset or closed
        return True
