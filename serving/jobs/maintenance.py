"""Keeps the store up to date: heartbeats, cancel requests, recovery of lost jobs, and retention.

Independent of engines. It holds no lock while it reads or writes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from inference.errors import Cancelled
from serving.jobs import records
from serving.jobs.job import MOST_ATTEMPTS, Job, now
from serving.jobs.layout import NOBODY, LiveState
from serving.jobs.liveness import LOST_SECONDS, ReplicaWatch
from serving.jobs.records import End
from serving.jobs.run_all import run_all
from serving.jobs.schema import Malformed
from serving.jobs.store import JobStore
from storage import PERMANENT_KINDS, StorageError

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0  # between two heartbeats, and between two rounds
SWEEP_SECONDS = 600.0
SWEPT_TOGETHER = 50  # jobs that are deleted in one round, so that it stays short


@dataclass(frozen=True)
class Retention:
    """How long finished songs are kept, and how many bytes of them; the newest is always kept."""

    hours: float = 168
    limit_bytes: int = 20_000_000_000


class Owner(Protocol):
    """Who has the jobs in memory: a JobQueue."""

    draining: bool  # no song is begun any more

    def knows(self, job_id: str) -> bool:
        """True while the job is here, or on its way in."""

    def living(self) -> list[Job]:
        """All jobs that are here."""

    def room(self) -> int:
        """How many more jobs may come."""

    def adopt(self, jobs: Sequence[Job]) -> None:
        """Queue jobs that were another server's."""

    def let_go(self, job: Job) -> None:
        """Forget a job that is another server's by now, or gone with its files."""

    def finish_recovered(self, job: Job, end: End) -> None:
        """End a job that was another server's, and is this one's now."""

    def note_refusal(self, error: StorageError | None) -> None:
        """Remember why the storage refuses this server until somebody acts; None: it does not any more."""

    def cancel(self, job: Job) -> bool:
        """Cancel a job that is here; True where that is its end."""

    def expire(self) -> None:
        """End what waits and had to start by now."""

    def save(self) -> None:
        """Write what could not be written before."""


class Maintenance:
    """The two maintenance threads of a replica. `run_round` is one round, for tests with their own clock."""

    def __init__(
        self, store: JobStore, owner: Owner, retention: Retention, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._owner, self._retention, self._clock = store, owner, retention, clock
        self._watch = ReplicaWatch(store.process, clock)
        self._orphans_since: dict[str, float] = {}  # incomplete things, and since when they are observed
        self._left: set[str] = set()  # unreadable jobs, which were reported
        self._refusals: dict[str, StorageError] = {}  # what the storage refuses at present, and why
        self._noted: dict[str, object] = {}  # job id -> the progress that was written
        self._leaving: set[str] = set()  # jobs of which it is written that this server was told to stop
        self._began, self._began_at = now(), clock()
        self._swept_at: float | None = None
        self._ends, self._wake = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the heartbeat and the rounds."""
        for name, task in (("jobs-heartbeat", self._beat), ("jobs-maintenance", self._maintain)):
            self._threads.append(threading.Thread(target=task, name=name, daemon=True))
            self._threads[-1].start()

    def wake(self) -> None:
        """Run the next round now."""
        self._wake.set()

    def stop(self) -> None:
        """End both threads, save what can be saved, and sign off."""
        self._ends.set()
        self.wake()
        for thread in self._threads:
            thread.join()
        _tried(self._save, "some jobs could not be handed over to other servers, which find them later")
        _tried(lambda: self._store.remove_replica(self._store.replica), "this server could not sign off")

    def run_round(self) -> None:
        """Run one round. A step that fails does not stop the others: on a full disk they free space.

        Raises the first error after the last step; the next round tries again.
        """
        run_all([self._owner.expire, self._save, self._note_progress, self._inspect_live])

    def beat(self) -> None:
        """Write a heartbeat. Raises StorageError."""
        with self._noting_refusals("a heartbeat"):
            self._store.beat()

    @contextmanager
    def _noting_refusals(self, what: str) -> Iterator[None]:
        """Tell the owner when the storage refuses what every job needs, and when it recovers."""
        try:
            yield
            self._refusals.pop(what, None)
        except StorageError as error:
            if error.kind in PERMANENT_KINDS:
                self._refusals[what] = error
            raise
        finally:
            self._owner.note_refusal(next(iter(list(self._refusals.values())), None))

    def _inspect_live(self) -> None:
        with self._noting_refusals("a listing"):
            state = self._store.live_state()
        self._watch.note(state.replicas)
        steps = (
            self._cancel_requested,
            self._listen_requested,
            self._let_go_of_taken,
            self._recover,
            self._clear_orphans,
            self._sweep_in_turn,
        )
        run_all(partial(step, state) for step in steps)

    def _beat(self) -> None:
        while not self._ends.is_set():
            _tried(self.beat, "the heartbeat could not be written")
            self._ends.wait(BEAT_SECONDS)

    def _maintain(self) -> None:
        while not self._ends.is_set():
            self._wake.clear()
            _tried(self.run_round, "the maintenance round failed")
            self._wake.wait(BEAT_SECONDS)

    def _save(self) -> None:
        """Write what could not be written, and while this server stops, which songs it leaves."""
        left = [job for job in self._owner.living() if self._owner.draining and job.engine]
        new = [job for job in left if job.id not in self._leaving]
        run_all([self._owner.save, *(partial(self._note_leaving, job) for job in new)])

    def _note_leaving(self, job: Job) -> None:
        self._store.leaving(job)
        self._leaving.add(job.id)

    def _note_progress(self) -> None:
        jobs = [job for job in self._owner.living() if job.engine and job.progress]
        self._noted = {job.id: self._noted.get(job.id) for job in jobs}
        run_all(partial(self._note, job) for job in jobs if self._noted[job.id] != job.progress)

    def _note(self, job: Job) -> None:
        progress = job.progress
        self._store.note(job)
        self._noted[job.id] = progress

    def _cancel_requested(self, state: LiveState) -> None:
        for job in self._owner.living():
            if job.id in state.cancel_requests and not job.cancel_requested:
                self._owner.cancel(job)

    def _listen_requested(self, state: LiveState) -> None:
        for job in self._owner.living():
            if job.id in state.listen_requests and not job.listened:
                job.listen()

    def _let_go_of_taken(self, state: LiveState) -> None:
        """Let go of jobs that others have taken, as after this server stood still for minutes."""
        mine = {job_id for replica, job_id in state.opened if replica == self._store.replica}
        doubtful = [job for job in self._owner.living() if job.id not in mine and not job.finished]
        run_all(partial(self._let_go_if_taken, job) for job in doubtful)

    def _let_go_if_taken(self, job: Job) -> None:
        if not self._store.still_owned(job):  # else it is only new
            self._owner.let_go(job)

    def _recover(self, state: LiveState) -> None:
        found: list[Job] = []
        try:
            run_all(partial(self._recover_one, job_id, state, found) for job_id in self._unattended(state))
        finally:
            self._owner.adopt(found)

    def _recover_one(self, job_id: str, state: LiveState, found: list[Job]) -> None:
        if len(found) >= self._owner.room():
            return
        try:
            job = self._store.recover(job_id, self._watch.is_lost)
        except Exception as error:
            if isinstance(error, StorageError) and not isinstance(error, Malformed):
                raise
            if job_id not in self._left:
                log.error("job %s: left as it is: its record cannot be read", job_id, exc_info=error)
                self._left.add(job_id)
            return
        if job:
            end = self._end_of(job, state)
            if end:
                self._owner.finish_recovered(job, end)
            else:
                found.append(job)

    def _unattended(self, state: LiveState) -> Iterable[str]:
        """The open jobs whose server seems to be gone."""
        for job_id in sorted({job_id for _, job_id in state.opened}):
            replicas = [replica for replica, opened in state.opened if opened == job_id]
            if not self._owner.knows(job_id) and any(self._is_gone(replica) for replica in replicas):
                yield job_id

    def _is_gone(self, replica: str) -> bool:
        return replica in (NOBODY, self._store.replica) or self._watch.is_lost(replica)

    def _end_of(self, job: Job, state: LiveState) -> End | None:
        """The end of a recovered job; None if it is to run."""
        if job.id in state.cancel_requests:
            job.cancel_requested = True
            return records.cancelled(Cancelled("the song was cancelled, and its server ended"))
        if job.error:
            return records.failed(job.error)
        return records.interrupted() if job.attempts >= MOST_ATTEMPTS else None

    def _clear_orphans(self, state: LiveState) -> None:
        """Remove incomplete jobs, requests that came too late, and lost replicas without jobs."""
        opened = {job_id for _, job_id in state.opened}
        half = {job_id for job_id in self._unattended(state) if self._is_half_written(job_id)}
        late = (state.cancel_requests | state.listen_requests) - opened
        since = {name: self._orphans_since.get(name, self._clock()) for name in half | late}
        due = {name for name, moment in since.items() if self._clock() - moment >= LOST_SECONDS}
        self._orphans_since = {name: moment for name, moment in since.items() if name not in due}
        busy = {replica for replica, _ in state.opened}
        idle = state.replicas.keys() - busy - {self._store.replica}
        run_all(
            [
                *(partial(self._store.abandon, name) for name in half & due),
                *(partial(self._store.drop_requests, name) for name in late & due),
                *(partial(self._remove_if_lost, replica) for replica in idle),
            ]
        )

    def _is_half_written(self, job_id: str) -> bool:
        return job_id not in self._left and not self._store.folder(job_id).ordered

    def _remove_if_lost(self, replica: str) -> None:
        if self._watch.is_lost(replica):
            self._store.remove_replica(replica)

    def _sweep_in_turn(self, state: LiveState) -> None:
        if self._is_sweeper(state):
            self._sweep(self._moment(state))

    def _is_sweeper(self, state: LiveState) -> bool:
        """True if this replica is the one that sweeps, and it is time."""
        if self._swept_at is not None and self._clock() - self._swept_at < SWEEP_SECONDS:
            return False
        return self._store.replica == min(
            (replica for replica in state.replicas if not self._watch.is_lost(replica)), default=None
        )

    def _moment(self, state: LiveState) -> datetime:
        """The earliest time that it can be: a clock that is ahead or jumps does not make songs older."""
        counted = self._began + timedelta(seconds=self._clock() - self._began_at)
        return min(now(), counted, state.moment or counted)

    def _sweep(self, moment: datetime) -> None:
        """Delete the oldest finished jobs, by age and size, and incomplete files."""
        oldest = moment - timedelta(hours=self._retention.hours)
        size_bytes, old = 0, []
        for count, ended in enumerate(self._store.ended()):
            size_bytes += ended.size_bytes
            if count and ((ended.listed_at or ended.finished_at) < oldest or size_bytes > self._retention.limit_bytes):
                old.append(ended)
        all_swept = len(old) <= SWEPT_TOGETHER
        if all_swept:
            self._swept_at = self._clock()
        forget = [partial(self._store.forget, ended) for ended in old[::-1][:SWEPT_TOGETHER]]
        run_all([*forget, self._store.tidy] if all_swept else forget)


def _tried(task: Callable[[], None], complaint: str) -> None:
    """Run a task whose errors must not end the thread."""
    try:
        task()
    except StorageError as error:
        log.warning("%s: %s", complaint, error)
    except Exception:
        log.exception("%s", complaint)
