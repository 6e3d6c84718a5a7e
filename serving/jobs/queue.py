"""The jobs that this server has to bring to their end: waiting, running, or over but not written yet.

Independent of models and of HTTP. The queue alone takes its lock, and never holds it while it uses the store.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """How many jobs wait, run, and are over but could not be written yet."""

    queued: int
    running: int
    unsaved: int


class JobQueue:
    """All jobs in memory. Any method may be called from any thread."""

    def __init__(self, store: JobStore, max_queue: int) -> None:
        self._store, self._max_queue = store, max_queue
        self._changed = threading.Condition()  # guards every attribute, and is notified with every change
        self._live: dict[str, Job] = {}  # in the order in which they came
        self._waiting: deque[Job] = deque()
        self.draining = self.closed = False  # no song is begun any more; none goes on any more
        self._slots_taken = 0  # by those who run a job, or are about to take one
        self._estimator = WaitEstimator()
        # Called with the number of songs that could run now, whenever it may have grown; the lock is held.
        self.on_demand: Callable[[int], None] = lambda songs: None
        self.on_end: Callable[[Job], None] = lambda job: None  # called with every job whose end is written here
        self._arriving: set[str] = set()  # jobs that are being written
        self._unsaved: dict[str, End] = {}  # ends that could not be written yet, by job id
        self._handed: list[Job] = []  # to be given to other servers
        self._refusal: StorageError | None = None

    # Coming in

    def take_in(self, job: Job) -> bool:
        """Write the job and queue it; False where its request id has become another's meanwhile.

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
        """Refuse the job as `take_in` would now, before what it lacks is read."""
        with self._changed:
            self._admit(job)

    def adopt(self, jobs: Sequence[Job]) -> None:
        """Queue jobs that were another server's ahead of all others: they have waited longest."""
        with self._changed:
            for job in sorted(jobs, key=lambda job: job.created_at, reverse=True):
                with about(job):
                    log.warning("job %s: its server ended; it continues here", job.id)
                self._enter(job, ahead=True)

    def requeue(self, job: Job) -> bool:
        """Queue a job again whose engine ended; False where it had its last attempt, or is not here any more."""
        with self._changed:
            if not self.has(job) or (not self.draining and job.attempts >= MOST_ATTEMPTS):
                return False
            job.state, job.engine, job.progress = QUEUED, None, None
            self._enter(job, ahead=True)
        log.warning("job %s: queued again", job.id)
        return True

    def _admit(self, job: Job) -> None:
        """Raises QueueFull, DeadlineUnreachable and Stopping. The lock is held."""
        if self.draining:
            raise Stopping
        waiting = len(self._waiting) + len(self._arriving)
        self._estimator.check_room(self._running_seconds(), waiting, self._max_queue, records.seconds_left(job))

    def _enter(self, job: Job, ahead: bool = False) -> None:
        """Queue it. The lock is held."""
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
        """Say how many songs could run now. The lock is held."""
        if not self.draining:
            self.on_demand(min(self._estimator.max_songs, self._slots_taken + len(self._waiting)))

    # What is here

    def counts(self) -> Counts:
        """How many jobs are here."""
        with self._changed:
            running = sum(job.state == RUNNING for job in self._live.values())
            return Counts(len(self._waiting) + len(self._arriving), running, len(self._unsaved))

    def room(self) -> int:
        """How many more jobs may come."""
        with self._changed:
            return 0 if self.draining else self._max_queue - len(self._waiting) - len(self._arriving)

    def knows(self, job_id: str) -> bool:
        """True while the job is here, or on its way in."""
        with self._changed:
            return job_id in self._live or job_id in self._arriving

    def living(self) -> list[Job]:
        """All jobs that are here."""
        with self._changed:
            return list(self._live.values())

    def find(self, job_id: str) -> Job | None:
        """That job, if it is this server's to end."""
        with self._changed:
            return self._live.get(job_id)

    def has(self, job: Job) -> bool:
        """True while the job is this server's to end."""
        return self._live.get(job.id) is job

    def wait_estimates(self) -> dict[str, WaitEstimate]:
        """What each job that waits can expect, by job id."""
        with self._changed:
            return self._estimator.estimates(self._running_seconds(), [job.id for job in self._waiting])

    def note_duration(self, seconds: float) -> None:
        """A song took so long from its start to its end."""
        with self._changed:
            self._estimator.note(seconds)

    def _running_seconds(self) -> list[float]:
        """How long each song has been running. The lock is held."""
        now_s = time.monotonic()
        return [now_s - job.began for job in self._live.values() if job.state == RUNNING and job.began is not None]

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a change makes `condition` true, so long at most; return its last value."""
        with self._changed:
            return self._changed.wait_for(condition, max(0.0, seconds))

    def note_refusal(self, error: StorageError | None) -> None:
        """Remember why the storage refuses this server until somebody acts; None: it does not any more."""
        with self._changed:
            self._refusal = error
            self._changed.notify_all()

    def refusal_of(self, job: Job) -> StorageError | None:
        """Why a job of this server is stuck: its song has not begun, and its start cannot be written."""
        return self._refusal if self.has(job) and not job.finished and job.progress is None else None

    # Running

    def take_slot(self) -> bool:
        """Wait until a song waits and the engine has a slot for it; False once no song is begun any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.draining or (self._may_begin() and self._slots_taken < self._estimator.max_songs)
            )
            if self.draining:
                return False
            self._slots_taken += 1
            return True

    def free_slot(self) -> None:
        """Give back a slot that was taken."""
        with self._changed:
            self._slots_taken -= 1
            self._changed.notify_all()

    def start_next(self, loaded: LoadedModel) -> Job | None:
        """Take the next job to run it on that model; None where none waits any more, or it wants another model."""
        self.expire()
        with self._changed:
            self._estimator.max_songs = loaded.max_songs
            self._demand()
            if not self._may_begin():
                return None
            job = self._waiting.popleft()
            fits = job.wanted_model in (None, loaded.model.name)  # it may have been replaced while the job waited
            if fits:
                job.model = loaded.model.name
                job.attempts += 1
                job.started_at, job.began = now(), time.monotonic()
                job.state, job.engine = RUNNING, loaded.engine
            self._changed.notify_all()
        if fits:
            return job
        self.finish(job, records.failed(another_model(job.wanted_model, loaded.model.name)))
        return None

    def note_progress(self, job: Job, progress: Progress) -> None:
        """The song is that far."""
        with self._changed:
            job.progress = progress
            self._changed.notify_all()

    def _may_begin(self) -> bool:
        """True while a song waits, and none is here that could not be written: memory would fill with them."""
        return bool(self._waiting) and not self._unsaved

    # Ending early

    def expire(self) -> None:
        """End what waits and had to begin by now."""
        self.finish_waiting(records.failed(DeadlinePassed()), late_at=time.monotonic())

    def finish_waiting(self, end: End, late_at: float | None = None) -> int:
        """End every job that waits, or those whose deadline is at that moment or before; return how many did."""
        with self._changed:
            jobs = [job for job in self._waiting if late_at is None or (job.deadline or math.inf) <= late_at]
            for job in jobs:
                self._waiting.remove(job)
        for job in jobs:
            self.finish(job, end)
        return len(jobs)

    def cancel(self, job: Job) -> bool:
        """Cancel a job of this server; True where that is its end. In the engine a song ends a little later."""
        with self._changed:
            queued = job in self._waiting
            if self.has(job) and not job.finished:
                job.cancel_requested = True
            if queued:
                self._waiting.remove(job)
            engine = job.engine
            self._changed.notify_all()
        if queued:
            self.finish(job, records.cancelled(Cancelled("the song was cancelled before it began")))
        if engine:
            engine.cancel(job.id)  # by its id, so that it can never reach the next song
        return queued

    def drain(self) -> None:
        """Take no more songs and begin none; `save` gives those that are queued to other servers."""
        with self._changed:
            self.draining = True
            self._handed += self._waiting
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Let no song go on."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    # Going out

    def finish(self, job: Job, end: End) -> None:
        """The one exit: every job that ends here passes through. The end is written first, and again if that fails.

        A job that is not here any more is another server's; what was made of it here is dropped.
        """
        if not self.has(job):
            return
        if end.state == SUCCEEDED and job.began is not None:
            self.note_duration(time.monotonic() - job.began)
        try:
            self._write(job, end)
        except StorageError as error:
            with about(job):
                log.error("job %s: %s, but that cannot be written yet: %s", job.id, end.state, error)
            with self._changed:
                self._unsaved[job.id] = end
                end.apply_to(job)
                self._changed.notify_all()

    def finish_recovered(self, job: Job, end: End) -> None:
        """End a job that was another server's, and is this one's now, without queueing it."""
        with self._changed:
            self._live[job.id] = job
        self.finish(job, end)

    def _write(self, job: Job, end: End) -> None:
        """Write the end. Where another server has written one before, that is the end. Raises StorageError."""
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
        """Count and log an end, once and by the server that has written it."""
        self.on_end(job)
        log.info("job %s: %s", job.id, job.state)

    def refresh(self, job: Job) -> bool:
        """Tell a job that is not here how it is now; False where it is nowhere. Raises StorageError."""
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
        except StorageError as error:  # whoever waits for the job looks again
            log.warning("job %s: cannot be read: %s", job.id, error)
            return True

    def save(self) -> None:
        """Write the ends that could not be written, and hand over what other servers are to run: each job by itself.

        Raises StorageError, after all were tried.
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
        """Forget that job, which is another's by now, or gone with its files."""
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
        """Have nothing more to do with it. The lock is held."""
        self._live.pop(job.id, None)
        self._unsaved.pop(job.id, None)
        if job in self._waiting:
            self._waiting.remove(job)
        self._changed.notify_all()

    def _undo(self, job: Job) -> None:
        """Remove all traces of what was refused. With a request id it may have been accepted: maintenance finds out."""
        if job.request_id:
            return
        try:
            self._store.withdraw(job.id)
        except StorageError as error:
            log.warning("job %s: was refused, and may run all the same: %s", job.id, error)
