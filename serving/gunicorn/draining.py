"""A gunicorn worker that keeps answering after SIGTERM until its open work is done, and refuses new work at once.

gunicorn's own worker stops accepting, so new connections hang until they are reset. The app's `Stoppable` tells what
is left to do.
"""

from __future__ import annotations

import threading
import time
from types import FrameType
from typing import Any, Protocol

from gunicorn.workers import base

from serving.gunicorn.worker import Worker

STOPPABLE = "stoppable"  # the key in `app.extensions`
FETCH_SECONDS = 3.0  # after the last song, so that polling clients can fetch it
LEAVE_SECONDS = 5.0  # of the grace period, reserved for closing down after the songs


class Stoppable(Protocol):
    """An app that can be drained and closed."""

    def drain(self) -> None:
        """Begin no more work."""

    @property
    def busy(self) -> bool:
        """True while work is running that is worth waiting for."""

    def close(self, seconds: float = 0.0) -> None:
        """End everything, after waiting up to `seconds` for running work. May be called again."""


class GracefulWorker(Worker):
    """Keeps accepting after SIGTERM until no request is open or the grace period is nearly over."""

    wsgi: Any = None  # until the app is created
    alive: bool
    _ends_at: float | None = None  # when gunicorn's master will kill this process
    _draining: threading.Thread
    _closing: threading.Thread | None = None
    _busy_at: float | None = None  # when songs were last seen running while draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: start draining; on the second signal, stop at once."""
        if self._ends_at is not None or self.wsgi is None:
            return super().handle_exit(sig, frame)
        self._ends_at = time.monotonic() + self.cfg.graceful_timeout
        # In a thread: the interrupted code may hold a lock that draining needs.
        self._draining = threading.Thread(target=self._stoppable.drain, daemon=True)
        self._draining.start()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGQUIT and SIGINT. gthread's own handler takes a lock that the interrupted code may hold."""
        base.Worker.handle_quit(self, sig, frame)

    def notify(self) -> None:
        """Heartbeat; gthread calls it in every round of its loop, at least once a second."""
        super().notify()
        if self._ends_at is None or not self.alive:
            return
        if time.monotonic() >= self._ends_at - LEAVE_SECONDS and self._closing is None:
            self._closing = threading.Thread(target=self._stoppable.close, daemon=True)  # answers waiting requests
            self._closing.start()
        if self._is_idle() or time.monotonic() >= self._ends_at - LEAVE_SECONDS / 2:
            self.alive = False

    def end(self) -> None:
        """Close the app; otherwise the process would wait for the app's threads."""
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
