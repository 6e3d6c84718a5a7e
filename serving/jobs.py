"""Songs as jobs: a bounded queue, one song after the other, found again by id, cancelled by id.

It knows nothing of HTTP, nor of how models are loaded or songs are made.

    queued -> running -> succeeded | failed | cancelled

A job stays queued while the models are loaded for it; where that fails, all that wait for them fail with it.
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

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINISHED

    @property
    def size_bytes(self) -> int:
        """The memory that its audio takes."""
        return sum(map(len, self.song.audio.values())) if self.song else 0


class Jobs:
    """All the jobs, and the thread that has them sung. Every method may be called from any thread."""

    def __init__(
        self, models: Models, max_queue: int, kept_jobs: int = KEPT_JOBS, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._models = models
        self._max_queue, self._kept_jobs, self._kept_bytes = max_queue, kept_jobs, kept_bytes
        self._changed = threading.Condition()  # guards everything below, and is notified with every change
        self._jobs: dict[str, Job] = {}  # in the order they came
        self._ids: dict[str, str] = {}  # request id -> job id
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._dispatcher: threading.Thread | None = None

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
            self._start_dispatcher()
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
        with self._changed:
            return self._changed.wait_for(lambda: job.finished, seconds)

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
        """Take no more songs, end those that are here, the models with them, and the thread."""
        with self._changed:
            self._closed = True
            while self._queue:
                self._finish(
                    self._queue.popleft(), FAILED, error=EngineError("the server stopped before the song began")
                )
            self._changed.notify_all()
        self._models.close()  # which is what wakes a dispatcher that waits for an engine
        if self._dispatcher:
            self._dispatcher.join()

    def _known(self, job: Job) -> Job | None:
        known = self._jobs.get(self._ids.get(job.request_id or "", ""))
        if known and known.fingerprint != job.fingerprint:
            detail = f"request_id {job.request_id!r} belongs to another request; a new request needs a new request_id"
            raise conflict(detail, field="request_id", job_id=known.id)
        return known

    def _start_dispatcher(self) -> None:
        """With the first job, not before: building an app starts no thread."""
        if self._dispatcher is None:
            self._dispatcher = threading.Thread(target=self._dispatch, name="jobs-dispatcher", daemon=True)
            self._dispatcher.start()

    def _dispatch(self) -> None:
        while self._head():
            try:
                with self._models.borrowed() as loaded:
                    job = self._next(loaded)
                    if job:
                        self._sing(job, loaded.engine)
            except Exception as error:  # no engine for those who waited for it; later songs try again
                self._fail_queued(error)

    def _head(self) -> Job | None:
        """The job that is next, still queued; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return self._queue[0] if self._queue else None

    def _next(self, loaded: Loaded) -> Job | None:
        """Take the next job out of the queue, unless all were cancelled while the models were loaded."""
        with self._changed:
            if not self._queue:
                return None
            job = self._queue.popleft()
            if job.wanted_model and job.wanted_model != loaded.model.name:  # it was replaced while the job waited
                self._finish(job, FAILED, error=another_model(job.wanted_model, loaded.model.name))
                return None
            job.model = loaded.model.name
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
            self._end(job, FAILED, error=error)
        else:
            self._end(job, SUCCEEDED, song=song)

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
