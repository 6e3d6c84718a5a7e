"""The state of a model: the loaded engine, the progress of an attempt, the pauses between attempts, the last error.

Plain data: `model_manager.py` starts and waits for things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from inference.catalog import Model, ModelFiles
from inference.errors import Cancelled
from inference.song import Progress, Song, SongPart, SongRequest

NOT_LOADED, DOWNLOADING, LOADING, READY, ERROR = "not_loaded", "downloading", "loading", "ready", "error"
FIRST_PAUSE_SECONDS = 5.0  # before an automatic retry; doubled after each failure in a row
LONGEST_PAUSE_SECONDS = 600.0
STABLE_SECONDS = 600.0  # after this uptime, a crash counts as unrelated to earlier ones
CRASH_LOOP = 3  # this many crashes in a row are taken for a permanent failure


class Engine(Protocol):
    """Generates songs. Raises YueError."""

    def generate(
        self,
        song_id: str,
        request: SongRequest,
        on_progress: Callable[[Progress], None],
        on_part: Callable[[SongPart], None],
    ) -> Future[Song]:
        """Start generating a song. Never blocks; its parts come before its end."""

    def listen(self, song_id: str) -> None:
        """Hurry the song, because somebody listens to it. An unknown id is ignored."""

    def cancel(self, song_id: str) -> None:
        """End the song; its future raises Cancelled. An unknown id is ignored."""

    def info(self) -> dict[str, object]:
        """Return device, dtype, quantization, memory and loading time. `memory_bytes` is None without a GPU."""

    @property
    def alive(self) -> bool:
        """True while it can generate songs."""

    @property
    def ending(self) -> str:
        """How the process ended, as the rest of a sentence: "was ended by SIGKILL"."""

    def close(self) -> None:
        """End the engine. Its unfinished songs fail with EngineError."""


class Fetch(Protocol):
    """One download of one model's files."""

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> ModelFiles:
        """Block until the files are complete, reporting to `on_progress`. Raises DownloadError."""

    def cancel(self) -> None:
        """Make `run` raise DownloadError soon."""


MakeFetch = Callable[[Model, bool], Fetch]  # True: verify the files' checksums and fetch damaged ones again
StartEngine = Callable[[ModelFiles, Callable[[str], None]], Engine]  # an exception in the callback ends the start


@dataclass(eq=False)
class Counters:
    """Totals since the server started, for the metrics. Changed only under the manager's lock."""

    engine_starts: int = 0
    engine_crashes: int = 0  # engines that ended unexpectedly after they were ready
    failed_attempts: int = 0  # attempts to fetch and load a model


class ObservedModels(Protocol):
    """The view of the models that never blocks."""

    counters: Counters

    @property
    def refuses_songs(self) -> bool:
        """True while new songs are refused."""

    def snapshot(self) -> tuple[str, LoadedModel | None, Attempt | None]:
        """Return the status, the loaded model, and the current attempt to load one."""


@dataclass(eq=False)
class LoadedModel:
    """A loaded model and the number of its current users."""

    model: Model
    files: ModelFiles
    engine: Engine
    seconds: float  # from the start of the download until ready
    ready_at: float = 0.0  # by the manager's clock
    users: int = 0
    retired: bool = False  # being replaced: accepts no new songs

    @property
    def max_songs(self) -> int:
        """The number of songs that the engine generates at once."""
        songs = self.engine.info().get("max_songs", 1)
        assert isinstance(songs, int)
        return songs

    def status(self) -> dict[str, object]:
        """Return it as in /models/status."""
        return {
            "status": READY,
            "model": self.model.name,
            "revision": self.files.revision,
            "seconds": round(self.seconds, 3),
            "engine": self.engine.info(),
        }


@dataclass(eq=False)
class Attempt:
    """One attempt to fetch and load a model, shared by all callers that wait. Changed only under the manager's lock."""

    model: Model
    fetch: Fetch
    restores: bool = False  # reloads the previous model after its replacement failed
    outcome: Future[LoadedModel] = field(default_factory=Future)
    state: str = DOWNLOADING
    download: dict[str, object] = field(default_factory=dict)  # the last reported progress
    repositories: dict[str, object] = field(default_factory=dict)  # the same, by repository
    part: str | None = None  # what the engine is loading
    displaced: LoadedModel | None = None  # the model that was closed to make room
    ended: bool = False
    began: float = field(default_factory=time.monotonic)

    def note_progress(self, progress: Mapping[str, object]) -> None:
        """Record the progress of the download."""
        news = dict(progress)
        repository = str(news.pop("repository", ""))
        if repository:
            counts = {name: news[name] for name in ("bytes_done", "bytes_total") if name in news}
            self.repositories = {**self.repositories, repository: counts}
        overall = {"bytes_done": news.pop("overall_done", None), "bytes_total": news.pop("overall_total", None)}
        self.download = news if overall["bytes_total"] is None else {**news, **overall}

    def note_part(self, part: str) -> None:
        """Record which part the engine is loading. Raises Cancelled, which ends it, if the attempt has ended."""
        if self.ended:
            raise cancelled(self.model)
        self.part = part

    def status(self) -> dict[str, object]:
        """Return it as in /models/status."""
        return {
            "status": self.state,
            "model": self.model.name,
            "revision": self.model.stage1.revision,
            "seconds": round(time.monotonic() - self.began, 3),
            "download": {**self.download, "repositories": self.repositories},
            "loading": self.part,
            "replaces": self.replaces,
        }

    @property
    def replaces(self) -> bool:
        """True if a loaded model was closed for this attempt, so songs wait for the new or the restored one."""
        return self.restores or self.displaced is not None


@dataclass(eq=False)
class Backoff:
    """Consecutive failures and the pause before the next attempt. Used only under the manager's lock."""

    clock: Callable[[], float]
    crashes: int = 0  # engines in a row that ended unexpectedly, running or starting
    _pause_s: float = 0.0  # the latest pause
    _until: float = 0.0  # by the clock

    @property
    def seconds_left(self) -> float:
        """The rest of the pause."""
        return max(0.0, self._until - self.clock())

    @property
    def crash_loop(self) -> bool:
        """True after CRASH_LOOP crashes in a row."""
        return self.crashes >= CRASH_LOOP

    def engine_ended(self, ready_at: float) -> None:
        """Record a crash. The first one in a row causes no pause."""
        if self.clock() - ready_at > STABLE_SECONDS:
            self.forget()
        self.crashes += 1
        self._until = self.clock()
        if self.crashes > 1:
            self._put_off()

    def attempt_failed(self, crashed: bool) -> None:
        """Record a failed attempt; `crashed` if its engine ended while it started."""
        self.crashes += crashed
        self._put_off()

    def forget(self) -> None:
        """Reset, for another model or after a stable engine."""
        self.crashes, self._pause_s, self._until = 0, 0.0, 0.0

    def _put_off(self) -> None:
        self._pause_s = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause_s), LONGEST_PAUSE_SECONDS)
        self._until = self.clock() + self._pause_s


@dataclass(frozen=True)
class LastError:
    """The most recent error."""

    error: Exception
    model: Model
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_dict(self) -> dict[str, object]:
        """Return it as in /models/status. `reason` is for programs, `detail` for people.

        `permanent`: another attempt fails in the same way until somebody acts.
        """
        kind = type(self.error).__name__
        reason = getattr(self.error, "reason", None) if kind == "DownloadError" else None
        return {
            "error": kind,
            "reason": reason,
            "detail": str(self.error),
            "permanent": getattr(self.error, "permanent", False),
            "model": self.model.name,
            "at": self.at.isoformat(timespec="milliseconds"),
        }


def cancelled(model: Model) -> Cancelled:
    """Return the error for callers that wait for a model whose download was cancelled."""
    return Cancelled(f"the download of {model.name} was cancelled; what is here already is kept: ask again to go on")
