"""The jobs that this server must finish: waiting, running, or ended but not stored yet.

Independent of models and of HTTP. The queue alone takes its lock, and never holds it while it uses the store.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from inference.errors import Cancelled
from inference.song import Progress
from serving.jobs import records
from serving.jobs.errors import DeadlinePassed, FilesLost, Stopping, another_model
from serving.jobs.job import MOST_ATTEMPTS, QUEUED, RUNNING, SUCCEEDED, Job, about, now
from serving.jobs.records import End
from serving.jobs.run_all import run_all
from serving.jobs.store import JobStore
from serving.jobs.wait_estimates import WaitEstimate, WaitEstimator
from serving.models.states import LoadedModel
from storage import StorageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """The number of jobs that wait, that run, and that have ended but are not stored yet."""

    queued: int
    running: int
    unsaved: int


class JobQueue:
    """All jobs in memory. Any method may be called from any thread."""

    def __init__(self, store: JobStore, max_queue: int) -> None:
        self._store, self._max_queue = store, max_queue
        self._changed = threading.Condition()  # guards every attribute, and is notified with every change
        self._live: dict[str, Job] = {}  # in order of arrival
        self._waiting: deque[Job] = deque()
        self.draining = self.closed = False  # draining: no songs start; closed: no songs continue
        self._slots_taken = 0  # by threads that run a job, or are about to take one
        self._estimator = WaitEstimator()
        # Called under the lock with the number of songs that could run now, when it may have grown.
        self.on_demand: Callable[[int], None] = lambda songs: None
        self.on_end: Callable[[Job], None] = lambda job: None  # called with every job whose end this server has stored
        self._arriving: set[str] = set()  # jobs that are being written
        self._unsaved: dict[str, End] = {}  # ends that are not stored yet, by job id
        self._handed: list[Job] = []  # to be handed over to other servers
        self._refusal: StorageError | None = None

    # Adding jobs

    def take_in(self, job: Job) -> bool:
        """Store the job and queue it. Return False if another job has taken its request id meanwhile.

        Raises QueueFull, DeadlineUnreachable, Stopping and StorageError.
        """
        with self._changed:
            self._admit(job)
            self._arriving.add(job.id)
        accepted = False
        try:
            accepted = self._store.create(job)
        except StorageError:
            self._undo(job)
            raise
        finally:
            with self._changed:
                self._arriving.remove(job.id)
                if accepted:
                    job.request = records.with_audio(job.request, {})
                    self._enter(job)
        return accepted

    def check_room(self, job: Job) -> None:
        """Refuse the job as `take_in` would now, before its reference audio is read."""
        with self._changed:
            self._admit(job)

    def adopt(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of a lost server ahead of all others: they have waited longest."""
        with self._changed:
            for job in sorted(jobs, key=lambda job: job.created_at, reverse=True):
                with about(job):
                    log.warning("job %s: its server ended; it continues here", job.id)
                self._enter(job, ahead=True)

    def requeue(self, job: Job) -> bool:
        """Queue a job again after its engine ended. Return False if it has no attempts left or has left the queue."""
        with self._changed:
            if not self.has(job) or (not self.draining and job.attempts >= MOST_ATTEMPTS):
                return False
            job.state, job.engine, job.progress = QUEUED, None, None
            self._enter(job, ahead=True)
        log.warning("job %s: queued again", job.id)
        return True

    def _admit(self, job: Job) -> None:
        """Raise QueueFull, DeadlineUnreachable or Stopping if the job cannot wait here. The caller holds the lock."""
        if self.draining:
            raise Stopping
        waiting = len(self._waiting) + len(self._arriving)
        self._estimator.check_room(self._running_seconds(), waiting, self._max_queue, records.seconds_left(job))

    def _enter(self, job: Job, ahead: bool = False) -> None:
        """Queue the job. The caller holds the lock."""
        self._live[job.id] = job
        if self.draining:
            self._handed.append(job)
        elif ahead:
            self._waiting.appendleft(job)
        else:
            self._waiting.append(job)
        self._demand()
        self._changed.notify_all()

    def _demand(self) -> None:
        """Report how many songs could run now. The caller holds the lock."""
        if not self.draining:
            self.on_demand(min(self._estimator.max_songs, self._slots_taken + len(self._waiting)))

    # Looking at jobs

    def counts(self) -> Counts:
        """Return the numbers of jobs in memory."""
        with self._changed:
            running = sum(job.state == RUNNING for job in self._live.values())
            return Counts(len(self._waiting) + len(self._arriving), running, len(self._unsaved))

    def room(self) -> int:
        """Return how many more jobs may wait."""
        return 0 if self.draining else self._max_queue - self.counts().queued

    def knows(self, job_id: str) -> bool:
        """Return True while the job is in memory or being stored."""
        with self._changed:
            return job_id in self._live or job_id in self._arriving

    def living(self) -> list[Job]:
        """Return all jobs in memory."""
        with self._changed:
            return list(self._live.values())

    def find(self, job_id: str) -> Job | None:
        """Return the job if this server must finish it."""
        with self._changed:
            return self._live.get(job_id)

    def has(self, job: Job) -> bool:
        """Return True while this server must finish the job."""
        return self._live.get(job.id) is job

    def wait_estimates(self) -> dict[str, WaitEstimate]:
        """Return the estimates of the waiting jobs, by job id."""
        with self._changed:
            return self._estimator.estimates(self._running_seconds(), [job.id for job in self._waiting])

    def note_duration(self, seconds: float) -> None:
        """Record a song's duration, from its start to its end."""
        with self._changed:
            self._estimator.note(seconds)

    def _running_seconds(self) -> list[float]:
        """Return how long each song has been running. The caller holds the lock."""
        now_s = time.monotonic()
        return [now_s - job.began for job in self._live.values() if job.state == RUNNING and job.began is not None]

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait up to `seconds` until a change makes `condition` true. Return its last value."""
        with self._changed:
            return self._changed.wait_for(condition, max(0.0, seconds))

    def note_refusal(self, error: StorageError | None) -> None:
        """Record why the storage refuses this server until an operator acts; None once it works again."""
        with self._changed:
            self._refusal = error
            self._changed.notify_all()

    def refusal_of(self, job: Job) -> StorageError | None:
        """Return why a job is stuck: its song has not started, and its start cannot be stored."""
        return self._refusal if self.has(job) and not job.finished and job.progress is None else None

    # Running

    def take_slot(self) -> bool:
        """Wait until a song waits and the engine has a free slot. Return False once the queue drains."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.draining or (self._may_begin() and self._slots_taken < self._estimator.max_songs)
            )
            if self.draining:
                return False
            self._slots_taken += 1
            return True

    def free_slot(self) -> None:
        """Release a slot."""
        with self._changed:
            self._slots_taken -= 1
            self._changed.notify_all()

    def start_next(self, loaded: LoadedModel) -> Job | None:
        """Take the next job to run on the loaded model. Return None if none waits or it wants another model."""
        self.expire()
        with self._changed:
            self._estimator.max_songs = loaded.max_songs
            self._demand()
            if not self._may_begin():
                return None
            job = self._waiting.popleft()
            fits = job.wanted_model in (None, loaded.model.name)  # the model may have been replaced meanwhile
            if fits:
                job.model = loaded.model.name
                job.attempts += 1
                job.started_at, job.began = max(now(), job.created_at), time.monotonic()
                job.state, job.engine = RUNNING, loaded.engine
            self._changed.notify_all()
        if fits:
            return job
        self.finish(job, records.failed(another_model(job.wanted_model, loaded.model.name)))
        return None

    def note_progress(self, job: Job, progress: Progress | None = None) -> None:
        """Record a song's progress, or only how much of it is playable."""
        with self._changed:
            known = progress or job.progress
            job.progress = known and replace(known, playable_seconds=job.playable_seconds)
            self._changed.notify_all()

    def _may_begin(self) -> bool:
        """True if a song waits and no finished song is still unsaved, or memory would fill with them."""
        return bool(self._waiting) and not self._unsaved

    # Ending jobs early

    def expire(self) -> None:
        """Fail waiting jobs whose deadline has passed."""
        self.finish_waiting(records.failed(DeadlinePassed()), late_at=time.monotonic())

    def finish_waiting(self, end: End, late_at: float | None = None) -> int:
        """End all waiting jobs, or those with a deadline up to `late_at`. Return their number."""
        with self._changed:
            jobs = [job for job in self._waiting if late_at is None or (job.deadline or math.inf) <= late_at]
            for job in jobs:
                self._waiting.remove(job)
        for job in jobs:
            self.finish(job, end)
        return len(jobs)

    def cancel(self, job: Job) -> bool:
        """Cancel a job of this server. Return True if it ended at once; in the engine a song ends a little later."""
        with self._changed:
            queued = job in self._waiting
            if self.has(job) and not job.finished:
                job.cancel_requested = True
            if queued:
                self._waiting.remove(job)
            engine = job.engine
            self._changed.notify_all()
        if queued:
            self.finish(job, records.cancelled(Cancelled("the song was cancelled before it started")))
        if engine:
            engine.cancel(job.id)  # by its id, so it can never hit the next song
        return queued

    def drain(self) -> None:
        """Accept and start no more songs. `save` hands the queued ones over to other servers."""
        with self._changed:
            self.draining = True
            self._handed += self._waiting
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Let no song continue."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    # Ending and removing jobs

    def finish(self, job: Job, end: End) -> None:
        """End a job. Every end on this server passes through here: succeeded, failed, cancelled or interrupted.

        The end is stored first; `save` tries again if that fails. The result of a job that another server has taken
        over is dropped.
        """
        if not self.has(job):
            return
        if end.state == SUCCEEDED and job.began is not None:
            self.note_duration(time.monotonic() - job.began)
        try:
            self._write(job, end)
        except StorageError as error:
            with about(job):
                log.error("job %s: %s, but that cannot be stored yet: %s", job.id, end.state, error)
            with self._changed:
                self._unsaved[job.id] = end
                end.apply_to(job)
                self._changed.notify_all()

    def finish_recovered(self, job: Job, end: End) -> None:
        """End a job that this server has taken over from a lost one, without queueing it."""
        with self._changed:
            self._live[job.id] = job
        self.finish(job, end)

    def _write(self, job: Job, end: End) -> None:
        """Store the end. If another server has stored one before, that one counts. Raises StorageError."""
        with about(job):
            if self._store.end(job, end):
                end.apply_to(job)
                self._count(job)
            else:
                log.warning("job %s: another server has ended it", job.id)
                self._try_to_refresh(job)
            with self._changed:
                self._leave(job)

    def _count(self, job: Job) -> None:
        """Count and log an end, once, on the server that has stored it."""
        self.on_end(job)
        log.info("job %s: %s", job.id, job.state)

    def refresh(self, job: Job) -> bool:
        """Update a job of another server from the storage. Return False if its files are gone. Raises StorageError."""
        found = self._store.read(job.id)
        with self._changed:
            if found:
                job.become(found)
            elif not job.finished:
                records.failed(FilesLost()).apply_to(job)
            self._changed.notify_all()
        return found is not None

    def _try_to_refresh(self, job: Job) -> bool:
        try:
            return self.refresh(job)
        except StorageError as error:  # threads that wait for the job try again
            log.warning("job %s: cannot be read: %s", job.id, error)
            return True

    def save(self) -> None:
        """Store the ends that are not stored yet, and hand jobs over to other servers, each job by itself.

        Raises StorageError after trying all of them.
        """
        with self._changed:
            unsaved = [(self._live[job_id], end) for job_id, end in self._unsaved.items()]
            handed = list(self._handed)
        writes = [partial(self._write, job, end) for job, end in unsaved]
        run_all([*writes, *(partial(self._hand_over, job) for job in handed)])

    def _hand_over(self, job: Job) -> None:
        self._store.hand_over(job)
        with self._changed:
            self._handed.remove(job)
            self._leave(job)

    def let_go(self, job: Job) -> None:
        """Remove a job that another server has taken over, or whose files are gone."""
        with self._changed:
            if not self.has(job):
                return
            self._leave(job)
            engine = job.engine
        if engine:
            engine.cancel(job.id)
        with about(job):
            if self._try_to_refresh(job):
                log.warning("job %s: another server has taken it", job.id)
            else:
                log.error("job %s: its files are gone", job.id)
                self._count(job)

    def _leave(self, job: Job) -> None:
        """Remove the job from memory. The caller holds the lock."""
        self._live.pop(job.id, None)
        self._unsaved.pop(job.id, None)
        if job in self._waiting:
            self._waiting.remove(job)
        self._changed.notify_all()

    def _undo(self, job: Job) -> None:
        """Remove the files of a refused job. With a request id it may have been accepted: maintenance finds out."""
        if job.request_id:
            return
        try:
            self._store.withdraw(job.id)
        except StorageError as error:
            log.warning("job %s: was refused but could not be withdrawn, so it may still run: %s", job.id, error)
