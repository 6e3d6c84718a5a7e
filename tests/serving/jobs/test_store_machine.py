"""Many servers on one storage, ended between any two writes: hypothesis finds the order, and every job has one end."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serving.jobs.errors import JobError
from serving.jobs.job import FINISHED, MOST_ATTEMPTS
from serving.jobs.layout import Folder
from serving.jobs.liveness import LOST_SECONDS
from serving.jobs.maintenance import SWEEP_SECONDS, Retention
from serving.jobs.store import JobStore
from storage import Storage, StorageError
from tests.support.buckets import GOOGLE, S3, bucket_servers
from tests.support.fakes import FakeClock, new_folder
from tests.support.replicas import Crash, FragileStorage, Replica

KEYS = ("a", "b", None)
replicas = st.integers(0, 2)
ONE_SONG = Retention(limit_bytes=100)  # songs of the tests' replicas take about 70 bytes each
breaks = st.one_of(st.none(), st.tuples(st.integers(0, 5), st.booleans(), st.booleans()))


@pytest.fixture(scope="module", autouse=True)
def buckets() -> Iterator[None]:
    with bucket_servers():
        yield


class Servers(RuleBasedStateMachine):
    """Three servers on one storage. What is lost is started again by whichever is there."""

    place = staticmethod(lambda: Storage.at(new_folder()))

    @initialize(ids=st.integers(0, 99))
    def begin_empty(self, ids: int) -> None:
        random.seed(ids)  # the servers look at jobs, and at each other, in the order of their ids
        self.storage, self.clock = self.place(), FakeClock()
        self.looker = JobStore(self.storage)
        self.storages: list[FragileStorage] = []
        self.servers = [self._new() for _ in range(3)]
        self.keys: dict[str, tuple[str, int]] = {}  # accepted: key -> job id, seed
        self.accepted: list[str] = []  # job ids, in the order they came
        self.ends: dict[str, bytes] = {}

    @rule(at=replicas, key=st.sampled_from(KEYS), seed=st.integers(1, 2), breaks=breaks)
    def submit(self, at: int, key: str | None, seed: int, breaks: tuple[int, bool, bool] | None) -> None:
        with self._breaking(at, breaks) as server:
            try:
                job = server.submit(key, seed)
            except JobError as error:
                if error.kind == "conflict":
                    assert key and (key not in self.keys or self.keys[key][1] != seed)
                else:
                    assert error.kind == "queue-full"
                return
            if key in self.keys and self.keys[key] != (job.id, seed):
                assert self.keys[key][0] in self._ended(), "a song that is not done has lost its key"
            if key:
                self.keys[key] = job.id, seed
            if job.id not in self.accepted:
                self.accepted.append(job.id)

    @rule(at=replicas, breaks=breaks)
    def begin_a_song(self, at: int, breaks: tuple[int, bool, bool] | None) -> None:
        with self._breaking(at, breaks) as server:
            server.begin()

    @rule(at=replicas, breaks=breaks)
    def finish_a_song(self, at: int, breaks: tuple[int, bool, bool] | None) -> None:
        with self._breaking(at, breaks) as server:
            server.finish()

    @rule(at=replicas, key=st.sampled_from(KEYS), seed=st.integers(1, 2))
    def generate(self, at: int, key: str | None, seed: int) -> None:
        """A whole song, so that there is something to forget."""
        self.submit(at, key, seed, None)
        self.begin_a_song(at, None)
        self.finish_a_song(at, None)

    @rule(at=replicas, breaks=breaks)
    def run_round(self, at: int, breaks: tuple[int, bool, bool] | None) -> None:
        with self._breaking(at, breaks) as server:
            server.run_round()

    @rule(at=replicas, choice=st.integers(0, 5), breaks=breaks)
    def cancel(self, at: int, choice: int, breaks: tuple[int, bool, bool] | None) -> None:
        if self.accepted:
            job_id = self.accepted[choice % len(self.accepted)]
            with self._breaking(at, breaks) as server:
                try:
                    server.jobs.cancel(job_id)
                except JobError as error:
                    assert error.kind == "not-found" and job_id in self._ended()

    @rule(at=replicas)
    def kill(self, at: int) -> None:
        self.servers[at] = self._new()

    @rule(at=replicas)
    def lose(self, at: int) -> None:
        """A server is killed, and the others notice."""
        self.servers[at] = self._new()
        self._inspect_live()
        self.clock.advance(LOST_SECONDS + 1)
        self._inspect_live()

    @rule(at=replicas, breaks=breaks)
    def stop(self, at: int, breaks: tuple[int, bool, bool] | None) -> None:
        with self._breaking(at, breaks) as server:
            server.jobs.close()
        self.servers[at] = self._new()

    @rule(seconds=st.sampled_from((LOST_SECONDS + 1, SWEEP_SECONDS)))
    def much_time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def an_end_never_changes(self) -> None:
        for entry in self.storage.entries("jobs"):
            if entry.path.endswith("/end.json"):
                content = self.storage.get(entry.path)
                assert self.ends.setdefault(entry.path, content) == content
                assert json.loads(content)["state"] in FINISHED

    @invariant()
    def only_songs_that_are_done_are_forgotten(self) -> None:
        missing = {job_id for job_id in self.accepted if not self.looker.read(job_id)}
        assert missing <= self._ended()

    @invariant()
    def no_song_is_begun_too_often(self) -> None:
        for job_id, names in self._folders().items():
            assert Folder(names).attempts <= MOST_ATTEMPTS, job_id

    def teardown(self) -> None:
        """All servers are lost, and a new one brings everything to an end."""
        if not hasattr(self, "storage"):
            return
        last = self._new()
        for _ in range(40):
            self.clock.advance(LOST_SECONDS / 2 + 1)
            last.run_round()
            for _ in range(8):
                last.begin()
                last.finish()
            if not self.looker.live_state().opened:
                break
        around = self.looker.live_state()
        assert not around.opened, "a job is stuck"
        self.clock.advance(SWEEP_SECONDS)
        last.run_round()
        self.only_songs_that_are_done_are_forgotten()
        kept = {job.id: job for job_id in self.accepted if (job := self.looker.read(job_id))}
        for job in kept.values():
            assert job.finished, "an accepted job has no end"
            if job.song:
                assert job.song.audio["mix"].startswith(job.id.encode())
        self.an_end_never_changes()
        self.no_song_is_begun_too_often()
        self._check_that_nothing_is_left_over()
        for key, (job_id, seed) in self.keys.items():
            assert job_id not in kept or last.submit(key, seed).id == job_id

    def _check_that_nothing_is_left_over(self) -> None:
        listed = [ended.job_id for ended in self.looker.ended()]
        of_keys: dict[str, int] = {}
        for job_id in self._folders():
            assert job_id in listed, "a folder that is never forgotten"
            job = self.looker.read(job_id)
            if job and job.request_id:
                of_keys[job.request_id] = of_keys.get(job.request_id, 0) + 1
        assert set(of_keys.values()) <= {1}, "one key has several songs"

    def _folders(self) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for entry in self.storage.entries("jobs"):
            _, job_id, name = entry.path.split("/", 2)
            found.setdefault(job_id, set()).add(name)
        return {job_id: frozenset(names) for job_id, names in found.items()}

    def _inspect_live(self) -> None:
        for server in self.servers:
            server.store.beat()
        for server in self.servers:
            server.run_round()

    def _ended(self) -> set[str]:
        """The jobs whose end was ever written."""
        return {path.split("/")[1] for each in self.storages for path in each.written if path.endswith("/end.json")}

    def _new(self) -> Replica:
        server = Replica(self.storage, self.clock, ONE_SONG)
        self.storages.append(server.storage)
        return server

    @contextmanager
    def _breaking(self, at: int, breaks: tuple[int, bool, bool] | None) -> Iterator[Replica]:
        """A server whose storage breaks at that write of the step: it is lost with it, or told of an error."""
        server = self.servers[at]
        if breaks:
            server.storage.writes_left, server.storage.crashes, server.storage.after_writing = breaks
        try:
            yield server
        except Crash:
            self.servers[at] = self._new()
        except StorageError:
            pass  # the client is told so
        finally:
            server.storage.writes_left = None


class ServersOnS3(Servers):
    """The same on S3's protocol."""

    place = staticmethod(lambda: S3.storage())


class ServersOnGoogle(Servers):
    """The same on Google's protocol."""

    place = staticmethod(lambda: GOOGLE.storage())


MANY, FEW = settings(max_examples=70, stateful_step_count=40), settings(max_examples=12, stateful_step_count=25)
for machine, often in ((Servers, MANY), (ServersOnS3, FEW), (ServersOnGoogle, FEW)):
    machine.TestCase.settings = settings(often, deadline=None, suppress_health_check=list(HealthCheck))
TestServersOnAFolder = Servers.TestCase
TestServersOnS3 = ServersOnS3.TestCase
TestServersOnGoogle = ServersOnGoogle.TestCase
