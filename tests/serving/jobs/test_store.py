"""Jobs on one storage outlive their servers, and every job has one end."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.song import Reference, SongRequest
from serving.jobs.errors import JobError
from serving.jobs.job import MOST_ATTEMPTS, Job
from serving.jobs.layout import Folder
from serving.jobs.records import with_audio
from serving.jobs.store import JobStore
from storage import Storage, StorageError
from tests.support.buckets import GOOGLE, S3, bucket_servers
from tests.support.fakes import LYRICS, FakeClock, new_folder
from tests.support.replicas import Crash, Replica, lose


@pytest.fixture(scope="module", autouse=True)
def buckets() -> Iterator[None]:
    with bucket_servers():
        yield


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
