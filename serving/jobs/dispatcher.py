"""The threads that run jobs: as many songs together as the engine takes, in the order of the queue.

Independent of HTTP, of how jobs come in, and of how models are loaded and songs generated.

A job stays queued while the models are loaded for it; where that fails, all jobs that wait for them fail with it.
A song whose engine ended under it is queued once more, ahead of all others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol

from inference.errors import Cancelled, EngineError
from inference.song import Progress, Song, SongRequest
from serving.jobs import records
from serving.jobs.job import Job, about
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
    """Takes jobs from the queue to their end. The steps of one song are `begin` and `end`."""

    def __init__(self, models: Models, queue: JobQueue, store: JobStore) -> None:
        self._models, self._queue, self._store = models, queue, store
        self._threads: list[threading.Thread] = []
        queue.on_demand = self._start_threads

    def join(self) -> None:
        """Wait until all threads have ended; the queue is closed, and the models."""
        for thread in self._threads:
            thread.join()

    def begin(self, job: Job, engine: Engine) -> Future[Song] | None:
        """Write that the song begins, since what is not written cannot be counted, and give it to the engine.

        None where the job has ended instead. Raises StorageError, after which it may be called again.
        """
        try:
            if job.cancel_requested or not self._is_started(job):
                raise Cancelled("the song was cancelled before it began")
            future = engine.generate(job.id, self._completed(job), self._observer(job))
            if job.cancel_requested or not self._queue.has(job):  # it came before the engine knew the song
                engine.cancel(job.id)
            return future
        except StorageError:
            raise
        except Exception as error:
            self._fail(job, engine, error)
            return None

    def end(self, job: Job, engine: Engine, future: Future[Song]) -> None:
        """Bring the job to its end, or back into the queue, once the engine has generated the song."""
        try:
            song = future.result()
        except Exception as error:  # of any kind: the job must end, and the next one must get its turn
            self._fail(job, engine, error)
        else:
            self._queue.finish(job, records.succeeded(song))

    def _start_threads(self, songs: int) -> None:
        """A thread for each song that could run now, none before there is one. The queue's lock is held."""
        while len(self._threads) < songs:
            thread = threading.Thread(target=self._dispatch, name="jobs-dispatcher", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _dispatch(self) -> None:
        while self._queue.take_slot():
            try:
                with self._models.borrowed() as loaded:
                    job = self._queue.start_next(loaded)
                    if job:
                        with about(job):
                            log.info("job %s: running on %s", job.id, job.model)
                            self._run(job, loaded.engine)
            except Exception as error:  # no engine for those who waited for it; later songs try again
                ended = records.cancelled if isinstance(error, Cancelled) else records.failed
                count = self._queue.finish_waiting(ended(error))
                log.error("no models for the songs that waited, %d of them: %s", count, error)
            finally:
                self._queue.free_slot()

    def _run(self, job: Job, engine: Engine) -> None:
        """Run one job, to whatever end."""
        while True:
            try:
                future = self.begin(job, engine)
                break
            except StorageError as error:
                log.warning("job %s: cannot begin yet: %s", job.id, error)
            self._queue.wait_until(
                lambda: self._queue.closed or job.cancel_requested or not self._queue.has(job), AGAIN_SECONDS
            )
            if self._queue.closed and self._queue.has(job):
                self._fail(job, engine, EngineError("the server stopped before the song began"))
                return
        if future:
            self.end(job, engine, future)

    def _is_started(self, job: Job) -> bool:
        """True once it is written that the song begins, False if the job is another server's. Raises StorageError."""
        if not self._queue.has(job):
            return False
        if self._store.start(job):
            return True
        self._queue.let_go(job)
        return False

    def _completed(self, job: Job) -> SongRequest:
        """The request with its reference audio, which only the store has while a job waits. Raises ReferenceLost."""
        if not job.request.reference:
            return job.request
        return records.with_audio(job.request, self._store.reference(job.id))

    def _observer(self, job: Job) -> Callable[[Progress], None]:
        return lambda progress: self._queue.note_progress(job, progress)

    def _fail(self, job: Job, engine: Engine, error: Exception) -> None:
        """End the job without a song, or queue it again where only its engine ended."""
        if isinstance(error, Cancelled):
            self._queue.finish(job, records.cancelled(error))
            return
        log.error("job %s", job.id, exc_info=error)
        if not engine.alive and job.cancel_requested:
            self._queue.finish(job, records.cancelled(Cancelled("the song was cancelled, and its engine ended")))
        elif (engine.alive and not self._queue.closed) or not self._queue.requeue(job):
            self._queue.finish(job, records.failed(error))
