"""Maintenance goes on past whatever is full, broken or foreign: it costs at most the job that it belongs to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from inference.song import Reference, SongRequest
from serving.jobs.errors import JobError
from serving.jobs.job import Job, now
from serving.jobs.maintenance import SWEEP_SECONDS, Retention
from serving.jobs.records import End, seconds_left
from storage import Storage, StorageError
from tests.support.fakes import LYRICS, FakeClock, FakeEngine, new_folder
from tests.support.replicas import Replica, lose


@pytest.fixture
def storage() -> Storage:
    return Storage.at(new_folder())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def run_song(server: Replica) -> str:
    """One song from its beginning to its end; its job's id."""
    job = server.submit(None)
    server.begin()
    server.finish()
    assert job.state == "succeeded"
    return job.id


def test_a_song_that_finds_no_room_keeps_no_other_from_its_end(storage: Storage, clock: FakeClock) -> None:
    server, other, lost = (
        Replica(storage, clock, Retention(limit_bytes=1)),
        Replica(storage, clock),
        Replica(storage, clock),
    )
    old = run_song(server)
    stuck, unwanted, orphan = server.submit(None), server.submit(None), lost.submit(None)
    server.begin()
    server.storage.too_large = "/audio-"
    server.finish()
    other.jobs.cancel(unwanted.id)
    lose(clock, server)
    assert unwanted.state == "cancelled"
    assert server.queue.find(orphan.id)
    with pytest.raises(JobError, match="deleted"):  # which makes room
        server.jobs.get(old)
    server.storage.too_large = ""
    server.run_round()
    assert other.jobs.get(stuck.id).state == "succeeded"


def test_a_song_that_finds_no_room_keeps_no_other_from_the_next_server(storage: Storage, clock: FakeClock) -> None:
    server, other, engine = Replica(storage, clock), Replica(storage, clock), FakeEngine()
    _, running, queued = (server.submit(None) for _ in range(3))
    server.begin()
    server.begin()
    running.engine = engine
    server.storage.too_large = "/audio-"
    server.finish()
    server.jobs.drain()
    server.run_round()
    other.run_round()
    assert [job.id for job in other.queue.living()] == [queued.id]
    lose(clock, other)  # the server is killed while a song runs
    adopted = other.queue.find(running.id)
    assert adopted and adopted.attempts == 0  # it was told to stop, so that it was begun does not count
    engine.close()


def test_every_end_counts_once_whoever_writes_it(storage: Storage, clock: FakeClock) -> None:
    """Interrupted, cancelled after its server's death, unreadable, and the song that two servers made."""
    servers = [Replica(storage, clock, max_queue=9) for _ in range(4)]
    counted: list[tuple[str, str]] = []
    for server in servers:
        server.queue.on_end = lambda job: counted.append((job.id, job.state))
    lost, other, third, last = servers
    cancelled, unread, interrupted = (lost.submit(None) for _ in range(3))
    other.jobs.cancel(cancelled.id)
    empty(storage, unread.id)
    lose(clock, other, third, last)
    assert other.queue.find(interrupted.id) and not third.queue.living()
    other.begin()
    for server in (third, last):
        lose(clock, *servers[servers.index(server) :])
        server.begin()
    lose(clock, last)
    made = last.submit(None)
    last.begin()
    lose(clock, third)  # which takes the song of the last one, that only stood still
    third.begin()
    third.finish()
    last.finish()
    for server in servers:
        server.run_round()
    ends = {cancelled.id: "cancelled", unread.id: "failed", interrupted.id: "interrupted", made.id: "succeeded"}
    assert sorted(counted) == sorted(ends.items())


@pytest.mark.parametrize("after_writing", [False, True])
def test_an_end_that_is_written_at_the_second_try_counts_once(
    storage: Storage, clock: FakeClock, after_writing: bool
) -> None:
    lost, server = Replica(storage, clock), Replica(storage, clock)
    counted: list[str] = []
    server.queue.on_end = lambda job: counted.append(job.state)
    job = lost.submit(None)
    empty(storage, job.id)
    lose_with_a_broken_write(clock, server, f"{job.id}/end.json", after_writing)
    assert counted == []
    for _ in range(2):
        server.run_round()
    assert (counted, server.jobs.get(job.id).state, server.queue.living()) == (["failed"], "failed", [])


def lose_with_a_broken_write(clock: FakeClock, server: Replica, path: str, after_writing: bool) -> None:
    """Let what is silent count as lost, while the write of that path fails, or its answer does."""
    put = server.storage.put

    def failing(at: str, content: bytes, *, create: bool = False) -> None:
        if path in at:
            if after_writing:
                put(at, content, create=create)
            raise StorageError(f"{at}: the bucket is away", "unavailable")
        put(at, content, create=create)

    server.storage.put = failing  # type: ignore[method-assign]
    lose(clock, server)
    server.storage.put = put  # type: ignore[method-assign]


def test_a_deadline_goes_on_at_the_next_server(storage: Storage, clock: FakeClock) -> None:
    one, other, third = (Replica(storage, clock) for _ in range(3))
    job = Job(SongRequest("pop", LYRICS, 1), "tiny", deadline=time.monotonic() + 100)
    one.jobs.submit(job)
    job.deadline = time.monotonic() + 10  # a minute and a half later
    one.jobs.close()
    other.run_round()
    (adopted,) = other.queue.living()
    assert 0 < (seconds_left(adopted) or 0) <= 10
    lose(clock, third)  # the other one is killed
    (adopted,) = third.queue.living()
    assert 0 < (seconds_left(adopted) or 0) <= 10
    adopted.deadline = time.monotonic()
    third.run_round()
    assert third.jobs.get(job.id).state == "failed"


def submit_three(server: Replica) -> list[str]:
    """The ids of three jobs with reference audio, each with a request id of its own; first the one looked at first."""
    request = SongRequest("pop", LYRICS, 1, reference=Reference(mix=b"audio"))
    jobs = [Job(request, "tiny", request_id=f"key-{number}", fingerprint="1") for number in range(3)]
    return sorted(server.jobs.submit(job).id for job in jobs)


def key_of(server: Replica, job_id: str) -> str:
    return next(f"key-{number}" for number in range(3) if server.store.keys.find(f"key-{number}").job_id == job_id)


def change(storage: Storage, job_id: str, edit: Callable[[dict], object]) -> None:
    order = json.loads(storage.get(f"jobs/{job_id}/job.json"))
    edit(order)
    storage.put(f"jobs/{job_id}/job.json", json.dumps(order).encode())


def empty(storage: Storage, job_id: str) -> None:
    storage.put(f"jobs/{job_id}/job.json", b"")


def lose_a_field(storage: Storage, job_id: str) -> None:
    change(storage, job_id, lambda order: order["request"].pop("lyrics"))


def lose_the_request(storage: Storage, job_id: str) -> None:
    change(storage, job_id, lambda order: order.pop("request"))


def lose_the_reference(storage: Storage, job_id: str) -> None:
    storage.delete(f"jobs/{job_id}/reference-mix")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (empty, "cannot be read any more"),
        (lose_a_field, "cannot be read any more"),
        (lose_the_request, "cannot be read any more"),
        (lose_the_reference, "the reference audio is lost"),
    ],
)
def test_a_job_that_cannot_be_generated_any_more_fails_alone(
    storage: Storage, clock: FakeClock, damage: Callable[[Storage, str], None], words: str
) -> None:
    server = Replica(storage, clock)
    broken, *sound = submit_three(Replica(storage, clock))
    key = key_of(server, broken)
    damage(storage, broken)
    assert set(sound) <= {job.id for job in server.jobs.list()}
    lose(clock, server)
    assert [job.id for job in sorted(server.queue.living(), key=lambda job: job.id)] == sound
    (end,) = (job for job in server.jobs.list() if job.id == broken)
    assert end.state == "failed" and words in str(end.error)
    assert server.submit(key).id == broken  # whoever asks again hears of it, and no other song is made
    with pytest.raises(JobError, match="another request"):
        server.submit(key, seed=2)


def test_a_broken_job_of_a_server_that_lives_is_left_to_it(storage: Storage, clock: FakeClock) -> None:
    one, other = Replica(storage, clock), Replica(storage, clock)
    broken, *_ = submit_three(one)
    empty(storage, broken)
    other.run_round()
    assert one.queue.find(broken) and one.store.folder(broken).claim == 0
    with pytest.raises(StorageError, match="is not JSON"):
        other.jobs.get(broken)


def test_a_broken_job_is_forgotten_in_time(storage: Storage, clock: FakeClock) -> None:
    server = Replica(storage, clock, Retention(limit_bytes=0))
    broken, *_ = submit_three(Replica(storage, clock))
    key = key_of(server, broken)
    empty(storage, broken)
    lose(clock, server)
    for _ in range(2):
        server.begin()
        server.finish()
    clock.advance(SWEEP_SECONDS)
    server.run_round()
    assert not storage.entries(f"jobs/{broken}")
    assert server.submit(key).id != broken


def test_what_a_newer_server_wrote_beyond_our_fields_is_passed_over(storage: Storage, clock: FakeClock) -> None:
    server = Replica(storage, clock)
    newer, *others = submit_three(Replica(storage, clock))
    change(storage, newer, lambda order: order["request"].update(tempo=120))
    change(storage, newer, lambda order: order["request"]["reference"].update(loudness=1.0))
    lose(clock, server)
    assert {job.id for job in server.queue.living()} == {newer, *others}
    assert server.queue.living()[0].request.reference == Reference()
    assert server.store.reference(newer) == {"mix": b"audio"}


def test_a_sign_of_life_that_cannot_be_read_is_one_all_the_same(storage: Storage, clock: FakeClock) -> None:
    server, lost = Replica(storage, clock), Replica(storage, clock)
    job = lost.submit(None)
    storage.put(f"live/replicas/{lost.store.replica}", b"")
    server.run_round()
    assert not server.queue.living()
    lose(clock, server)
    assert server.queue.find(job.id)


def test_files_of_others_between_ours_change_nothing(storage: Storage, clock: FakeClock) -> None:
    server = Replica(storage, clock, Retention(limit_bytes=1))
    old, new = run_song(server), run_song(server)
    odd = ("ended/.DS_Store", "ended/1-2", "ended/1-2-3", "ended/x/y", "live/x", "live/open/x", "live/cancel/x/y")
    for path in odd:
        storage.put(path, b"")
    job = Replica(storage, clock).submit(None)
    assert {each.id for each in server.jobs.list()} == {old, new, job.id}
    lose(clock, server)
    assert {each.id for each in server.jobs.list()} == {new, job.id}
    assert server.queue.find(job.id)
    assert all(storage.exists(path) for path in odd)


def test_a_clock_that_was_behind_while_songs_were_made_forgets_none(storage: Storage, clock: FakeClock) -> None:
    behind, right = Replica(storage, clock), Replica(storage, clock, Retention(hours=1))
    jobs = [behind.submit(None) for _ in range(2)]
    for job in jobs:
        behind.queue.finish(job, End("cancelled", finished_at=now() - timedelta(days=400)))
    lose(clock, right)
    assert {job.id for job in right.jobs.list()} == {job.id for job in jobs}


def test_a_server_that_starts_with_its_clock_ahead_forgets_no_song(
    storage: Storage, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = {run_song(server) for server in (Replica(storage, clock), Replica(storage, clock))}
    monkeypatch.setattr("serving.jobs.maintenance.now", lambda: now() + timedelta(days=400))
    ahead = Replica(storage, clock, Retention(hours=1))
    lose(clock, ahead)
    assert {job.id for job in ahead.jobs.list()} == generated
