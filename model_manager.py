"""The lifecycle of models: download, load, use, replace. One attempt runs at a time, and all callers share it.

Independent of HTTP, and of how weights are fetched and an engine is started: both are arguments.

    not_loaded -> downloading -> loading -> ready, or error

Each attempt runs in its own thread. Callers that need the models meanwhile wait for it, and get its engine or its
error. After an error the next caller starts the next attempt; if engines crash repeatedly, only after a pause. While
one engine runs songs, another model is fetched; the new engine then replaces it, and the old one is closed after its
last song:

    in main memory   old runs ........................ closed after its song
                         new: fetched, verified, loaded, takes over
    on a GPU         old runs .............. closed between two songs; started again if the new one fails
                         new: fetched, verified       loaded, takes over
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

WAITED_FOR_SECONDS = 10.0  # the longest pause that songs wait for; in a longer one they are refused


class ModelManager:
    """The model of this server, and the attempts to load it. Every method may be called from any thread."""

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
        # Guards the fields below, held briefly; notified when a song leaves its engine or an attempt ends.
        self._guard = threading.Condition(threading.Lock())
        self._model = model
        self._loaded: LoadedModel | None = None
        self._attempt: Attempt | None = None
        self._last_error: LastError | None = None  # of the last attempt, or of an engine that ended
        self._unloaded = NOT_LOADED  # the status while nothing is loaded or being loaded
        self._engine_ended = False  # by itself, and no attempt was started since
        self._clock = clock
        self._backoff = Backoff(clock)  # since an engine ran for long
        self._stopping = False
        self.counters = Counters()

    @property
    def model(self) -> Model:
        """The model of the next song, as far as is known now."""
        with self._guard:
            if self._attempt and not self._living():
                return self._attempt.model
            return self._model

    @property
    def crash_loop(self) -> bool:
        """True if so many engines in a row ended by themselves that the next probably will."""
        with self._guard:
            return self._backoff.crash_loop

    @property
    def refuses_songs(self) -> bool:
        """True while songs are refused because engines crash repeatedly."""
        with self._guard:
            return not self._living() and not self._attempt and self._pause_s() > WAITED_FOR_SECONDS

    def ensure_models_available(self) -> Engine:
        """Wait for the engine. Raises the YueError of the attempt that it waited for.

        If engines crash repeatedly, it waits for the end of a short pause; a longer one raises EngineCrashed.
        """
        return self._ensure().engine

    def start(self) -> None:
        """Start to load the models, in the background."""
        with self._guard:
            if not self._living() and not self._attempt:
                self._begin(self._model)

    def recover(self) -> None:
        """Start again after an engine ended by itself or an attempt failed, each time in a row after a longer pause.

        A cancelled attempt is repeated only on request.
        """
        with self._guard:
            if self._living() or self._attempt or self._stopping:
                return
            if (self._engine_ended or self._unloaded == ERROR) and not self._backoff.seconds_left:
                self._begin(self._model)

    def load(
        self, model: str | None = None, revision: str | None = None, force: bool = False, at_once: bool = True
    ) -> Future[LoadedModel]:
        """Load that model (None: the configured one). The future may be done already.

        `force` verifies its files, fetches damaged ones again, and reloads. A second call for the same model joins the
        first, whatever its `force`. Raises UnknownModel, and ModelBusy while another model is being loaded. If not
        `at_once`, it observes the pause after crashes as songs do, and raises EngineCrashed.
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
        """Cancel the current attempt and return its model; its waiters get Cancelled. None: there is no attempt."""
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
        """The models for the duration of a song: an engine that is replaced meanwhile is closed after it."""
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
        """The state of the models, as /models/status shows it."""
        with self._guard:
            loaded, attempt = self._living(), self._attempt
            unloaded, model = self._unloaded, self._model
            troubles = self._troubles(loaded)
        state: dict[str, object] = {"status": unloaded, "model": model.name, "revision": model.stage1.revision}
        if loaded:
            state = {**loaded.status(), **({"next": attempt.status()} if attempt else {})}
        elif attempt:
            state = attempt.status()
        return {**state, **troubles, "gpu": self._has_gpu}

    def snapshot(self) -> tuple[str, LoadedModel | None, Attempt | None]:
        """The current state, the loaded model if its engine is alive, and the current attempt.

        It takes no lock and handles no ended engine: `status` does.
        """
        loaded, attempt = self._loaded, self._attempt
        if loaded and loaded.engine.alive:
            return READY, loaded, attempt
        return attempt.state if attempt else self._unloaded, None, attempt

    def stop(self) -> None:
        """Load no models any more; a loaded engine stays. Waiters get ServerStopping."""
        with self._guard:
            self._stopping = True
            attempt = self._attempt
            if attempt:
                self._end(attempt, ServerStopping(), NOT_LOADED)
            self._guard.notify_all()
        if attempt:
            attempt.fetch.cancel()

    def close(self) -> None:
        """End the download and the engine. Waiters get ServerStopping."""
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
                still_served = self._living() or (self._attempt and self._attempt.restores)
            if not still_served:  # otherwise the old model is still there, or again
                raise error

    def _rested(self) -> bool:
        """Wait for part of a short pause after a crash; return False if there is none. The guard is held.

        Raises EngineCrashed if the pause is long.
        """
        pause_s = self._pause_s()
        if not pause_s or self._stopping:
            return False
        if pause_s > WAITED_FOR_SECONDS:
            raise self._crashed(pause_s)
        self._guard.wait(pause_s)  # or until the models are requested, or the server stops
        return True

    def _crashed(self, pause_s: float) -> EngineCrashed:
        """The error for a pause of so long. The guard is held."""
        return EngineCrashed(self._backoff.crashes, str(self._last_error and self._last_error.error), pause_s)

    def _pause_s(self) -> float:
        """The pause in which songs must not start an engine; only crashes cause one. The guard is held."""
        crashed = self._backoff.crashes and self._last_error and isinstance(self._last_error.error, EngineError)
        return self._backoff.seconds_left if crashed else 0.0

    def _troubles(self, loaded: LoadedModel | None) -> dict[str, object]:
        """The last errors, as `status` shows them. The guard is held."""
        stable = loaded is not None and self._clock() - loaded.ready_at > STABLE_SECONDS
        waiting = not loaded and not self._attempt and self._backoff.crashes
        return {
            "last_error": self._last_error.as_dict() if self._last_error else None,
            "crashes": 0 if stable else self._backoff.crashes,
            "next_try_seconds": round(self._pause_s(), 1) if waiting else None,
        }

    def _borrow(self) -> LoadedModel:
        while True:
            loaded = self._ensure()
            with self._guard:
                if not loaded.retired:  # otherwise it was replaced in between
                    loaded.users += 1
                    return loaded

    def _living(self) -> LoadedModel | None:
        """The loaded model, if its engine is alive. The guard is held."""
        if self._loaded and not self._loaded.engine.alive:
            # Closing frees its pipe and process id; that may take a moment, for which no caller waits.
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
        """Start a new attempt. The guard is held."""
        if self._stopping:
            raise ServerStopping
        return self._run_aside(Attempt(model, self._fetch(model, force)))

    def _run_aside(self, attempt: Attempt) -> Attempt:
        """Start an attempt. The guard is held."""
        assert self._attempt is None, "one attempt at a time"
        self._attempt, self._engine_ended = attempt, False
        # A daemon, because an engine's start cannot be interrupted: the process must be able to end meanwhile.
        threading.Thread(target=self._run, args=(attempt,), name="models-loader", daemon=True).start()
        self._guard.notify_all()  # callers that waited for a pause now wait for this
        return attempt

    def _run(self, attempt: Attempt) -> None:
        with self.load_lock:
            try:
                loaded = self._made(attempt)
            except Exception as error:  # whatever it is, the waiters must get it
                self._fail(attempt, error)
            else:
                self._take_over(attempt, loaded)

    def _made(self, attempt: Attempt) -> LoadedModel:
        """The steps of an attempt: fetch the files, start an engine with them."""
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
        """Close the old engine, between two songs, if the memory of a GPU may not hold both."""
        with self._guard:
            old = self._living()
            if old is None or old.engine.info().get("memory_bytes") is None:
                return
            attempt.note_part("waiting for the running song")
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
            wanted = not attempt.ended  # otherwise it was cancelled or closed, and has no waiters
            replaced = self._loaded if wanted else loaded
            if wanted:
                attempt.ended = True
                if loaded.model != self._model:
                    self._backoff.forget()  # those of another model
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
            if attempt.ended:  # cancelled or closed: the waiters have their answer
                return
            unforeseen = None if isinstance(error, DownloadError) else error  # whose message says it all
            log.error("model %s: not loaded: %s", attempt.model.name, error, exc_info=unforeseen)
            self.counters.failed_attempts += 1
            self._backoff.attempt_failed(isinstance(error, EngineError) and attempt.model == self._model)
            self._end(attempt, error, ERROR)

    def _end(self, attempt: Attempt, error: Exception, unloaded: str) -> None:
        """End an attempt without an engine, and restore the one that made room for it. The guard is held."""
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
    """A fetch of files that are already there."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> ModelFiles:
        return self._files

    def cancel(self) -> None:
        """Nothing runs."""
