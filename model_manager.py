"""The models' life: fetched, loaded, singing, replaced; one loads, any number wait for it.

It knows nothing of HTTP, and nothing of how weights are fetched or an engine is started: both are passed in.

    not_loaded -> downloading -> loading -> ready, or error

Each attempt runs in a thread of its own and is shared: whoever needs the models meanwhile waits for that attempt and
gets its engine or its error. After an error the next caller starts the next attempt; where engines end by themselves
again and again, only once a pause is over. While one engine sings, another model is fetched; the new engine then takes
over, and the old one is closed behind its last song:

    in main memory   old sings ........................ closed after its song
                         new: fetched, proven, loaded,  takes over
    on a GPU         old sings .............. closed between two songs; started again if the new one fails
                         new: fetched, proven         loaded, takes over
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

from inference import catalog
from inference.catalog import Model, ModelFiles
from inference.errors import DownloadError, EngineCrashed, EngineError, ModelBusy, ServerStopping
from serving.models.states import (
    ERROR,
    LOADING,
    NOT_LOADED,
    READY,
    STABLE_SECONDS,
    Attempt,
    Backoff,
    Counters,
    Engine,
    LastError,
    LoadedModel,
    MakeFetch,
    StartEngine,
    cancelled,
)

log = logging.getLogger(__name__)

WAITED_FOR_SECONDS = 10.0  # a pause that songs wait out; for a longer one they are refused, and may go elsewhere


class ModelManager:
    """Which model is here, and how to get it here. Every method may be called from any thread."""

    def __init__(
        self,
        model: Model,
        fetch: MakeFetch,
        start_engine: StartEngine,
        clock: Callable[[], float] = time.monotonic,
        has_gpu: bool = True,
    ) -> None:
        self.models_loaded = threading.Event()
        self.models_downloading = threading.Event()
        self.load_lock = threading.Lock()  # held while files are fetched and an engine starts
        self._fetch = fetch
        self._start_engine = start_engine
        self._has_gpu = has_gpu
        # Guards the fields below, held for moments only; notified when a song leaves its engine or an attempt ends.
        self._guard = threading.Condition(threading.Lock())
        self._model = model
        self._loaded: LoadedModel | None = None
        self._attempt: Attempt | None = None
        self._last_error: LastError | None = None  # of the last attempt, or of an engine that ended
        self._unloaded = NOT_LOADED  # the status while nothing is loaded or being loaded
        self._engine_ended = False  # by itself, and nothing was begun since
        self._clock = clock
        self._backoff = Backoff(clock)  # since an engine sang for long
        self._stopping = False
        self.counters = Counters()

    @property
    def model(self) -> Model:
        """The model that the next song will be sung by, as far as is known now."""
        with self._guard:
            if self._attempt and not self._living():
                return self._attempt.model
            return self._model

    @property
    def crash_loop(self) -> bool:
        """Whether so many engines ended by themselves, one after the other, that the next most likely will."""
        with self._guard:
            return self._backoff.crash_loop

    @property
    def refuses_songs(self) -> bool:
        """Whether songs are refused for now, because engines end by themselves again and again."""
        with self._guard:
            return not self._living() and not self._attempt and self._pause_s() > WAITED_FOR_SECONDS

    def ensure_models_available(self) -> Engine:
        """The engine, once it is ready. Raises the YueError of the attempt that it waited for.

        Where engines end by themselves again and again, a short pause is waited out; a longer one raises EngineCrashed.
        """
        return self._ensure().engine

    def start(self) -> None:
        """Begin to make the models ready, in the background."""
        with self._guard:
            if not self._living() and not self._attempt:
                self._begin(self._model)

    def recover(self) -> None:
        """Begin again where an engine ended by itself or an attempt failed, each time in a row after a longer pause.

        What was cancelled waits for somebody who asks.
        """
        with self._guard:
            if self._living() or self._attempt or self._stopping:
                return
            if (self._engine_ended or self._unloaded == ERROR) and not self._backoff.seconds_left:
                self._begin(self._model)

    def load(
        self, model: str | None = None, revision: str | None = None, force: bool = False, at_once: bool = True
    ) -> Future[LoadedModel]:
        """Have that model ready (None: the one that is set up). The future may be done already.

        `force` proves its files, fetches again what is not right, and loads anew. A second call for the same model
        joins the first, whatever it forces. Raises UnknownModel, and ModelBusy while another one is being loaded.
        Where not `at_once`, the pause of songs after engines' ends counts too: raises EngineCrashed.
        """
        with self._guard:
            named = bool(model or revision)
            wanted = catalog.find(model or self._model.name, revision) if named else self._model
            loaded, attempt = self._living(), self._attempt
            if attempt and named and attempt.model != wanted:
                raise ModelBusy(
                    f"model {attempt.model.name} is being loaded; ask for {wanted.name} when that is done or cancelled"
                )
            if loaded and not attempt and loaded.model == wanted and not force:
                self._last_error = None
                ready: Future[LoadedModel] = Future()
                ready.set_result(loaded)
                return ready
            if not attempt and not at_once and (pause_s := self._pause_s()):
                raise self._crashed(pause_s)
            return (attempt or self._begin(wanted, force)).outcome

    def cancel(self) -> Model | None:
        """End what is being fetched or loaded, and name it; who waits for it gets Cancelled. None: nothing is."""
        with self._guard:
            attempt = self._attempt
            if attempt is None:
                return None
            log.info("model %s: cancelled", attempt.model.name)
            self._end(attempt, cancelled(attempt.model), NOT_LOADED)
        attempt.fetch.cancel()
        return attempt.model

    @contextmanager
    def borrowed(self) -> Iterator[LoadedModel]:
        """The models for as long as a song takes: an engine that is replaced meanwhile is closed after it."""
        loaded = self._borrow()
        try:
            yield loaded
        finally:
            with self._guard:
                loaded.users -= 1
                unused = loaded.retired and not loaded.users and self._loaded is not loaded
                self._guard.notify_all()
            if unused:
                loaded.engine.close()

    def status(self) -> dict[str, object]:
        """Where the models are; all that /models/status shows."""
        return {**self._state(), "gpu": self._has_gpu}

    def _state(self) -> dict[str, object]:
        with self._guard:
            loaded, attempt = self._living(), self._attempt
            unloaded, model = self._unloaded, self._model
            troubles = self._troubles(loaded)
        if loaded:
            next_model = {"next": attempt.status()} if attempt else {}
            return {**loaded.status(), **next_model, **troubles}
        if attempt:
            return {**attempt.status(), **troubles}
        return {"status": unloaded, "model": model.name, "revision": model.stage1.revision, **troubles}

    def snapshot(self) -> tuple[str, LoadedModel | None, Attempt | None]:
        """The state, what is loaded and lives, and what is on its way, as they are this instant.

        It waits for no lock and looks after nothing: `status` does.
        """
        loaded, attempt = self._loaded, self._attempt
        if loaded and loaded.engine.alive:
            return READY, loaded, attempt
        return attempt.state if attempt else self._unloaded, None, attempt

    def stop(self) -> None:
        """Load nothing any more, now or later; an engine that is here sings on. Who waits gets ServerStopping."""
        with self._guard:
            self._stopping = True
            attempt = self._attempt
            if attempt:
                self._end(attempt, ServerStopping(), NOT_LOADED)
            self._guard.notify_all()
        if attempt:
            attempt.fetch.cancel()

    def close(self) -> None:
        """End the download and the engine. Those who wait get ServerStopping."""
        self.stop()
        with self._guard:
            loaded, self._loaded = self._loaded, None
            self.models_loaded.clear()
        if loaded:
            loaded.engine.close()

    def _ensure(self) -> LoadedModel:
        while True:
            with self._guard:
                loaded = self._living()
                if loaded and not loaded.retired:
                    return loaded
                if not self._attempt and self._rested():
                    continue
                attempt = self._attempt or self._begin(self._model)
            error = attempt.outcome.exception()
            if error is None:
                return attempt.outcome.result()
            with self._guard:
                sings_on = self._living() or (self._attempt and self._attempt.restores)
            if not sings_on:  # else the old model is here still, or again
                raise error

    def _rested(self) -> bool:
        """Wait out some of a short pause after an engine's end; False where there is none. The guard is held.

        Raises EngineCrashed where the pause is long.
        """
        pause_s = self._pause_s()
        if not pause_s or self._stopping:
            return False
        if pause_s > WAITED_FOR_SECONDS:
            raise self._crashed(pause_s)
        self._guard.wait(pause_s)  # or until somebody asked for the models, or the server stops
        return True

    def _crashed(self, pause_s: float) -> EngineCrashed:
        """Why no engine is started for so long. The guard is held."""
        return EngineCrashed(self._backoff.crashes, str(self._last_error and self._last_error.error), pause_s)

    def _pause_s(self) -> float:
        """How long songs must not start an engine. Other failures cost little; songs try again at once. Guard held."""
        crashed = self._backoff.crashes and self._last_error and isinstance(self._last_error.error, EngineError)
        return self._backoff.seconds_left if crashed else 0.0

    def _troubles(self, loaded: LoadedModel | None) -> dict[str, object]:
        """What went wrong, as `status` shows it. The guard is held."""
        sound = loaded is not None and self._clock() - loaded.ready_at > STABLE_SECONDS
        waiting = not loaded and not self._attempt and self._backoff.crashes
        return {
            "last_error": self._last_error.as_dict() if self._last_error else None,
            "crashes": 0 if sound else self._backoff.crashes,
            "next_try_seconds": round(self._pause_s(), 1) if waiting else None,
        }

    def _borrow(self) -> LoadedModel:
        while True:
            loaded = self._ensure()
            with self._guard:
                if not loaded.retired:  # else it was replaced in between
                    loaded.users += 1
                    return loaded

    def _living(self) -> LoadedModel | None:
        """What is loaded, if its engine still lives. The guard is held."""
        if self._loaded and not self._loaded.engine.alive:
            # Its pipe and process id are given back; even that may take a moment, for which nobody who asks waits.
            threading.Thread(target=self._loaded.engine.close, name="engine-closer", daemon=True).start()
            ended = EngineError(f"the engine's process ended by itself: it {self._loaded.engine.ending}")
            self._last_error = LastError(ended, self._loaded.model)
            self._backoff.engine_ended(self._loaded.ready_at)
            self.counters.engine_crashes += 1
            self._loaded, self._engine_ended = None, True
            self._unloaded = ERROR if self._backoff.crash_loop else NOT_LOADED
            self.models_loaded.clear()
            log.warning("%s; %d in a row", ended, self._backoff.crashes)
        return self._loaded

    def _begin(self, model: Model, force: bool = False) -> Attempt:
        """A new attempt. The guard is held."""
        if self._stopping:
            raise ServerStopping
        return self._run_aside(Attempt(model, self._fetch(model, force)))

    def _run_aside(self, attempt: Attempt) -> Attempt:
        """Start an attempt. The guard is held."""
        assert self._attempt is None, "one attempt at a time"
        self._attempt, self._engine_ended = attempt, False
        # A daemon, because an engine's start cannot be interrupted: the process must be able to end meanwhile.
        threading.Thread(target=self._run, args=(attempt,), name="models-loader", daemon=True).start()
        self._guard.notify_all()  # who waits for a pause to end now waits for this
        return attempt

    def _run(self, attempt: Attempt) -> None:
        with self.load_lock:
            try:
                loaded = self._made(attempt)
            except Exception as error:  # whatever it is, those who wait must hear of it
                self._fail(attempt, error)
            else:
                self._take_over(attempt, loaded)

    def _made(self, attempt: Attempt) -> LoadedModel:
        """The steps of an attempt: fetch the files, start an engine on them."""
        log.info("model %s: downloading", attempt.model.name)
        self.models_downloading.set()
        try:
            files = attempt.fetch.run(attempt.note_progress)
        finally:
            self.models_downloading.clear()
        log.info("model %s: loading commit %s", attempt.model.name, files.revision)
        attempt.state = LOADING
        self._make_room(attempt)
        engine = self._start_engine(files, attempt.note_part)
        return LoadedModel(attempt.model, files, engine, time.monotonic() - attempt.began, self._clock())

    def _make_room(self, attempt: Attempt) -> None:
        """Close the old engine, between two songs, where a GPU's memory may not hold both."""
        with self._guard:
            old = self._living()
            if old is None or old.engine.info().get("memory_bytes") is None:
                return
            attempt.note_part("waiting for the song that is being sung")
            old.retired, attempt.displaced = True, old
            self._guard.wait_for(lambda: attempt.ended or not old.users)
            attempt.note_part("making room")
            self._loaded = None
            self.models_loaded.clear()
        log.info("model %s: makes room", old.model.name)
        old.engine.close()

    def _take_over(self, attempt: Attempt, loaded: LoadedModel) -> None:
        with self._guard:
            self.counters.engine_starts += 1
            wanted = not attempt.ended  # else cancelled or closed meanwhile, and nobody waits any more
            replaced = self._loaded if wanted else loaded
            if wanted:
                attempt.ended = True
                if loaded.model != self._model:
                    self._backoff.forget()  # they were another model's
                self._attempt, self._loaded, self._model = None, loaded, loaded.model
                self._last_error = self._last_error if attempt.restores else None
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
            if attempt.ended:  # cancelled or closed: those who waited know already
                return
            unforeseen = None if isinstance(error, DownloadError) else error  # whose words say it all
            log.error("model %s: not loaded: %s", attempt.model.name, error, exc_info=unforeseen)
            self.counters.failed_attempts += 1
            self._backoff.attempt_failed(isinstance(error, EngineError) and attempt.model == self._model)
            self._end(attempt, error, ERROR)

    def _end(self, attempt: Attempt, error: Exception, unloaded: str) -> None:
        """End an attempt without an engine; what had to make room for it sings again. The guard is held."""
        attempt.ended = True
        self._attempt, self._last_error, self._unloaded = None, LastError(error, attempt.model), unloaded
        old = attempt.displaced
        if old and self._loaded is old:
            old.retired = False
        elif old and not self._stopping:
            self._run_aside(Attempt(old.model, _Here(old.files), restores=True))
        self._guard.notify_all()
        attempt.outcome.set_exception(error)


class _Here:
    """The fetching of files that are here already."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> ModelFiles:
        return self._files

    def cancel(self) -> None:
        """Nothing runs."""
