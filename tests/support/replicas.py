"""Servers without threads on one storage, each of which can end between any two of its writes.

They know nothing of what is tested with them; the singing is done by hand.
"""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta

from inference.song import Song, SongRequest
from serving.jobs.job import QUEUED, RUNNING, Job, now
from serving.jobs.liveness import LOST_SECONDS
from serving.jobs.maintenance import Retention
from serving.jobs.records import succeeded
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from storage import Storage, StorageError
from tests.support.fakes import LYRICS, FakeClock, FakeModels


class Crash(BaseException):
    """The process is gone: nothing of it goes on, whatever it would have caught."""


class FragileStorage(Storage):
    """Loses its process, or fails, at the n-th write from now on."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage._store, storage.name)
        self.writes_left: int | None = None
        self.crashes = True
        self.after_writing = False  # whether the write that fails is done though, which nobody can know
        self.written: list[str] = []  # paths
        self.too_large = ""  # no file whose path has this in it finds room; empty: all do

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        if self.too_large and self.too_large in path:
            raise StorageError(f"{self.name}/{path}: no space left on device", "full")
        breaks = self._breaks()
        if not breaks or self.after_writing:
            super().put(path, content, create=create)
            self.written.append(path)
        if breaks:
            self._break(path)

    def delete(self, path: str) -> None:
        breaks = self._breaks()
        if not breaks or self.after_writing:
            super().delete(path)
        if breaks:
            self._break(path)

    def _breaks(self) -> bool:
        if self.writes_left is None:
            return False
        self.writes_left -= 1
        return self.writes_left < 0

    def _break(self, path: str) -> None:
        if self.crashes:
            raise Crash(path)
        raise StorageError(f"{self.name}/{path}: the bucket is away", "unavailable")


class Replica:
    """One server: its queue, its maintenance, its view of the storage."""

    def __init__(
        self, storage: Storage, clock: FakeClock, retention: Retention | None = None, max_queue: int = 4
    ) -> None:
        self.storage = FragileStorage(storage)
        self.store = JobStore(self.storage, an_id())
        self.jobs = Jobs(FakeModels().manager(), self.store, max_queue, retention, clock)
        self.queue = self.jobs._queue
        self.queue.on_entry = lambda: None  # nobody sings by themselves
        self.sung: list[str] = []

    def submit(self, key: str | None, seed: int = 1) -> Job:
        request = SongRequest("pop", LYRICS, seed)
        job = Job(request, "tiny", request_id=key, fingerprint=str(seed), id=an_id(), created_at=distinct_moment())
        return self.jobs.submit(job)

    def begin(self) -> None:
        """Begin the first song of the queue, as a slot does."""
        if self.queue.may_begin():
            job = self.queue.waiting[0]
            job.attempts, job.state = job.attempts + 1, RUNNING
            try:
                begun = self.store.start(job)
            except StorageError:
                job.attempts, job.state = job.attempts - 1, QUEUED
                return
            self.queue.waiting.popleft()
            if not begun:
                self.queue.let_go(job)

    def finish(self) -> None:
        """Finish the first song that was begun."""
        for job in self.queue.living():
            if job.state == RUNNING:
                self.sung.append(job.id)
                audio = {"mix": f"{job.id} by {self.store.replica}".encode()}
                end = succeeded(Song(audio, "mp3", 44_100, 1.5, job.request.seed, ()))
                self.queue.finish(job, replace(end, finished_at=distinct_moment()))
                return

    def run_round(self) -> None:
        """A sign of life, and a maintenance's round."""
        try:
            self.store.beat()
            self.jobs.maintenance.run_round()
        except StorageError:
            pass  # the next round begins anew, as the maintenance's thread has it


def an_id() -> str:
    """Of a job or a server: as good as any, and the same again where `random` is seeded, as hypothesis does."""
    return f"{random.getrandbits(128):032x}"


class DistinctMoments:
    """Now, but never twice within a millisecond: lists of jobs are ordered by milliseconds."""

    def __init__(self) -> None:
        self._last = now()

    def __call__(self) -> datetime:
        self._last = max(now(), self._last + timedelta(milliseconds=1))
        return self._last


distinct_moment = DistinctMoments()


def lose(clock: FakeClock, *watchers: Replica) -> None:
    """Let so much time pass that whoever is silent counts as lost."""
    for pause in (0, LOST_SECONDS + 1):
        clock.advance(pause)
        for watcher in watchers:
            watcher.run_round()
