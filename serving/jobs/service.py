"""Songs as jobs: sent once, run by this server or another, found and cancelled by id through any of them.

Independent of HTTP, and of how models are loaded, songs generated and jobs written.
Only the jobs that this server has to bring to their end are in memory (`serving/jobs/queue.py`); all others are read
from the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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
from storage import PERMANENT_KINDS, Entry, StorageError

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between two reads of a job that another server has
ACCEPTED_SECONDS = 5.0  # that a request waits until another one with its request id is accepted
SLACK_SECONDS = 0.1  # after a deadline, before it is checked


class Jobs:
    """All jobs. Every method may be called from any thread; those that use the store raise StorageError.

    `start` starts the maintenance; without it the caller runs its rounds.
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
        """Start the maintenance, which also recovers the jobs of servers that have ended."""
        self.maintenance.start()

    @property
    def queue(self) -> JobQueue:
        """The jobs in memory, for metrics."""
        return self._queue

    def submit(self, job: Job, complete: Callable[[Job], None] = lambda job: None) -> Job:
        """Queue a job, or return the one that has the same request id, on any server.

        `complete` may take time to add what the job lacks, and refuses it by raising an error; it is not called for a
        job that exists. A returned job is written: it comes to an end, whatever happens to this server.
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
                        log.info("job %s: queued", job.id, extra=words)  # logged only with YUE_LOG_LYRICS
                    return job
            return known

    def get(self, job_id: str) -> Job:
        """The job. Raises NotFound."""
        job = self._queue.find(job_id) or self._store.read(job_id)
        if job is None:
            raise NotFound(f"no job {job_id!r} is here; finished jobs are deleted after a while", {"job_id": job_id})
        return job

    def page(self, query: JobQuery) -> Page:
        """A page of all jobs. Raises NotFound if the query begins behind a job that does not exist."""
        return self._list.page(query)

    def list(self) -> list[Job]:
        """The first page."""
        return self.page(JobQuery()).jobs

    def wait_estimates(self) -> Mapping[str, WaitEstimate]:
        """The estimates of the jobs that wait here, by job id."""
        return self._queue.wait_estimates()

    @property
    def draining(self) -> bool:
        """True once no more songs are started."""
        return self._queue.draining

    @property
    def busy(self) -> bool:
        """True while a song runs here."""
        return any(job.state == RUNNING for job in self._queue.living())

    def is_left(self, job: Job) -> bool:
        """True if this server is stopping and another one will continue the job."""
        queue = self._queue
        return queue.draining and not job.finished and not (queue.has(job) and job.state == RUNNING)

    def wait(self, job: Job, seconds: float) -> bool:
        """Wait until the job is finished, for so many seconds at most; return true if it is.

        A job of another server is updated meanwhile. The wait ends early for a job that this server, while it stops,
        gives to others. Raises StorageError if the storage refuses this server for an unknown time.
        """
        end = time.monotonic() + seconds
        self._check(job)
        if not job.finished and not self._queue.has(job):
            self._refresh(job)
        while not (job.finished or self.is_left(job)) and time.monotonic() < end:
            self.wait_for_change(job, end - time.monotonic())
        return job.finished

    def wait_for_change(self, job: Job, seconds: float) -> None:
        """Wait until the job changes, for so many seconds at most, or until another server continues it.

        Raises StorageError if the storage refuses this server for an unknown time.
        """
        before, queue = _shown(job), self._queue
        if queue.has(job):

            def is_over() -> bool:
                changed = job.finished or _shown(job) != before
                return changed or self.is_left(job) or queue.refusal_of(job) is not None or not queue.has(job)

            queue.wait_until(is_over, self._until_late(job, seconds))
            self._check(job)
            queue.expire()
        elif not queue.wait_until(lambda: queue.draining, min(LOOK_SECONDS, seconds)):
            self._refresh(job)

    def listen(self, job: Job) -> None:
        """Hurry the song, on whichever server it runs, because somebody listens to it."""
        if job.finished:
            return
        mine = self._queue.find(job.id)
        if mine:
            mine.listen()
            return
        try:
            self._store.request_listening(job.id)
        except StorageError as error:  # the song comes all the same
            log.warning("job %s: its server cannot be told that somebody listens: %s", job.id, error)

    def parts(self, job: Job, track: str) -> Sequence[Entry]:
        """The files of the parts of a track that are stored by now, from its start on."""
        files = self._store.parts.listed(job.id, track)
        return files[: job.song.parts] if job.song else files

    def part(self, path: str) -> bytes:
        """The content of such a file."""
        return self._store.parts.get(path)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is queued here, soon if it runs. A finished job stays as it is."""
        job = self.get(job_id)
        if not job.finished and not self._queue.cancel(job):
            job.cancel_requested = True
            self._store.request_cancel(job_id)  # the request outlives this server and reaches others
        return job

    def delete(self, job_id: str) -> tuple[Job, bool]:
        """Delete a finished job on all servers, or cancel an unfinished one; return the job, and true if deleted."""
        job = self.get(job_id)
        if not job.finished:
            return self.cancel(job_id), False
        if self._queue.has(job):
            raise StorageError(f"job {job_id} has ended, but that cannot be stored yet", "unavailable")
        self._store.delete(job_id)
        with about(job):
            log.info("job %s: deleted", job_id)
        return job, True

    def drain(self) -> None:
        """Accept and start no more songs; hand over those that are queued to other servers."""
        self._queue.drain()
        self.maintenance.wake()

    def close(self, seconds: float = 0.0) -> None:
        """Wait so long for the running songs, then end them, the models and the threads.

        Unfinished jobs are handed over to other servers.
        """
        self.drain()
        self._queue.wait_until(lambda: not self.busy, seconds)
        self._queue.close()
        self._models.close()  # which also ends the wait of a thread for its engine
        self.dispatcher.join()
        self.maintenance.stop()

    @contextmanager
    def _alone(self, request_id: str | None) -> Iterator[None]:
        """Let in one request at a time with the same request id. Raises BeingAccepted."""
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
        """The job that already has this request id."""
        key = self._store.keys.find(job.request_id) if job.request_id else None
        if key is None or job.request_id is None:
            return None
        known = self._queue.find(key.job_id) or self._read_if_possible(key.job_id)
        if known is None:  # it was deleted
            self._store.keys.release(job.request_id, key)
        elif key.fingerprint != job.fingerprint:
            detail = f"request_id {job.request_id!r} belongs to another request; a new request needs a new request_id"
            raise Conflict(detail, {"field": "request_id"})  # without the job's id, which gives access to it
        return known

    def _read_if_possible(self, job_id: str) -> Job | None:
        """The job; None if it does not exist, or cannot be read and nobody will end it. Raises StorageError."""
        try:
            return self._store.read(job_id)
        except Malformed:
            if job_id in (opened for _, opened in self._store.live_state().opened):
                raise  # its server, or the next one, will end it
            return None

    def _refresh(self, job: Job) -> None:
        """Update a job of another server. Raises StorageError if trying again would not help."""
        try:
            self._queue.refresh(job)
        except StorageError as error:
            if error.kind in PERMANENT_KINDS:
                raise
            log.warning("job %s: cannot be read: %s", job.id, error)

    def _check(self, job: Job) -> None:
        """Raise StorageError if the job is stuck."""
        refusal = self._queue.refusal_of(job)
        if refusal:
            raise refusal

    def _until_late(self, job: Job, seconds: float) -> float:
        """So many seconds, or fewer if the deadline of the waiting job passes before."""
        left = records.seconds_left(job) if job.state == QUEUED else None
        return seconds if left is None else min(seconds, left + SLACK_SECONDS)


def _shown(job: Job) -> tuple[object, ...]:
    return job.state, job.progress, job.cancel_requested
