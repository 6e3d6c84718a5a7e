"""The jobs that this server has to bring to their end: which wait, which are sung, which are over but not written yet.

It knows nothing of models or HTTP. The lock is never held while the store is used.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from inference.errors import Cancelled
from serving.jobs import records
from serving.jobs.errors import DeadlinePassed, DeadlineUnreachable, FilesLost, QueueFull, Stopping
from serving.jobs.job import RUNNING, Job, about
from serving.jobs.records import End
from serving.jobs.run_all import run_all
from serving.jobs.store import JobStore
from serving.jobs.wait_estimates import WaitEstimate, WaitEstimator
from storage import StorageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """How many jobs wait to be sung, are sung, and are over but could not be written yet."""

    queued: int
    running: int
    unsaved: int


class JobQueue:
    """All that is in memory of jobs. Any method may be called from any thread.

    `changed` guards every attribute, and is notified with every change.
    """

    def __init__(self, store: JobStore, max_queue: int) -> None:
        self._store, self._max_queue = store, max_queue
        self.changed = threading.Condition()
        self.live: dict[str, Job] = {}  # in the order they came
        self.waiting: deque[Job] = deque()
        self.draining = self.closed = False
        self.estimator = WaitEstimator()
        self.on_entry: Callable[[], None] = lambda: None  # called with every job that comes in; the lock is held
        self.on_end: Callable[[Job], None] = lambda job: None  # called with every job whose end is written here
        self._coming: set[str] = set()  # jobs that are being written
        self._unsaved: dict[str, End] = {}  # ends that could not be written yet, by job id
        self._handed: list[Job] = []  # to be given to other servers
        self._told: set[str] = set()  # jobs of which the store knows that this server was told to stop
        self._refusal: StorageError | None = None

    # Coming in

    def take_in(self, job: Job) -> bool:
        """Write the job and queue it; False where its request id has become another's meanwhile.

        Raises JobError: the queue is full, the song would come too late, or the server is stopping.
        Raises StorageError.
        """
        with self.changed:
            self._admit(job)
            self._coming.add(job.id)
        accepted = False
        try:
            accepted = self._store.create(job)
        except StorageError:
            self._undo(job)
            raise
        finally:
            with self.changed:
                self._coming.remove(job.id)
                if accepted:
                    job.request = records.with_audio(job.request, {})
                    self.enter(job)
        return accepted

    def check_room(self, job: Job) -> None:
        """Raises JobError where the job would be refused now, before what it lacks is read."""
        with self.changed:
            self._admit(job)

    def _admit(self, job: Job) -> None:
        """Raises JobError where the job may not come in. The lock is held."""
        if self.draining:
            raise Stopping
        waiting = len(self.waiting) + len(self._coming)
        begins = self.estimator.start_times(self._sung_seconds(), waiting + 1)
        expected = begins[-1] + (self.estimator.song_seconds or 0.0) if begins else None
        if waiting >= self._max_queue:
            raise QueueFull(self._max_queue, waiting + 1, begins[0] if begins else None, expected)
        left = records.seconds_left(job)
        if left is not None and expected is not None and expected > left:
            raise DeadlineUnreachable(left, waiting + 1, expected)

    def enter(self, job: Job, ahead: bool = False) -> None:
        """Queue it. The lock is held."""
        self.live[job.id] = job
        if self.draining:
            self._handed.append(job)
        elif ahead:
            self.waiting.appendleft(job)
        else:
            self.waiting.append(job)
        self.on_entry()
        self.changed.notify_all()

    def adopt(self, jobs: Sequence[Job]) -> None:
        """Take those jobs, which were another's, ahead of all others: they have waited longest."""
        with self.changed:
            for job in sorted(jobs, key=lambda job: job.created_at, reverse=True):
                with about(job):
                    log.warning("job %s: its server ended; it goes on here", job.id)
                self.enter(job, ahead=True)

    def counts(self) -> Counts:
        """How many are here."""
        with self.changed:
            running = sum(job.state == RUNNING for job in self.live.values())
            return Counts(len(self.waiting) + len(self._coming), running, len(self._unsaved))

    def room(self) -> int:
        """How many more may come."""
        with self.changed:
            return 0 if self.draining else self._max_queue - len(self.waiting) - len(self._coming)

    def knows(self, job_id: str) -> bool:
        """Whether the job is here, or on its way in."""
        with self.changed:
            return job_id in self.live or job_id in self._coming

    def living(self) -> list[Job]:
        """All that are here."""
        with self.changed:
            return list(self.live.values())

    def find(self, job_id: str) -> Job | None:
        """That job, if it is this server's to end."""
        with self.changed:
            return self.live.get(job_id)

    # Going on

    def wait_estimates(self) -> dict[str, WaitEstimate]:
        """What each job that waits can expect, by job id."""
        with self.changed:
            taken = self.estimator.song_seconds
            begins = self.estimator.start_times(self._sung_seconds(), len(self.waiting))
            ends: Sequence[float | None] = [begin + (taken or 0.0) for begin in begins] or [None] * len(self.waiting)
            waiting = enumerate(zip(self.waiting, ends, strict=True), start=1)
            return {job.id: WaitEstimate(position, end) for position, (job, end) in waiting}

    def _sung_seconds(self) -> list[float]:
        """How long each song has been sung. The lock is held."""
        now = time.monotonic()
        return [now - job.began for job in self.live.values() if job.state == RUNNING and job.began is not None]

    def expire(self) -> None:
        """End what waits and was to be begun by now."""
        now = time.monotonic()
        with self.changed:
            late = [job for job in self.waiting if job.deadline is not None and job.deadline <= now]
            for job in late:
                self.waiting.remove(job)
        for job in late:
            self.finish(job, records.failed(DeadlinePassed()))

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a change makes `condition` true, so long at most; whether it is."""
        with self.changed:
            return self.changed.wait_for(condition, max(0.0, seconds))

    def has(self, job: Job) -> bool:
        """Whether it is this server's to end."""
        return self.live.get(job.id) is job

    def note_refusal(self, error: StorageError | None) -> None:
        """That the storage refuses this server until somebody acts, or does so no more."""
        with self.changed:
            self._refusal = error
            self.changed.notify_all()

    def hindrance(self, job: Job) -> StorageError | None:
        """Why a job of this server gets no further: its song has not begun, and that it does cannot be written."""
        return self._refusal if self.has(job) and not job.finished and job.progress is None else None

    def may_begin(self) -> bool:
        """Whether a song waits, and none is here that could not be written: memory would fill with them."""
        return bool(self.waiting) and not self._unsaved

    def hear(self, cancel_requests: Collection[str]) -> None:
        """Cancel those of them that are here."""
        for job in self.living():
            if job.id in cancel_requests and not job.cancel_requested:
                self.cancel(job)

    def cancel(self, job: Job) -> bool:
        """Cancel a job of this server's; whether that is its end. In the engine a song ends a little later."""
        with self.changed:
            queued = job in self.waiting
            if self.has(job) and not job.finished:
                job.cancel_requested = True
            if queued:
                self.waiting.remove(job)
            engine = job.engine
            self.changed.notify_all()
        if queued:
            self.finish(job, records.cancelled(Cancelled("the song was cancelled before it began")))
        if engine:
            engine.cancel(job.id)  # by its id, so that it can never reach the next song
        return queued

    def drain(self) -> None:
        """Take no more songs and begin none; those that are queued are given to other servers with the next `save`."""
        with self.changed:
            self.draining = True
            self._handed += self.waiting
            self.waiting.clear()
            self.changed.notify_all()

    def close(self) -> None:
        """Sing no more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    # Going out

    def finish(self, job: Job, end: End) -> None:
        """The one way into a finished state: the end is written first, and where that fails, again and again.

        So it is logged once and counted once, by the server that has written it.
        """
        if not self.has(job):
            return  # it is another's; what was made of it here is dropped
        try:
            self._write(job, end)
        except StorageError as error:
            with about(job):
                log.error("job %s: %s, but that cannot be written yet: %s", job.id, end.state, error)
            with self.changed:
                self._unsaved[job.id] = end
                end.apply_to(job)
                self.changed.notify_all()

    def finish_recovered(self, job: Job, end: End) -> None:
        """End a job that was another server's, and is this one's now, without queueing it."""
        with self.changed:
            self.live[job.id] = job
        self.finish(job, end)

    def _write(self, job: Job, end: End) -> None:
        """Write the end. Where another server has written one before, that is the end."""
        with about(job):
            if self._store.end(job, end):
                end.apply_to(job)
                self.on_end(job)
            else:
                log.warning("job %s: another server has ended it", job.id)
                self._try_to_look(job)
            with self.changed:
                self._leave(job)
            log.info("job %s: %s", job.id, job.state)

    def look_again(self, job: Job) -> bool:
        """Tell a job that is not here how it is now; whether it is anywhere. Raises StorageError."""
        found = self._store.read(job.id)
        with self.changed:
            if found:
                job.become(found)
            elif not job.finished:
                records.failed(FilesLost()).apply_to(job)
            self.changed.notify_all()
        return found is not None

    def _try_to_look(self, job: Job) -> bool:
        try:
            return self.look_again(job)
        except StorageError as error:  # whoever waits for the job looks again
            log.warning("job %s: cannot be looked at: %s", job.id, error)
            return True

    def save(self) -> None:
        """Try again to write the ends that could not be written, and give away what is to be given: each job by itself.

        Raises StorageError, after all were tried.
        """
        with self.changed:
            unsaved = [(self.live[job_id], end) for job_id, end in self._unsaved.items()]
            told = [job for job in self.live.values() if self.draining and job.engine and job.id not in self._told]
            handed = list(self._handed)
        run_all(
            [
                *(partial(self._write, job, end) for job, end in unsaved),
                *(partial(self._tell, job) for job in told),
                *(partial(self._hand_over, job) for job in handed),
            ]
        )

    def _tell(self, job: Job) -> None:
        """Have it written that this server was told to stop while it sings the job."""
        self._store.leaving(job)
        self._told.add(job.id)

    def _hand_over(self, job: Job) -> None:
        self._store.hand_over(job)
        with self.changed:
            self._handed.remove(job)
            self._leave(job)

    def let_go(self, job: Job) -> None:
        """Forget that job, which is another's by now, or gone with its files."""
        with self.changed:
            if not self.has(job):
                return
            self._leave(job)
            engine = job.engine
        if engine:
            engine.cancel(job.id)
        with about(job):
            if self._try_to_look(job):
                log.warning("job %s: another server has taken it", job.id)
            else:
                log.error("job %s: %s, for its files are gone", job.id, job.state)
                self.on_end(job)

    def _leave(self, job: Job) -> None:
        """Have nothing more to do with it. The lock is held."""
        self.live.pop(job.id, None)
        self._unsaved.pop(job.id, None)
        self._told.discard(job.id)
        if job in self.waiting:
            self.waiting.remove(job)
        self.changed.notify_all()

    def _undo(self, job: Job) -> None:
        """Leave nothing of what was refused. With a request id it may have been accepted: the maintenance finds out."""
        if job.request_id:
            return
        try:
            self._store.withdraw(job.id)
        except StorageError as error:
            log.warning("job %s: was refused, and may be sung though: %s", job.id, error)
