"""What is known of a model on its way: what it is loaded into, how far an attempt is, what went wrong last.

It starts nothing and waits for nothing: `model_manager.py` does.
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
from inference.song import Progress, Song, SongRequest

NOT_LOADED, DOWNLOADING, LOADING, READY, ERROR = "not_loaded", "downloading", "loading", "ready", "error"
FIRST_PAUSE_SECONDS = 5.0  # before what went wrong is tried again by itself; doubled with each setback in a row
LONGEST_PAUSE_SECONDS = 600.0
STABLE_SECONDS = 600.0  # an engine that lived so long did not end for the reason that the one before it did
CRASH_LOOP = 3  # so many engines in a row that ended by themselves: the next one will most likely end too


class Engine(Protocol):
    """What sings. Its errors are YueErrors."""

    def generate(self, song_id: str, request: SongRequest, on_progress: Callable[[Progress], None]) -> Future[Song]:
        """Starts a song; never blocks."""

    def cancel(self, song_id: str) -> None:
        """Ends that song, whose future raises Cancelled. An unknown id is none of its business."""

    def info(self) -> dict[str, object]:
        """Device, dtype, quantization, memory, seconds of loading. `memory_bytes` is None where it is not a GPU's."""

    @property
    def alive(self) -> bool:
        """Whether it can still sing."""

    @property
    def ending(self) -> str:
        """How it ended by itself, as the rest of a sentence: "was ended by SIGKILL"."""

    def close(self) -> None:
        """Ends it; the songs in it fail with EngineError."""


class Fetch(Protocol):
    """One fetching of one model's files."""

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> ModelFiles:
        """Blocks until the files are here; `on_progress` hears how far it is. Raises DownloadError."""

    def cancel(self) -> None:
        """Makes `run` raise DownloadError soon."""


MakeFetch = Callable[[Model, bool], Fetch]  # True: prove the files, and fetch again what is not right
StartEngine = Callable[[ModelFiles, Callable[[str], None]], Engine]  # what the callback raises ends the start


@dataclass(eq=False)
class Counters:
    """What has happened since the server started, for those who measure. The manager's guard is held to change it."""

    engine_starts: int = 0
    engine_crashes: int = 0  # engines that ended by themselves once they were ready
    failed_attempts: int = 0  # to fetch and load a model


class ObservedModels(Protocol):
    """What can be seen of the models without waiting for anything."""

    counters: Counters

    @property
    def refuses_songs(self) -> bool:
        """Whether a song that is sent now would be refused."""

    def snapshot(self) -> tuple[str, LoadedModel | None, Attempt | None]:
        """The status, the model that is loaded, and the attempt to get one ready."""


@dataclass(eq=False)
class LoadedModel:
    """A model that can sing, and how many use it right now."""

    model: Model
    files: ModelFiles
    engine: Engine
    seconds: float  # from the first byte to ready
    ready_at: float = 0.0  # by the manager's clock
    users: int = 0
    retired: bool = False  # another takes its place: no new song begins in it

    @property
    def max_songs(self) -> int:
        """How many songs the engine sings together."""
        songs = self.engine.info().get("max_songs", 1)
        assert isinstance(songs, int)
        return songs

    def status(self) -> dict[str, object]:
        """As /models/status shows it."""
        return {
            "status": READY,
            "model": self.model.name,
            "revision": self.files.revision,
            "seconds": round(self.seconds, 3),
            "engine": self.engine.info(),
        }


@dataclass(eq=False)
class Attempt:
    """One try to get a model ready, shared by all who wait for it. The manager's guard is held to change it."""

    model: Model
    fetch: Fetch
    restores: bool = False  # the model that another one could not replace
    outcome: Future[LoadedModel] = field(default_factory=Future)
    state: str = DOWNLOADING
    download: dict[str, object] = field(default_factory=dict)  # how far it is, as last heard
    repositories: dict[str, object] = field(default_factory=dict)  # the same of each repository
    part: str | None = None  # what the engine is loading
    displaced: LoadedModel | None = None  # what had to make room
    ended: bool = False
    began: float = field(default_factory=time.monotonic)

    def note_progress(self, progress: Mapping[str, object]) -> None:
        """How far the download is."""
        news = dict(progress)
        repository = str(news.pop("repository", ""))
        if repository:
            counts = {name: news[name] for name in ("bytes_done", "bytes_total") if name in news}
            self.repositories = {**self.repositories, repository: counts}
        overall = {"bytes_done": news.pop("overall_done", None), "bytes_total": news.pop("overall_total", None)}
        self.download = news if overall["bytes_total"] is None else {**news, **overall}

    def note_part(self, part: str) -> None:
        """What the engine loads now. Raises Cancelled, which ends the loading, if nobody wants it any more."""
        if self.ended:
            raise cancelled(self.model)
        self.part = part

    def status(self) -> dict[str, object]:
        """As /models/status shows it."""
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
        """Whether a model was here and made room: songs wait for the new one, or for the old one again."""
        return self.restores or self.displaced is not None


@dataclass(eq=False)
class Backoff:
    """What went wrong in a row, and how long the next try is put off for it. The manager's guard is held to use it."""

    clock: Callable[[], float]
    crashes: int = 0  # engines that ended by themselves, while they sang or while they were started
    _pause_s: float = 0.0  # the last that was taken
    _until: float = 0.0  # by the clock

    @property
    def seconds_left(self) -> float:
        """Of the pause."""
        return max(0.0, self._until - self.clock())

    @property
    def crash_loop(self) -> bool:
        """Whether engines end too often for chance."""
        return self.crashes >= CRASH_LOOP

    def engine_ended(self, ready_at: float) -> None:
        """An engine ended by itself. After the first that did, the next try may come at once."""
        if self.clock() - ready_at > STABLE_SECONDS:
            self.forget()
        self.crashes += 1
        self._until = self.clock()
        if self.crashes > 1:
            self._put_off()

    def attempt_failed(self, crashed: bool) -> None:
        """Models could not be made ready; `crashed` says that it was their engine that did not come up."""
        self.crashes += crashed
        self._put_off()

    def forget(self) -> None:
        """Something else begins, or has lived for long."""
        self.crashes, self._pause_s, self._until = 0, 0.0, 0.0

    def _put_off(self) -> None:
        self._pause_s = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause_s), LONGEST_PAUSE_SECONDS)
        self._until = self.clock() + self._pause_s


@dataclass(frozen=True)
class LastError:
    """What went wrong last."""

    error: Exception
    model: Model
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_dict(self) -> dict[str, object]:
        """As /models/status shows it. `reason` is a word for programs, `detail` a sentence for people.

        `permanent`: another try can only end the same way, until somebody acts.
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
    """What those hear who wait for a model whose download was cancelled."""
    return Cancelled(f"the download of {model.name} was cancelled; what is here already is kept: ask again to go on")
