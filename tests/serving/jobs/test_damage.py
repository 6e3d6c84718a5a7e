"""Foreign files, damaged records and values out of range in a storage cost the one job that they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from inference.song import MAX_NEW_TOKENS, Reference, SongRequest
from serving.http import job_views
from serving.jobs.errors import JobError
from serving.jobs.job import Job
from serving.jobs.maintenance import SWEEP_SECONDS, Retention
from storage import Storage, StorageError
from tests.support.fakes import LYRICS, FakeClock, Served, new_folder
from tests.support.real_server import until
from tests.support.replicas import Replica, lose

ROUNDS = 4
NESTED = b'{"a":' * 100_000
GARBAGE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b"\xff\xfe\x00",
    NESTED,
    b"[" * 100_000,
    b'{"request": "\\ud800"}',
    b'{"id": null, "request": [], "job_id": null, "fingerprint": [], "replica": {}, "state": 7, "song": 1}',
]


@pytest.fixture
def storage() -> Storage:
    return Storage.at(new_folder())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def change(storage: Storage, path: str, edit: Callable[[Any], object]) -> None:
    record = json.loads(storage.get(path))
    edit(record)
    storage.put(path, json.dumps(record).encode())


def set_field(*path: str | int, to: object) -> Callable[[Any], None]:
    def edit(record: Any) -> None:
        for name in path[:-1]:
            record = record[name]
        record[path[-1]] = to

    return edit


OUT_OF_RANGE = [
    ("max_new_tokens", 1_000_000_000),
    ("max_new_tokens", MAX_NEW_TOKENS + 1),
    ("max_new_tokens", 0),
    ("max_new_tokens", "3000"),
    ("temperature", -1),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -1),
    ("top_k", 10**6),
    ("repetition_penalty", 0),
    ("seed", -1),
    ("seed", None),
    ("seed", 2**70),
    ("seed", True),
    ("segments", 0),
    ("segments", 5_000),
    ("guidance_scale", [1.5]),
    ("guidance_scale", [0, 100]),
    ("guidance_scale", [1.5, 1.2, 1.1]),
    ("guidance_scale", {"a": 1}),
    ("format", "aiff"),
    ("tracks", []),
    ("tracks", ["drums"]),
    ("tracks", ["mix", "mix"]),
    ("tracks", "mix"),
    ("genres", ""),
    ("genres", "a" * 1_001),
    ("genres", 7),
    ("lyrics", "no tag"),
    ("lyrics", "[verse]\n" * 5_000),
    ("lyrics", "[verse]\n" + "a" * 20_000),
    ("lyrics", ["[verse]"]),
    ("reference", {"parts": ["mix"], "start_seconds": 9, "end_seconds": 1}),
    ("reference", {"parts": ["mix"], "start_seconds": -5, "end_seconds": 10**9}),
    ("reference", {"parts": ["mix", "vocal"], "start_seconds": 0, "end_seconds": 30}),
    ("reference", {"parts": ["../../keys"], "start_seconds": 0, "end_seconds": 30}),
    ("reference", {"parts": [], "start_seconds": 0, "end_seconds": 30}),
    ("reference", 7),
]


def test_what_is_stored_is_held_to_the_ranges_of_a_request(storage: Storage, clock: FakeClock) -> None:
    """Each such job fails alone, with its reason; no engine ever hears of it."""
    lost, server = Replica(storage, clock, max_queue=99), Replica(storage, clock, max_queue=99)
    good = lost.submit("good")
    reference = Reference(mix=b"audio")
    damaged = {}
    for field, value in OUT_OF_RANGE:
        request = SongRequest("pop", LYRICS, 1, reference=reference if field == "reference" else None)
        job = lost.jobs.submit(Job(request, "tiny", request_id=f"key-{len(damaged)}", fingerprint="1"))
        change(storage, f"jobs/{job.id}/job.json", set_field("request", field, to=value))
        damaged[job.id] = field, value
    lose(clock, server)
    assert [job.id for job in server.queue.living()] == [good.id]
    for job_id, (field, value) in damaged.items():
        ended = server.jobs.get(job_id)
        assert ended.state == "failed" and field in str(ended.error), (field, value, ended.state, ended.error)
        assert ended.request_id
    assert server.jobs.get(good.id).state == "queued"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds_left", "soon"),
        ("seconds_left", -1),
        ("created_at", "yesterday"),
        ("created_at", "9999-12-31T23:59:59+00:00"),
        ("request_id", "two words"),
        ("warnings", [1]),
        ("model", None),
        ("origin", {"trace_id": ["x"]}),
        ("id", "0" * 32),
        ("id", "../../keys"),
        ("request", None),
    ],
)
def test_a_job_of_which_another_field_is_wrong_fails_alone(
    storage: Storage, clock: FakeClock, field: str, value: object
) -> None:
    lost, server = Replica(storage, clock), Replica(storage, clock)
    job, good = lost.submit("key"), lost.submit(None)
    change(storage, f"jobs/{job.id}/job.json", set_field(field, to=value))
    lose(clock, server)
    assert [each.id for each in server.queue.living()] == [good.id]
    assert (server.jobs.get(job.id).state, server.submit("key").id) == ("failed", job.id)


def test_foreign_files_in_a_jobs_folder_are_passed_over(storage: Storage, clock: FakeClock) -> None:
    lost, server, last = (Replica(storage, clock) for _ in range(3))
    job = lost.submit(None)
    names = "claim-1.bak claim-x claim- claim-01 claim--1 claim-1/x claim-9²  start-x start-1 start-0-1.bak start-a-b"
    names += " end.json.tmp end.json.bak old/end.json handed-x leaving-0~ audio-x/mix.mp3 reference-.txt .DS_Store"
    for name in names.split():
        storage.put(f"jobs/{job.id}/{name}", b"x")
    lose(clock, server)
    assert [each.id for each in server.queue.living()] == [job.id]
    server.begin()
    lose(clock, last)
    (adopted,) = last.queue.living()
    assert (adopted.id, adopted.claim, adopted.attempts) == (job.id, 3, 1)  # claim-1 is a folder
    last.begin()
    last.finish()
    heard = Replica(storage, clock).jobs.get(job.id)
    assert heard.state == "succeeded" and heard.song and heard.song.audio["mix"]


@pytest.mark.parametrize("content", GARBAGE)
def test_a_job_that_nobody_can_read_hides_no_other_and_is_reported_once(
    storage: Storage, clock: FakeClock, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    owner, server = Replica(storage, clock), Replica(storage, clock)
    unread, other = owner.submit("key"), owner.submit(None)
    storage.put(f"jobs/{unread.id}/job.json", content)
    for _ in range(ROUNDS):
        owner.store.beat()
        server.run_round()
        assert other.id in {job.id for job in server.jobs.list()}
    assert len([line for line in caplog.messages if unread.id in line]) <= 2
    assert not [record for record in caplog.records if record.exc_info]
    lose(clock, server)
    assert server.jobs.get(unread.id).state == "failed" and server.queue.find(other.id)
    assert server.submit("key").state == "failed"


@pytest.mark.parametrize("content", GARBAGE)
def test_an_end_that_nobody_can_read_is_an_end(storage: Storage, clock: FakeClock, content: bytes) -> None:
    server, other = Replica(storage, clock, Retention(limit_bytes=0)), Replica(storage, clock)
    job = server.submit("key")
    server.begin()
    server.finish()
    storage.put(f"jobs/{job.id}/end.json", content)
    ended = other.jobs.get(job.id)
    assert ended.state == "failed" and "how the job ended cannot be read" in str(ended.error)
    assert other.submit("key").id == job.id
    assert job.id in {each.id for each in other.jobs.list()}


NO_JSON = {
    b"": "is not JSON: EOF",
    b"{": "is not JSON",
    b"[]": "is not a JSON object",
    b"\xff\xfe\x00": "is not JSON",
}


@pytest.mark.parametrize("content", NO_JSON)
def test_a_file_that_is_not_json_is_told_as_such(
    storage: Storage, clock: FakeClock, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    lost, server = Replica(storage, clock), Replica(storage, clock)
    done, unread, begun = lost.submit("key"), lost.submit(None), lost.submit(None)
    lost.begin()
    lost.finish()
    lost.store.note(begun)
    (key,) = (entry.path for entry in storage.entries("keys"))
    names = {"end": f"jobs/{done.id}/end.json", "job": f"jobs/{unread.id}/job.json", "key": key}
    names["progress"] = f"jobs/{begun.id}/progress.json"
    for path in names.values():
        storage.put(path, content)
    told = {name: f"{path} {NO_JSON[content]}" for name, path in names.items()}
    with pytest.raises(StorageError, match=" JSON"):
        server.jobs.get(unread.id)
    lose(clock, server)
    assert told["job"] in str(server.jobs.get(unread.id).error)
    assert told["end"] in str(server.jobs.get(done.id).error)
    server.submit("key")
    assert server.jobs.get(begun.id).state == "queued"
    assert told["key"] in caplog.text and told["progress"] in caplog.text


def test_a_detail_of_an_end_that_nobody_can_read_does_not_cost_the_song(storage: Storage, clock: FakeClock) -> None:
    server, other = Replica(storage, clock), Replica(storage, clock)
    job = server.submit(None)
    server.begin()
    server.finish()
    details = ("progress", "started_at", "finished_at", "attempts", "model", "cancel_requested")
    parts = [(name,) for name in details] + [("song", name) for name in ("timings", "warnings", "segments")]
    for detail in parts:
        change(storage, f"jobs/{job.id}/end.json", set_field(*detail, to={"tokens": 0.8, "": [None]}))
        heard = other.jobs.get(job.id)
        assert heard.state == "succeeded" and heard.song and heard.song.audio["mix"], detail
        json.dumps(job_views.job_view(heard))


@pytest.mark.parametrize("content", GARBAGE)
def test_a_job_whose_end_is_broken_before_it_ends_is_settled_and_forgotten(
    storage: Storage, clock: FakeClock, content: bytes
) -> None:
    server = Replica(storage, clock, Retention(limit_bytes=0))
    job = server.submit(None)
    server.begin()
    storage.put(f"jobs/{job.id}/end.json", content)
    server.finish()
    assert (job.state, server.queue.living()) == ("failed", [])
    server.run_round()
    assert not storage.entries("live/open")
    for _ in range(2):
        server.submit(None)
        server.begin()
        server.finish()
    clock.advance(SWEEP_SECONDS)
    server.run_round()
    assert not storage.entries(f"jobs/{job.id}")


@pytest.mark.parametrize(
    "content", [*GARBAGE, b'{"job_id": "../x", "fingerprint": "1"}', b'{"job_id": 7, "fingerprint": "1"}']
)
def test_a_key_that_nobody_can_read_is_reported_and_taken_over(
    storage: Storage, clock: FakeClock, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    one, other = Replica(storage, clock), Replica(storage, clock)
    first = one.submit("key")
    (path,) = (entry.path for entry in storage.entries("keys"))
    storage.put(path, content)
    second = other.submit("key")
    assert second.id != first.id and path in caplog.text
    assert one.submit("key").id == other.submit("key").id == second.id
    with pytest.raises(JobError, match="another request"):
        one.submit("key", seed=2)
    other.begin()
    other.finish()
    other.store.forget(next(iter(other.store.ended())))
    third = one.submit("key")
    assert third.id not in (first.id, second.id) and other.submit("key").id == third.id


def test_a_key_whose_job_nobody_can_read_nor_end_is_taken_over(storage: Storage, clock: FakeClock) -> None:
    server = Replica(storage, clock)
    job = server.submit("key")
    server.queue.let_go(job)
    storage.put(f"jobs/{job.id}/job.json", b"")
    storage.delete(f"live/open/{server.store.replica}/{job.id}")
    assert server.submit("key").id != job.id


def test_a_song_out_of_range_in_the_storage_is_answered_with_its_reason_over_http() -> None:
    served = Served(may_fetch=False)
    storage = Storage.at(served.app.extensions["yue"].settings.data)
    lost = Replica(storage, FakeClock())
    job_id = lost.submit("key").id
    change(storage, f"jobs/{job_id}/job.json", set_field("request", "max_new_tokens", to=10**9))
    lost.jobs.close()
    jobs = served.app.extensions["yue"].jobs
    jobs.maintenance.wake()
    answer: Any = until(lambda: (job := served.client.get(f"/jobs/{job_id}").json)["status"] == "failed" and job)
    assert "max_new_tokens: got 1000000000; allowed: a whole number from 100 to 6000" in answer["error"]["detail"]
    jobs.close()
