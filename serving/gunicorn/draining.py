"""The gunicorn worker: told to stop, it goes on answering until what is open is done, and refuses new work at once.

gunicorn's own stops to accept, so that new connections hang until they are reset. It knows nothing of routes or songs:
the app's `Stoppable` says what is left to do.
"""

from __future__ import annotations

import threading
import time
from types import FrameType
from typing import Any, Protocol

from gunicorn.workers import base

from serving.gunicorn.worker import Worker

STOPPABLE = "stoppable"  # where the app leaves its own, in `extensions`
FETCH_SECONDS = 3.0  # after the last song, for those who ask from time to time whether it is done
LEAVE_SECONDS = 5.0  # of the grace period are for what comes after the songs


class Stoppable(Protocol):
    """What the app lets end."""

    def drain(self) -> None:
        """Begin nothing any more."""

    @property
    def busy(self) -> bool:
        """Whether something is under way that is worth the grace period."""

    def close(self, seconds: float = 0.0) -> None:
        """End everything, after giving it so long to be done. May be called again."""


class GracefulWorker(Worker):
    """Keeps accepting after SIGTERM, until nothing is open or the grace period is nearly over."""

    wsgi: Any = None  # until the app is made
    alive: bool
    _ends_at: float | None = None  # when gunicorn's master will kill this process
    _draining: threading.Thread
    _closing: threading.Thread | None = None
    _busy_at: float | None = None  # when songs were last seen to be sung, since it drains

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM."""
        if self._ends_at is not None or self.wsgi is None:
            return super().handle_exit(sig, frame)
        self._ends_at = time.monotonic() + self.cfg.graceful_timeout
        # In a thread, because what a signal interrupts may hold the very lock that is needed.
        self._draining = threading.Thread(target=self._stoppable.drain, daemon=True)
        self._draining.start()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGQUIT or SIGINT. gthread's own takes a lock that the interrupted code may hold."""
        base.Worker.handle_quit(self, sig, frame)

    def notify(self) -> None:
        """A sign of life, which gthread gives in every round of its loop, once a second at least."""
        super().notify()
        if self._ends_at is None or not self.alive:
            return
        if time.monotonic() >= self._ends_at - LEAVE_SECONDS and self._closing is None:
            self._closing = threading.Thread(target=self._stoppable.close, daemon=True)  # who waits is answered
            self._closing.start()
        if self._is_idle() or time.monotonic() >= self._ends_at - LEAVE_SECONDS / 2:
            self.alive = False

    def end(self) -> None:
        """Close the app: the process would wait for its threads."""
        if self._closing:
            self._closing.join()
        elif self.wsgi is not None:
            self._stoppable.close()

    @property
    def _stoppable(self) -> Stoppable:
        stoppable: Stoppable = self.wsgi.extensions[STOPPABLE]
        return stoppable

    def _is_idle(self) -> bool:
        now = time.monotonic()
        if self._stoppable.busy:
            self._busy_at = now
        fetched = self._busy_at is None or now - self._busy_at >= FETCH_SECONDS
        idle = (self.keepalived_conns, self.pending_conns, self.lingering_conns)
        answering = self.nr_conns - sum(map(len, idle))
        return fetched and answering <= 0 and not self._draining.is_alive()
