"""Songs as jobs: sent once, sung by this server or another, found again and cancelled by id through any of them.

It knows nothing of HTTP, nor of how models are loaded, songs are made, or jobs are written.
In memory are only the jobs that this server has to bring to their end (`serving/jobs/queue.py`); all others are read
from the store, whoever sang them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from inference.errors import LASTING
from serving.jobs import records
from serving.jobs.dispatcher import Dispatcher, Models
from serving.jobs.errors import BeingAccepted, Conflict, NotFound
from serving.jobs.job import QUEUED, RUNNING, Job, about
from serving.jobs.listing import JobList, JobQuery, Page
from serving.jobs.maintenance import Maintenance, Retention
from serving.jobs.queue import JobQueue
from serving.jobs.schema import Malformed
from serving.jobs.store import JobStore
from serving.jobs.wait_estimates import WaitEstimate
from storage import StorageError

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between two looks at a job that another server has
ACCEPTED_SECONDS = 5.0  # that a request waits for another one with its request id to be accepted
SLACK_SECONDS = 0.1  # after a deadline, before it is looked at


class Jobs:
    """All the jobs. Every method may be called from any thread; what uses the store raises StorageError.

    Nothing is looked after before `start`; without it the maintenance's rounds are the caller's business.
    """

    def __init__(
        self,
        models: Models,
        store: JobStore,
        max_queue: int,
        retention: Retention | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models, self._store = models, store
        self._queue = JobQueue(store, max_queue)
        self.dispatcher = Dispatcher(models, self._queue, store)
        self._list = JobList(store, self._queue)
        self.maintenance = Maintenance(store, self._queue, retention or Retention(), clock)
        self._asking = threading.Condition()
        self._asked: set[str] = set()  # request ids of jobs that are being submitted

    def start(self) -> None:
        """Look after the jobs that were left by servers that ended, also by this one's earlier lives."""
        self.maintenance.start()

    @property
    def queue(self) -> JobQueue:
        """The jobs in memory, for those who measure."""
        return self._queue

    def submit(self, job: Job, complete: Callable[[Job], None] = lambda job: None) -> Job:
        """Queue a job; one with the same request id that is known anywhere already is returned instead.

        `complete` may take its time to add what the job lacks, and its errors refuse the job; one that is known
        already lacks nothing. A job that is returned is written: it comes to an end, whatever becomes of this server.
        Raises JobError: the queue is full, the request id belongs to another request, or the server is stopping.
        """
        with self._alone(job.request_id):
            while not (known := self._known(job)):
                self._queue.check_room(job)
                complete(job)
                job.told_reference = records.told_reference(job)
                if self._queue.take_in(job):
                    words = {"genres": job.request.genres, "lyrics": job.request.lyrics}
                    with about(job):
                        log.info("job %s: queued", job.id, extra=words)  # which are withheld, unless a setting says so
                    return job
            return known

    def get(self, job_id: str) -> Job:
        """That job. Raises NotFound where there is none."""
        job = self._queue.find(job_id) or self._store.read(job_id)
        if job is None:
            raise NotFound(f"no job {job_id!r} is here; finished ones are forgotten in time", {"job_id": job_id})
        return job

    def page(self, query: JobQuery) -> Page:
        """A page of the list of all jobs. Raises NotFound where the query begins behind a job that is not here."""
        return self._list.page(query)

    def list(self) -> list[Job]:
        """The first page."""
        return self.page(JobQuery()).jobs

    def wait_estimates(self) -> Mapping[str, WaitEstimate]:
        """What the jobs that wait here can expect, by job id."""
        return self._queue.wait_estimates()

    @property
    def draining(self) -> bool:
        """Whether no song is begun any more."""
        return self._queue.draining

    @property
    def busy(self) -> bool:
        """Whether a song is sung here."""
        return any(job.state == RUNNING for job in self._queue.living())

    def is_left(self, job: Job) -> bool:
        """Whether this server, which is stopping, will not bring the job any further."""
        queue = self._queue
        return queue.draining and not job.finished and not (queue.has(job) and job.state == RUNNING)

    def wait(self, job: Job, seconds: float) -> bool:
        """Wait until the job is finished, so long at most; return true if it is. The job is told what others do to it.

        Nobody waits for a job that this server, which is stopping, gives to others.
        Raises StorageError where the storage refuses this server, and nobody can tell when that ends.
        """
        end = time.monotonic() + seconds
        self._check(job)
        if not job.finished and not self._queue.has(job):
            self._refresh(job)
        while not (job.finished or self.is_left(job)) and time.monotonic() < end:
            self.wait_for_change(job, end - time.monotonic())
        return job.finished

    def wait_for_change(self, job: Job, seconds: float) -> None:
        """Wait until there is something new of the job, so long at most, or until it is left.

        Raises StorageError where the storage refuses this server, and nobody can tell when that ends.
        """
        before, queue = _shown(job), self._queue
        if queue.has(job):

            def is_over() -> bool:
                stuck = queue.refusal_of(job) is not None
                return _shown(job) != before or self.is_left(job) or stuck or not queue.has(job)

            queue.wait_until(is_over, self._until_late(job, seconds))
            self._check(job)
            queue.expire()
        elif not queue.wait_until(lambda: queue.draining, min(LOOK_SECONDS, seconds)):
            self._refresh(job)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once while it is queued here, soon while it is sung. A finished one stays as it is."""
        job = self.get(job_id)
        if not job.finished and not self._queue.cancel(job):
            job.cancel_requested = True
            self._store.request_cancel(job_id)  # it outlives this server, and reaches another
        return job

    def delete(self, job_id: str) -> tuple[Job, bool]:
        """Forget a finished job, on all servers; cancel one that is not. The job, and whether it is forgotten."""
        job = self.get(job_id)
        if not job.finished:
            return self.cancel(job_id), False
        if self._queue.has(job):
            raise StorageError(f"job {job_id} has ended, but that cannot be written yet", "unavailable")
        self._store.delete(job_id)
        with about(job):
            log.info("job %s: deleted", job_id)
        return job, True

    def drain(self) -> None:
        """Take no more songs and begin none; those that are queued are given to other servers."""
        self._queue.drain()
        self.maintenance.wake()

    def close(self, seconds: float = 0.0) -> None:
        """End the songs, after giving them so long to be done, the models with them, and the threads.

        What is not finished is given to other servers.
        """
        self.drain()
        self._queue.wait_until(lambda: not self.busy, seconds)
        self._queue.close()
        self._models.close()  # which also ends the wait of a thread for its engine
        self.dispatcher.join()
        self.maintenance.stop()

    @contextmanager
    def _alone(self, request_id: str | None) -> Iterator[None]:
        """One at a time with the same request id. Raises BeingAccepted."""
        if request_id is None:
            yield
            return
        with self._asking:
            if not self._asking.wait_for(lambda: request_id not in self._asked, ACCEPTED_SECONDS):
                raise BeingAccepted
            self._asked.add(request_id)
        try:
            yield
        finally:
            with self._asking:
                self._asked.remove(request_id)
                self._asking.notify_all()

    def _known(self, job: Job) -> Job | None:
        """The job that has its request id already."""
        key = self._store.keys.find(job.request_id) if job.request_id else None
        if key is None or job.request_id is None:
            return None
        known = self._queue.find(key.job_id) or self._read_if_anybody_can(key.job_id)
        if known is None:  # somebody has deleted it
            self._store.keys.release(job.request_id, key)
        elif key.fingerprint != job.fingerprint:
            detail = f"request_id {job.request_id!r} belongs to another request; a new request needs a new request_id"
            raise Conflict(detail, {"field": "request_id"})  # the job's id is the right to see and cancel it
        return known

    def _read_if_anybody_can(self, job_id: str) -> Job | None:
        """The job; None where there is none, or none that anybody can read or will end. Raises StorageError."""
        try:
            return self._store.read(job_id)
        except Malformed:
            if job_id in (opened for _, opened in self._store.live_state().opened):
                raise  # its server, or the next one, brings it to an end
            return None

    def _refresh(self, job: Job) -> None:
        """Tell a job of another server how it is now. Raises StorageError where the next look would tell no more."""
        try:
            self._queue.refresh(job)
        except StorageError as error:
            if error.kind in LASTING:
                raise
            log.warning("job %s: cannot be read: %s", job.id, error)

    def _check(self, job: Job) -> None:
        """Raises StorageError where the job gets no further."""
        refusal = self._queue.refusal_of(job)
        if refusal:
            raise refusal

    def _until_late(self, job: Job, seconds: float) -> float:
        """So many seconds, or those until the job's deadline passes while it waits."""
        left = records.seconds_left(job) if job.state == QUEUED else None
        return seconds if left is None else min(seconds, left + SLACK_SECONDS)


def _shown(job: Job) -> tuple[object, ...]:
    return job.state, job.progress, job.cancel_requested
