"""The threads that have songs sung: as many together as the engine takes, in the order of the queue.

It knows nothing of how jobs come in, of HTTP, nor of how models are loaded and songs are made.

A job stays queued while the models are loaded for it; where that fails, all that wait for them fail with it.
A song whose engine ended under it is queued once more, ahead of all others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from inference.errors import Cancelled, EngineError, InvalidField
from inference.song import Progress, SongRequest
from serving.jobs import records
from serving.jobs.job import MOST_ATTEMPTS, QUEUED, RUNNING, Job, about, now
from serving.jobs.queue import JobQueue
from serving.jobs.store import JobStore
from serving.models.states import Engine, LoadedModel
from storage import StorageError

log = logging.getLogger(__name__)

AGAIN_SECONDS = 2.0  # between two tries to write that a song begins


class Models(Protocol):
    """Where the engine comes from: a ModelManager."""

    def borrowed(self) -> AbstractContextManager[LoadedModel]:
        """The models, once they are ready, for as long as a song takes."""

    def close(self) -> None:
        """End them; whoever waits gets an error."""


class Dispatcher:
    """Takes jobs from the queue to their end."""

    def __init__(self, models: Models, queue: JobQueue, store: JobStore) -> None:
        self._models, self._queue, self._store = models, queue, store
        self._changed = queue.changed
        self._busy = 0  # dispatchers that have a song, or are about to take one
        self._threads: list[threading.Thread] = []
        queue.on_entry = self._start_threads

    def join(self) -> None:
        """Wait until all threads have ended; the queue is closed, and the models."""
        for thread in self._threads:
            thread.join()

    def _start_threads(self) -> None:
        """A thread for each song that could be sung now, none before there is one. The lock is held."""
        wanted = min(self._queue.estimator.max_songs, self._busy + len(self._queue.waiting))
        while len(self._threads) < wanted and not self._queue.draining:
            thread = threading.Thread(target=self._dispatch, name="jobs-dispatcher", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _dispatch(self) -> None:
        while self._begin():
            try:
                with self._models.borrowed() as loaded:
                    job = self._next(loaded)
                    if job:
                        with about(job):
                            log.info("job %s: running on %s", job.id, job.model)
                            self._run(job, loaded.engine)
            except Exception as error:  # no engine for those who waited for it; later songs try again
                self._fail_queued(error)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _begin(self) -> bool:
        """Wait for a job, and for room in the engine; False once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._queue.draining or (self._queue.may_begin() and self._busy < self._queue.estimator.max_songs)
                )
            )
            if self._queue.draining:
                return False
            self._busy += 1
            return True

    def _next(self, loaded: LoadedModel) -> Job | None:
        """Take the next job out of the queue, unless all were cancelled while the models were loaded."""
        self._queue.expire()
        with self._changed:
            self._queue.estimator.max_songs = loaded.max_songs
            self._start_threads()
            if not self._queue.waiting:
                return None
            job = self._queue.waiting.popleft()
            fits = job.wanted_model in (None, loaded.model.name)  # it may have been replaced while the job waited
            if fits:
                job.model = loaded.model.name
                job.attempts += 1
                job.started_at, job.began = now(), time.monotonic()
                job.state, job.engine = RUNNING, loaded.engine
            self._changed.notify_all()
        if not fits:
            self._queue.finish(job, records.failed(another_model(job.wanted_model, loaded.model.name)))
            return None
        return job

    def _run(self, job: Job, engine: Engine) -> None:
        """Have one song sung, to whatever end."""
        try:
            future = engine.generate(job.id, self._started(job), self._observer(job))
            if job.cancel_requested or not self._queue.has(job):  # it came before the engine knew the song
                engine.cancel(job.id)
            song = future.result()
        except Cancelled as error:
            self._queue.finish(job, records.cancelled(error))
        except Exception as error:  # of any kind: the job must end, and the next one must get its turn
            log.error("job %s", job.id, exc_info=error)
            if not engine.alive and job.cancel_requested:
                self._queue.finish(job, records.cancelled(Cancelled("the song was cancelled, and its engine ended")))
            elif (engine.alive and not self._queue.closed) or not self._queued_again(job):
                self._queue.finish(job, records.failed(error))
        else:
            with self._changed:
                self._queue.estimator.note(time.monotonic() - (job.began or 0.0))
            self._queue.finish(job, records.succeeded(song))

    def _started(self, job: Job) -> SongRequest:
        """What is to be sung, once it is written that the song begins: what is not written cannot be counted.

        Raises Cancelled, and ReferenceLost where the reference audio is lost.
        """
        while not job.cancel_requested and self._queue.has(job):
            try:
                if self._store.start(job):
                    return self._completed(job)
                self._queue.let_go(job)
            except StorageError as error:
                log.warning("job %s: waits to be begun: %s", job.id, error)
            self._queue.wait_until(
                lambda: self._queue.closed or job.cancel_requested or not self._queue.has(job), AGAIN_SECONDS
            )
            if self._queue.closed and self._queue.has(job):
                raise EngineError("the server stopped before the song began")
        raise Cancelled("the song was cancelled before it began")

    def _completed(self, job: Job) -> SongRequest:
        """What is to be sung, with its reference audio, which only the store has while a job waits."""
        if not job.request.reference:
            return job.request
        return records.with_audio(job.request, self._store.reference(job.id))

    def _queued_again(self, job: Job) -> bool:
        """Whether the job, whose engine ended under it, gets its second and last chance, here or elsewhere."""
        with self._changed:
            if not self._queue.has(job) or (not self._queue.draining and job.attempts >= MOST_ATTEMPTS):
                return False
            job.state, job.engine, job.progress = QUEUED, None, None
            self._queue.enter(job, ahead=True)
        log.warning("job %s: queued again", job.id)
        return True

    def _observer(self, job: Job) -> Callable[[Progress], None]:
        def observe(progress: Progress) -> None:
            with self._changed:
                job.progress = progress
                self._changed.notify_all()

        return observe

    def _fail_queued(self, error: Exception) -> None:
        """All that waited for the models hear why they did not come."""
        end = records.cancelled if isinstance(error, Cancelled) else records.failed
        with self._changed:
            waiting = list(self._queue.waiting)
            self._queue.waiting.clear()
        for job in waiting:
            self._queue.finish(job, end(error))
        log.error("no models for the songs that waited, %d of them: %s", len(waiting), error)


def another_model(wanted: str | None, loaded: str) -> InvalidField:
    """One song never makes the server load another model."""
    return InvalidField("model", wanted, f"{loaded}; another model is loaded by download-models first")
