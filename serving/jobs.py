"""Songs as jobs: a bounded queue, as many sung together as the engine takes, found again and cancelled by id.

It knows nothing of HTTP, nor of how models are loaded or songs are made.

    queued -> running -> succeeded | failed | cancelled

A job stays queued while the models are loaded for it; where that fails, all that wait for them fail with it.
A song whose engine ended under it is queued once more, ahead of all others.
Jobs live in memory; the oldest finished ones make room.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from inference.errors import Cancelled, EngineError, InvalidField
from inference.song import Progress, Song, SongRequest
from model_states import Engine, Loaded
from serving.problems import conflict, not_found, queue_full, stopping

log = logging.getLogger(__name__)

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
FINISHED = (SUCCEEDED, FAILED, CANCELLED)
MOST_ATTEMPTS = 2  # a song that ends its engine twice is likely the reason
KEPT_JOBS = 1_000
KEPT_BYTES = 512 * 1024 * 1024


class Models(Protocol):
    """Where the engine comes from: a ModelManager."""

    def borrowed(self) -> AbstractContextManager[Loaded]:
        """The models, once they are ready, for as long as a song takes."""

    def close(self) -> None:
        """End them; whoever waits gets an error."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(eq=False)
class Job:
    """One song on its way. Only Jobs changes it; `state` is always set last, so that what it promises is there."""

    request: SongRequest
    model: str
    warnings: tuple[str, ...] = ()
    request_id: str | None = None
    fingerprint: str = ""
    wanted_model: str | None = None  # no other may sing it
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = QUEUED
    progress: Progress | None = None
    song: Song | None = None
    error: Exception | None = None
    cancel_requested: bool = False
    created_at: datetime = field(default_factory=_now)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    engine: Engine | None = None  # while the song is in it
    attempts: int = 0  # how often it was begun

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINISHED

    @property
    def size_bytes(self) -> int:
        """The memory that its audio takes."""
        return sum(map(len, self.song.audio.values())) if self.song else 0


class Jobs:
    """All the jobs, and the threads that have them sung. Every method may be called from any thread."""

    def __init__(
        self, models: Models, max_queue: int, kept_jobs: int = KEPT_JOBS, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._models = models
        self._max_queue, self._kept_jobs, self._kept_bytes = max_queue, kept_jobs, kept_bytes
        self._changed = threading.Condition()  # guards everything below, and is notified with every change
        self._jobs: dict[str, Job] = {}  # in the order they came
        self._ids: dict[str, str] = {}  # request id -> job id
        self._queue: deque[Job] = deque()
        self._closed = False
        self._capacity = 1  # songs that the engine sings together, as far as is known
        self._busy = 0  # dispatchers that have a song, or are about to take one
        self._dispatchers: list[threading.Thread] = []

    def submit(self, job: Job) -> Job:
        """Queue a job; one with the same request id that is here already is returned instead.

        Raises Problem: the queue is full, the request id belongs to another request, or the server is stopping.
        """
        with self._changed:
            known = self._known(job)
            if known:
                return known
            if self._closed:
                raise stopping()
            if len(self._queue) >= self._max_queue:
                raise queue_full(self._max_queue)
            self._jobs[job.id] = job
            if job.request_id:
                self._ids[job.request_id] = job.id
            self._queue.append(job)
            self._start_dispatchers()
            self._changed.notify_all()
        log.info("job %s: queued", job.id)
        return job

    def get(self, job_id: str) -> Job:
        """That job. Raises Problem where there is none."""
        with self._changed:
            if job_id not in self._jobs:
                raise not_found(f"no job {job_id!r} is here; finished ones are forgotten in time", job_id=job_id)
            return self._jobs[job_id]

    def list(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return list(reversed(self._jobs.values()))

    def wait(self, job: Job, seconds: float) -> bool:
        """Wait until the job is finished, so long at most; whether it is."""
        return self.wait_until(lambda: job.finished, seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a change makes `condition` true, so long at most; whether it is."""
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once while it is queued, soon while it is sung. A finished one stays as it is."""
        job = self.get(job_id)
        with self._changed:
            if not job.finished:
                job.cancel_requested = True
            if job.state == QUEUED:
                self._queue.remove(job)
                self._finish(job, CANCELLED, error=Cancelled("the song was cancelled before it began"))
            engine = job.engine
        if engine:
            engine.cancel(job.id)  # by its id, so that it can never reach the next song
        return job

    def close(self) -> None:
        """Take no more songs, end those that are here, the models with them, and the threads."""
        with self._changed:
            self._closed = True
            while self._queue:
                self._finish(
                    self._queue.popleft(), FAILED, error=EngineError("the server stopped before the song began")
                )
            self._changed.notify_all()
        self._models.close()  # which is what wakes a dispatcher that waits for an engine
        for dispatcher in self._dispatchers:
            dispatcher.join()

    def _known(self, job: Job) -> Job | None:
        known = self._jobs.get(self._ids.get(job.request_id or "", ""))
        if known and known.fingerprint != job.fingerprint:
            detail = f"request_id {job.request_id!r} belongs to another request; a new request needs a new request_id"
            raise conflict(detail, field="request_id", job_id=known.id)
        return known

    def _start_dispatchers(self) -> None:
        """A thread for each song that could be sung now, none before there is one. The lock is held."""
        wanted = min(self._capacity, self._busy + len(self._queue))
        while len(self._dispatchers) < wanted and not self._closed:
            dispatcher = threading.Thread(target=self._dispatch, name="jobs-dispatcher", daemon=True)
            self._dispatchers.append(dispatcher)
            dispatcher.start()

    def _dispatch(self) -> None:
        while self._begin():
            try:
                with self._models.borrowed() as loaded:
                    job = self._next(loaded)
                    if job:
                        self._sing(job, loaded.engine)
            except Exception as error:  # no engine for those who waited for it; later songs try again
                self._fail_queued(error)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _begin(self) -> bool:
        """Wait for a job, and for room in the engine; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._queue and self._busy < self._capacity))
            if self._closed:
                return False
            self._busy += 1
            return True

    def _next(self, loaded: Loaded) -> Job | None:
        """Take the next job out of the queue, unless all were cancelled while the models were loaded."""
        with self._changed:
            self._capacity = loaded.max_songs
            self._start_dispatchers()
            if not self._queue:
                return None
            job = self._queue.popleft()
            if job.wanted_model and job.wanted_model != loaded.model.name:  # it was replaced while the job waited
                self._finish(job, FAILED, error=another_model(job.wanted_model, loaded.model.name))
                return None
            job.model = loaded.model.name
            job.attempts += 1
            job.started_at, job.state, job.engine = _now(), RUNNING, loaded.engine
            self._changed.notify_all()
        log.info("job %s: running on %s", job.id, job.model)
        return job

    def _sing(self, job: Job, engine: Engine) -> None:
        """Have one song sung, to whatever end."""
        try:
            future = engine.sing(job.id, job.request, self._observer(job))
            if job.cancel_requested:  # it came before the engine knew the song
                engine.cancel(job.id)
            song = future.result()
        except Cancelled as error:
            self._end(job, CANCELLED, error=error)
        except Exception as error:  # of any kind: the job must end, and the next one must get its turn
            log.error("job %s", job.id, exc_info=error)
            if not engine.alive and job.cancel_requested:
                self._end(job, CANCELLED, error=Cancelled("the song was cancelled, and its engine ended"))
            elif engine.alive or not self._queued_again(job):
                self._end(job, FAILED, error=error)
        else:
            self._end(job, SUCCEEDED, song=song)

    def _queued_again(self, job: Job) -> bool:
        """Whether the job, whose engine ended under it, gets its second and last chance."""
        with self._changed:
            if self._closed or job.attempts >= MOST_ATTEMPTS:
                return False
            job.state, job.engine, job.progress = QUEUED, None, None
            self._queue.appendleft(job)
            self._changed.notify_all()
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
        state = CANCELLED if isinstance(error, Cancelled) else FAILED
        with self._changed:
            while self._queue:
                self._finish(self._queue.popleft(), state, error=error)
        log.error("no models for the songs that waited", exc_info=error)

    def _end(self, job: Job, state: str, song: Song | None = None, error: Exception | None = None) -> None:
        with self._changed:
            self._finish(job, state, song, error)

    def _finish(self, job: Job, state: str, song: Song | None = None, error: Exception | None = None) -> None:
        """The one way into a finished state. The lock is held."""
        job.song, job.error, job.engine, job.finished_at = song, error, None, _now()
        job.request = replace(job.request, reference=None)  # megabytes that nobody needs any more
        job.state = state
        log.info("job %s: %s", job.id, state)
        self._forget_oldest()
        self._changed.notify_all()

    def _forget_oldest(self) -> None:
        """Keep the finished jobs within their bounds, the newest always. The lock is held."""
        finished = [job for job in self._jobs.values() if job.finished]
        finished.sort(key=lambda job: job.finished_at or job.created_at)
        size_bytes = sum(job.size_bytes for job in finished)
        for count, job in zip(range(len(finished), 1, -1), finished, strict=False):
            if count <= self._kept_jobs and size_bytes <= self._kept_bytes:
                return
            size_bytes -= job.size_bytes
            del self._jobs[job.id]
            if job.request_id:
                del self._ids[job.request_id]


def another_model(wanted: str | None, loaded: str) -> InvalidField:
    """One song never makes the server load another model."""
    return InvalidField("model", wanted, f"{loaded}; another model is loaded by download-models first")
