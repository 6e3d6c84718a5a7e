"""The models' life: fetched, loaded, singing, replaced; one loads, any number wait for it.

It knows nothing of HTTP, and nothing of how weights are fetched or an engine is started: both are passed in.

    not_loaded -> downloading -> loading -> ready, or error

Each attempt runs in a thread of its own and is shared: whoever needs the models meanwhile waits for that attempt and
gets its engine or its error. After an error the next caller starts the next attempt. While one engine sings, another
model's attempt can run; the new engine then takes over, and the old one is closed behind its last song.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from inference import catalog
from inference.catalog import Model, ModelFiles
from inference.errors import EngineError
from inference.song import Progress, Song, SongRequest
from serving.problems import conflict

log = logging.getLogger(__name__)

NOT_LOADED, DOWNLOADING, LOADING, READY, ERROR = "not_loaded", "downloading", "loading", "ready", "error"


class Engine(Protocol):
    """What sings. Its errors are YueErrors."""

    def sing(self, song_id: str, request: SongRequest, on_progress: Callable[[Progress], None]) -> Future[Song]:
        """Starts a song; never blocks."""

    def cancel(self, song_id: str) -> None:
        """Ends that song, whose future raises Cancelled. An unknown id is none of its business."""

    def info(self) -> dict[str, object]:
        """Device, dtype, memory, seconds of loading."""

    @property
    def alive(self) -> bool:
        """Whether it can still sing."""

    def close(self) -> None:
        """Ends it; the songs in it fail with EngineError."""


class Fetch(Protocol):
    """One fetching of one model's files."""

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> ModelFiles:
        """Blocks until the files are here; `on_progress` hears how far it is. Raises DownloadError."""

    def cancel(self) -> None:
        """Makes `run` raise DownloadError soon."""


StartEngine = Callable[[ModelFiles, Callable[[str], None]], Engine]


@dataclass(eq=False)
class Loaded:
    """A model that can sing, and how many use it right now."""

    model: Model
    files: ModelFiles
    engine: Engine
    seconds: float  # from the first byte to ready
    users: int = 0
    retired: bool = False  # another has taken its place


@dataclass(eq=False)
class Attempt:
    """One try to get a model ready, shared by all who wait for it."""

    model: Model
    fetch: Fetch
    outcome: Future[Loaded] = field(default_factory=Future)
    state: str = DOWNLOADING
    progress: Mapping[str, object] = field(default_factory=dict)  # of the download
    part: str | None = None  # what the engine is loading
    began: float = field(default_factory=time.monotonic)

    def note_progress(self, progress: Mapping[str, object]) -> None:
        """How far the download is."""
        self.progress = progress

    def note_part(self, part: str) -> None:
        """What the engine loads now."""
        self.part = part


class ModelManager:
    """Which model is here, and how to get it here. Every method may be called from any thread."""

    def __init__(self, model: Model, fetch: Callable[[Model], Fetch], start_engine: StartEngine) -> None:
        self.models_loaded = threading.Event()
        self.models_downloading = threading.Event()
        self.load_lock = threading.Lock()  # held while files are fetched and an engine starts
        self._fetch = fetch
        self._start_engine = start_engine
        self._guard = threading.Lock()  # of the fields below; held for moments only
        self._model = model
        self._loaded: Loaded | None = None
        self._attempt: Attempt | None = None
        self._error: Exception | None = None  # of the last attempt, or of an engine that ended
        self._failed = False
        self._closed = False

    @property
    def model(self) -> Model:
        """The model that the next song will be sung by, as far as is known now."""
        with self._guard:
            if self._attempt and not self._living():
                return self._attempt.model
            return self._model

    def ensure_models_available(self) -> Engine:
        """The engine, once it is ready. Raises the YueError of the attempt that it waited for."""
        return self._ensure().engine

    def start(self) -> None:
        """Begin to make the models ready, in the background."""
        with self._guard:
            if not self._living() and not self._attempt:
                self._begin(self._model)

    def load(self, model: str | None = None, revision: str | None = None, force: bool = False) -> Future[Loaded]:
        """Have that model ready (None: the one that is set up). The future may be done already.

        A second call for the same model joins the first. Raises UnknownModel, and Problem while another one is loading.
        """
        with self._guard:
            named = bool(model or revision)
            wanted = catalog.find(model or self._model.name, revision) if named else self._model
            loaded, attempt = self._living(), self._attempt
            if attempt and named and attempt.model != wanted:
                raise conflict(f"model {attempt.model.name} is being loaded; ask for {wanted.name} when that is done")
            if loaded and not attempt and loaded.model == wanted and not force:
                ready: Future[Loaded] = Future()
                ready.set_result(loaded)
                return ready
            return (attempt or self._begin(wanted)).outcome

    @contextmanager
    def borrowed(self) -> Iterator[Loaded]:
        """The models for as long as a song takes: an engine that is replaced meanwhile is closed after it."""
        loaded = self._borrow()
        try:
            yield loaded
        finally:
            with self._guard:
                loaded.users -= 1
                unused = loaded.retired and not loaded.users
            if unused:
                loaded.engine.close()

    def status(self) -> dict[str, object]:
        """Where the models are; all that /models/status shows."""
        with self._guard:
            loaded, attempt = self._living(), self._attempt
            error = str(self._error) if self._error else None
            failed = self._failed
            model = self._model
        if loaded:
            next_model = {"next": _attempt_status(attempt)} if attempt else {}
            return {**_loaded_status(loaded), "last_error": error, **next_model}
        if attempt:
            return {**_attempt_status(attempt), "last_error": error}
        status = ERROR if failed else NOT_LOADED
        return {"status": status, "model": model.name, "revision": model.stage1.revision, "last_error": error}

    def close(self) -> None:
        """End the download and the engine. Those who wait get an EngineError."""
        with self._guard:
            self._closed = True
            loaded, self._loaded = self._loaded, None
            attempt, self._attempt = self._attempt, None
            self.models_loaded.clear()
            self.models_downloading.clear()
        if attempt:
            attempt.fetch.cancel()
            attempt.outcome.set_exception(_stopping())
        if loaded:
            loaded.engine.close()

    def _ensure(self) -> Loaded:
        with self._guard:
            loaded = self._living()
            if loaded:
                return loaded
            attempt = self._attempt or self._begin(self._model)
        return attempt.outcome.result()

    def _borrow(self) -> Loaded:
        while True:
            loaded = self._ensure()
            with self._guard:
                if not loaded.retired:  # else it was replaced in between
                    loaded.users += 1
                    return loaded

    def _living(self) -> Loaded | None:
        """What is loaded, if its engine still lives. The guard is held."""
        if self._loaded and not self._loaded.engine.alive:
            self._loaded.engine.close()  # at once, for it is dead; its pipe and process id are given back
            self._error, self._loaded = EngineError("the engine's process ended; it is started again when needed"), None
            self.models_loaded.clear()
            log.warning("the engine ended by itself")
        return self._loaded

    def _begin(self, model: Model) -> Attempt:
        """A new attempt. The guard is held."""
        assert self._attempt is None, "one attempt at a time"
        if self._closed:
            raise _stopping()
        self._attempt = attempt = Attempt(model, self._fetch(model))
        # A daemon, because an engine's start cannot be interrupted: the process must be able to end meanwhile.
        threading.Thread(target=self._run, args=(attempt,), name="models-loader", daemon=True).start()
        return attempt

    def _run(self, attempt: Attempt) -> None:
        try:
            with self.load_lock:
                loaded = self._made(attempt)
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._fail(attempt, error)
        else:
            self._take_over(attempt, loaded)

    def _made(self, attempt: Attempt) -> Loaded:
        """The steps of an attempt: fetch the files, start an engine on them."""
        log.info("model %s: downloading", attempt.model.name)
        self.models_downloading.set()
        try:
            files = attempt.fetch.run(attempt.note_progress)
        finally:
            self.models_downloading.clear()
        log.info("model %s: loading commit %s", attempt.model.name, files.revision)
        attempt.state = LOADING
        engine = self._start_engine(files, attempt.note_part)
        return Loaded(attempt.model, files, engine, time.monotonic() - attempt.began)

    def _take_over(self, attempt: Attempt, loaded: Loaded) -> None:
        with self._guard:
            wanted = self._attempt is attempt  # False: closed meanwhile, and nobody waits any more
            replaced = self._loaded if wanted else loaded
            if wanted:
                self._attempt, self._loaded, self._model = None, loaded, loaded.model
                self._error, self._failed = None, False
                self.models_loaded.set()
            if replaced:
                replaced.retired = True
            unused = replaced is not None and not replaced.users
        if wanted:
            log.info("model %s: ready after %.1f s", loaded.model.name, loaded.seconds)
            attempt.outcome.set_result(loaded)
        if replaced and unused:
            replaced.engine.close()

    def _fail(self, attempt: Attempt, error: Exception) -> None:
        with self._guard:
            if self._attempt is not attempt:  # closed: those who waited know already
                return
            self._attempt, self._error, self._failed = None, error, True
        log.error("model %s: not loaded", attempt.model.name, exc_info=error)
        attempt.outcome.set_exception(error)


def _loaded_status(loaded: Loaded) -> dict[str, object]:
    return {
        "status": READY,
        "model": loaded.model.name,
        "revision": loaded.files.revision,
        "seconds": round(loaded.seconds, 3),
        "engine": loaded.engine.info(),
    }


def _attempt_status(attempt: Attempt) -> dict[str, object]:
    return {
        "status": attempt.state,
        "model": attempt.model.name,
        "revision": attempt.model.stage1.revision,
        "seconds": round(time.monotonic() - attempt.began, 3),
        "download": dict(attempt.progress),
        "loading": attempt.part,
    }


def _stopping() -> EngineError:
    return EngineError("the server is stopping")
