"""The threads that run jobs: as many songs at once as the engine takes, in the order of the queue.

A job stays queued while the models load. If loading fails, all waiting jobs fail. A song whose engine process ended is
queued once more, ahead of all others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from inference.errors import Cancelled, EngineError
from inference.song import Progress, Song, SongRequest
from serving.jobs import records
from serving.jobs.job import Job, about
from serving.jobs.part_writer import PartWriter
from serving.jobs.queue import JobQueue
from serving.jobs.store import JobStore
from serving.models.states import Engine, LoadedModel
from storage import StorageError

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0  # between two attempts to store the start of a song
PARTS_SECONDS = 10.0  # that the end of a song waits for its last parts to be stored


class Models(Protocol):
    """The source of the engine: a ModelManager."""

    def borrowed(self) -> AbstractContextManager[LoadedModel]:
        """Wait for the models and lend them for one song."""

    def close(self) -> None:
        """Close the models. Callers that wait get an error."""


class Dispatcher:
    """Runs the jobs of the queue. The steps of one song are `begin` and `end`."""

    def __init__(self, models: Models, queue: JobQueue, store: JobStore) -> None:
        self._models, self._queue, self._store = models, queue, store
        self._threads: list[threading.Thread] = []
        self._writers: dict[str, PartWriter] = {}  # of the running songs, by job id
        queue.on_demand = self._start_threads

    def join(self) -> None:
        """Wait until all threads have ended, after the queue and the models are closed."""
        for thread in self._threads:
            thread.join()

    def begin(self, job: Job, engine: Engine) -> Future[Song] | None:
        """Store that the song starts, so that its attempts can be counted, and pass it to the engine.

        Return None if the job has ended instead. Raises StorageError, after which it may be called again.
        """
        try:
            if job.cancel_requested or not self._is_started(job):
                raise Cancelled("the song was cancelled before it started")
            writer = self._writers[job.id] = PartWriter(job, self._queue, self._store)
            future = engine.generate(job.id, self._completed(job), self._observer(job), writer.put)
            if job.listened:
                engine.listen(job.id)
            if job.cancel_requested or not self._queue.has(job):  # cancelled before the engine knew the song
                engine.cancel(job.id)
            return future
        except StorageError:
            raise
        except Exception as error:
            self._fail(job, engine, error)
            return None

    def end(self, job: Job, engine: Engine, future: Future[Song]) -> None:
        """Wait for the song, then finish the job or queue it again."""
        try:
            song = future.result()
        except Exception as error:  # of any kind: the job must end, and the next one must run
            self._fail(job, engine, error)
        else:
            self._queue.finish(job, records.succeeded(self._with_stored_parts(job, song)))

    def _start_threads(self, songs: int) -> None:
        """Start a thread for each song that could run now. The caller holds the queue's lock."""
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
            except Exception as error:  # no engine for the waiting jobs; later songs try again
                ended = records.cancelled if isinstance(error, Cancelled) else records.failed
                count = self._queue.finish_waiting(ended(error))
                log.error("no models are available; ended %d queued jobs: %s", count, error)
            finally:
                self._queue.free_slot()

    def _run(self, job: Job, engine: Engine) -> None:
        """Run one job until it ends or is queued again."""
        while True:
            try:
                future = self.begin(job, engine)
                break
            except StorageError as error:
                log.warning("job %s: cannot start yet: %s", job.id, error)
            self._queue.wait_until(
                lambda: self._queue.closed or job.cancel_requested or not self._queue.has(job), RETRY_SECONDS
            )
            if self._queue.closed and self._queue.has(job):
                self._fail(job, engine, EngineError("the server stopped before the song started"))
                return
        if future:
            self.end(job, engine, future)

    def _is_started(self, job: Job) -> bool:
        """Store that the song starts. Return False if another server has taken the job. Raises StorageError."""
        if not self._queue.has(job):
            return False
        if self._store.start(job):
            return True
        self._queue.let_go(job)
        return False

    def _completed(self, job: Job) -> SongRequest:
        """Return the request with its reference audio, read from the storage. Raises ReferenceLost."""
        if not job.request.reference:
            return job.request
        return records.with_audio(job.request, self._store.reference(job.id))

    def _observer(self, job: Job) -> Callable[[Progress], None]:
        return lambda progress: self._queue.note_progress(job, progress)

    def _with_stored_parts(self, job: Job, song: Song) -> Song:
        """The song with the number of its parts if all of them are stored, else with none: it cannot be streamed."""
        writer = self._writers.pop(job.id, None)
        complete = (writer.close(PARTS_SECONDS) if writer else 0) == song.parts
        job.playable_seconds = song.duration_seconds if complete and song.parts else 0.0
        self._queue.note_progress(job)
        return song if complete else replace(song, parts=0)

    def _fail(self, job: Job, engine: Engine, error: Exception) -> None:
        """End the job without a song, or queue it again if only its engine process ended."""
        if writer := self._writers.pop(job.id, None):
            writer.close(PARTS_SECONDS, discard=True)
        if isinstance(error, Cancelled):
            self._queue.finish(job, records.cancelled(error))
            return
        log.error("job %s", job.id, exc_info=error)
        if not engine.alive and job.cancel_requested:
            self._queue.finish(job, records.cancelled(Cancelled("the song was cancelled, and its engine ended")))
        elif (engine.alive and not self._queue.closed) or not self._queue.requeue(job):
            self._queue.finish(job, records.failed(error))
