"""Jobs on one storage outlive their servers: many servers, ended between any two writes, and every job has one end."""

from __future__ import annotations

import json
import os
import random
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from inference.song import Reference, SongRequest
from serving.jobs.errors import JobError
from serving.jobs.job import FINISHED, MOST_ATTEMPTS, Job
from serving.jobs.layout import Folder
from serving.jobs.liveness import LOST_SECONDS
from serving.jobs.maintenance import SWEEP_SECONDS, Retention
from serving.jobs.records import with_audio
from serving.jobs.store import JobStore
from storage import Storage, StorageError
from tests.support.bucket_server import bucket_server
from tests.support.fakes import LYRICS, FakeClock, new_folder
from tests.support.replicas import Crash, FragileStorage, Replica, lose

KEYS = ("a", "b", None)
replicas = st.integers(0, 2)
ONE_SONG = Retention(limit_bytes=100)  # songs of the tests' replicas take about 70 bytes each
breaks = st.one_of(st.none(), st.tuples(st.integers(0, 5), st.booleans(), st.booleans()))


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


class Place:
    """A server of buckets, which the machines find here: hypothesis makes them without asking for fixtures."""

    def __init__(self) -> None:
        self.storage: Callable[[], Storage] = lambda: pytest.fail("no bucket server")


S3, GOOGLE = Place(), Place()


@pytest.fixture(scope="module", autouse=True)
def buckets() -> Iterator[None]:
    """Real servers for both protocols; every storage is a new folder in a bucket."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"access_key_id": "x", "secret_access_key": "x", "region": "us-east-1"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/songs", method="PUT")).close()

    def on_s3() -> Storage:
        folder, options = uuid.uuid4().hex, {"allow_http": True}
        store = S3Store("songs", prefix=folder, endpoint=address, client_options=options, **keys)
        return Storage(store, f"s3://songs/{folder}")

    S3.storage = on_s3
    with bucket_server() as google:
        GOOGLE.storage = lambda: google.storage(uuid.uuid4().hex)
        yield
    moto.stop()


@pytest.fixture(params=["folder", "s3", "google"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """An empty storage of each kind."""
    return {"folder": lambda: Storage.at(new_folder()), "s3": S3.storage, "google": GOOGLE.storage}[request.param]()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_audio_that_a_killed_server_left_half_written_is_swept_away(clock: FakeClock, tmp_path: Path) -> None:
    half = tmp_path / "jobs" / "1" / "audio-0" / "mix.mp3#1"
    half.parent.mkdir(parents=True)
    half.touch()
    os.utime(half, (0, 0))
    Replica(Storage.at(tmp_path), clock).run_round()
    assert not half.exists()


def test_a_large_song_is_one_object_that_is_there_or_not(storage: Storage) -> None:
    song = bytes(range(256)) * 50_000
    storage.put("jobs/1/mix.wav", song)  # the stand-in for Google's refuses uploads in parts
    assert storage.get("jobs/1/mix.wav") == song


def test_anyone_may_read_what_an_address_is_signed_for() -> None:
    storage = S3.storage()
    storage.put("jobs/1/mix.mp3", b"the song")
    address = storage.sign("jobs/1/mix.mp3", 60)
    assert address
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"the song"


def test_only_one_creates_a_file(storage: Storage) -> None:
    storage.put("claim", b"first", create=True)
    with pytest.raises(StorageError) as caught:
        storage.put("claim", b"second", create=True)
    assert caught.value.kind == "exists" and storage.get("claim") == b"first"


def test_a_listing_has_every_page_and_the_first_of_it_when_asked(storage: Storage) -> None:
    for number in range(120):
        storage.put(f"a/{number:03d}", b"x")
    assert [entry.path for entry in storage.entries("a")] == [f"a/{number:03d}" for number in range(120)]
    assert [entry.path for entry in storage.entries("a", 3)] == ["a/000", "a/001", "a/002"]


def test_a_file_is_read_from_any_point(storage: Storage) -> None:
    storage.put("song", bytes(range(200)))
    with storage.open("song") as file:
        file.seek(150)
        assert file.read(10) == bytes(range(150, 160))
        file.seek(0)
        assert file.read() == bytes(range(200))


def test_a_job_of_another_server_is_seen_cancelled_and_found_by_its_key(storage: Storage, clock: FakeClock) -> None:
    one, other = Replica(storage, clock), Replica(storage, clock)
    job = one.submit("key")
    assert other.jobs.get(job.id).state == "queued"
    assert other.submit("key").id == job.id
    with pytest.raises(JobError, match="another request"):
        other.submit("key", seed=2)
    assert other.jobs.cancel(job.id).cancel_requested
    one.run_round()
    assert (job.state, other.jobs.get(job.id).state) == ("cancelled", "cancelled")
    assert [each.id for each in other.jobs.list()] == [job.id]


def test_a_song_is_heard_from_any_server(storage: Storage, clock: FakeClock) -> None:
    one, other = Replica(storage, clock), Replica(storage, clock)
    job = one.submit(None)
    one.begin()
    one.finish()
    heard = other.jobs.get(job.id)
    assert heard.song and dict(heard.song.audio) == {"mix": f"{job.id} by {one.store.replica}".encode()}
    assert heard.sizes_bytes == {"mix": len(heard.song.audio["mix"])}


def test_reference_audio_goes_with_the_job_and_not_with_its_end(storage: Storage, clock: FakeClock) -> None:
    one, other = Replica(storage, clock), Replica(storage, clock)
    request = SongRequest("pop", LYRICS, 1, reference=Reference(vocal=b"v", instrumental=b"i", start_seconds=2.5))
    job = one.jobs.submit(Job(request, "tiny"))
    lose(clock, other)
    (adopted,) = other.queue.living()
    assert adopted.id == job.id and with_audio(adopted.request, other.store.reference(job.id)) == request
    other.begin()
    other.finish()
    assert not [entry for entry in storage.entries("jobs") if "reference" in entry.path]


def test_a_song_whose_servers_end_twice_is_interrupted(storage: Storage, clock: FakeClock) -> None:
    last = Replica(storage, clock)
    job = Replica(storage, clock).submit("key")
    for _ in range(MOST_ATTEMPTS):
        server = Replica(storage, clock)
        lose(clock, server)
        server.begin()
    lose(clock, last)
    end = last.jobs.get(job.id)
    assert end.state == "interrupted" and "send it again" in str(end.error)
    assert last.submit("key").state == "interrupted"


def test_a_cancelled_job_is_not_generated_after_its_server_ended(storage: Storage, clock: FakeClock) -> None:
    one, other = Replica(storage, clock), Replica(storage, clock)
    job = one.submit(None)
    other.jobs.cancel(job.id)
    lose(clock, other)
    assert other.jobs.get(job.id).state == "cancelled" and not other.queue.living()


def test_a_server_that_stood_still_drops_the_song_that_another_generated(storage: Storage, clock: FakeClock) -> None:
    slow, other = Replica(storage, clock), Replica(storage, clock)
    job = slow.submit(None)
    slow.begin()
    lose(clock, other)
    other.begin()
    other.finish()
    slow.finish()
    assert job.song and job.song.audio["mix"].endswith(other.store.replica.encode())
    assert [name for name in names_in(storage, job.id) if "audio" in name] == ["audio-1/mix.mp3"]


def test_a_server_that_stood_still_begins_no_song_that_another_generates(storage: Storage, clock: FakeClock) -> None:
    slow, other = Replica(storage, clock), Replica(storage, clock)
    job = slow.submit(None)
    lose(clock, other)
    other.begin()
    slow.begin()
    assert Folder(frozenset(names_in(storage, job.id))).attempts == 1
    assert not slow.queue.living() and other.queue.find(job.id)


def names_in(storage: Storage, job_id: str) -> list[str]:
    """Of the files in a job's folder."""
    return [entry.path.removeprefix(f"jobs/{job_id}/") for entry in storage.entries(f"jobs/{job_id}")]


def test_the_song_of_the_tenth_claim_outlives_the_first(storage: Storage, clock: FakeClock) -> None:
    first, slow = Replica(storage, clock), Replica(storage, clock)
    job = first.submit(None)
    lose(clock, slow)
    slow.begin()
    assert slow.queue.living()[0].claim == 1
    for _ in range(9):
        last = Replica(storage, clock)
        lose(clock, last)
    last.begin()
    last.finish()
    slow.finish()
    heard = last.jobs.get(job.id)
    assert heard.song and heard.song.audio["mix"] == f"{job.id} by {last.store.replica}".encode()


def test_a_server_that_stood_still_lets_go_of_a_song_that_another_generates(storage: Storage, clock: FakeClock) -> None:
    slow, other = Replica(storage, clock), Replica(storage, clock)
    job = slow.submit(None)
    lose(clock, other)
    slow.run_round()
    assert not slow.queue.living() and other.queue.find(job.id)


def test_a_key_that_another_took_meanwhile_leaves_one_song(storage: Storage, clock: FakeClock) -> None:
    lost, one, other = (Replica(storage, clock) for _ in range(3))
    lost.storage.writes_left = 3  # the sign of life, the marker and the job, but not the key
    with pytest.raises(Crash):
        lost.submit("key")
    accepted = one.submit("key")
    lose(clock, one, other)
    assert [job.id for job in other.jobs.list()] == [accepted.id]
    assert not other.queue.living()


def test_a_song_that_cannot_be_written_is_answered_from_memory_and_written_later(
    storage: Storage, clock: FakeClock
) -> None:
    server, other = Replica(storage, clock), Replica(storage, clock)
    job = server.submit("key")
    server.begin()
    server.storage.writes_left, server.storage.crashes = 0, False
    server.finish()
    heard = server.jobs.get(job.id)
    assert heard.state == "succeeded" and heard.song and heard.song.audio["mix"]
    assert other.jobs.get(job.id).state == "running"
    with pytest.raises(StorageError):
        server.submit("another")
    server.storage.writes_left = None
    server.run_round()
    assert other.jobs.get(job.id).state == "succeeded" and not server.queue.living()


@pytest.mark.parametrize("job_id", ["../keys", "..", "", "A" * 32, "a" * 31, "a" * 32 + "/job.json", "live"])
def test_an_id_cannot_leave_its_folder(job_id: str) -> None:
    assert JobStore(Storage.at(new_folder())).read(job_id) is None


MANY, FEW = settings(max_examples=120, stateful_step_count=40), settings(max_examples=12, stateful_step_count=25)
for machine, often in ((Servers, MANY), (ServersOnS3, FEW), (ServersOnGoogle, FEW)):
    machine.TestCase.settings = settings(often, deadline=None, suppress_health_check=list(HealthCheck))
TestServersOnAFolder = Servers.TestCase
TestServersOnS3 = ServersOnS3.TestCase
TestServersOnGoogle = ServersOnGoogle.TestCase
