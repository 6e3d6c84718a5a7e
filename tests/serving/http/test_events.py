"""Progress as server-sent events: only what is new, a finite stream, and nothing twice for who comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server import close_app
from serving.http import events
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from serving.settings import RESERVED_THREADS
from storage import Storage
from tests.support.fakes import FakeModels, Served, new_folder, problem

Event = tuple[str, str, Any]  # name, id, data


def read(chunks: Iterator[str | bytes]) -> Iterator[Event]:
    for chunk in chunks:
        text = chunk if isinstance(chunk, str) else chunk.decode()
        fields = dict(line.split(": ", 1) for line in text.strip().splitlines() if not line.startswith(":"))
        if "event" in fields:
            yield fields["event"], fields["id"], json.loads(fields["data"])


def test_a_stream_tells_each_change_once_and_ends_with_the_job(held: Served) -> None:
    job_id = held.one(wait_seconds=0)["job_id"]
    held.models.engine.wait_until_begun(1)
    response = held.client.get(f"/jobs/{job_id}/events", buffered=False)
    assert response.mimetype == "text/event-stream"
    told = read(response.iter_encoded())
    name, _, data = next(told)
    assert (name, data["status"], data["progress"]["stage"]) == ("progress", "running", "stage1")
    held.models.engine.release()
    rest = list(told)
    response.close()
    assert [name for name, _, _ in rest] == ["end"]
    assert rest[0][2]["status"] == "succeeded" and rest[0][2]["tracks"]["mix"]["bytes"]
    assert "audio" not in rest[0][2]
    assert held.waiters == 0


def test_a_finished_job_tells_its_end_at_once_and_who_has_heard_it_nothing(held: Served) -> None:
    held.models.engine.release()
    job_id = held.one()["job_id"]
    for method in (held.client.get, held.client.post):
        with method(f"/jobs/{job_id}/events") as response:
            ((name, event_id, _),) = read(iter(response.data.decode().split("\n\n")))
        assert name == "end"
    assert held.client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": event_id}).status_code == 204
    assert held.waiters == 0
    problem(held.client.get("/jobs/none/events"), 404)


def test_who_comes_back_goes_on_after_the_last_event(held: Served) -> None:
    job_id = held.one(wait_seconds=0)["job_id"]
    held.models.engine.wait_until_begun(1)
    jobs = held.app.extensions["yue"].jobs
    _, event_id, _ = next(read(events.stream(jobs, jobs.get(job_id), None, lambda: False)))
    again = read(events.stream(jobs, jobs.get(job_id), event_id, lambda: held.models.engine.release() or False))
    assert [name for name, _, _ in again] == ["end"]


def test_another_servers_job_is_followed_to_its_end() -> None:
    folder = new_folder()
    served = Served(may_generate=False, data=folder)
    served.client.post("/download-models")
    job_id = served.one(wait_seconds=0)["job_id"]
    served.models.engine.wait_until_begun(1)
    other = Jobs(FakeModels().manager(), JobStore(Storage.at(folder)), max_queue=3)
    told = read(events.stream(other, other.get(job_id), None, lambda: False))
    assert next(told)[2]["job_id"] == job_id
    served.models.engine.release()
    *_, (name, _, data) = told
    assert (name, data["status"]) == ("end", "succeeded")
    other.close()
    close_app(served.app)


def test_a_stream_of_a_queued_job_tells_its_position(held: Served) -> None:
    first, second = (held.one(wait_seconds=0)["job_id"] for _ in range(2))
    held.models.engine.wait_until_begun(1)
    jobs = held.app.extensions["yue"].jobs
    told = read(events.stream(jobs, jobs.get(second), None, lambda: False))
    assert next(told)[2]["position"] == 1
    jobs.cancel(second)
    assert [(name, data["status"]) for name, _, data in told] == [("end", "cancelled")]
    assert jobs.get(first).state == "running"


def test_silence_is_broken_by_a_comment(held: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.0)
    monkeypatch.setattr(events, "PEEK_SECONDS", 0.01)
    job_id = held.one(wait_seconds=0)["job_id"]
    held.models.engine.wait_until_begun(1)
    jobs = held.app.extensions["yue"].jobs
    stream = events.stream(jobs, jobs.get(job_id), None, lambda: False)
    assert any(chunk.startswith(":") for _, chunk in zip(range(4), stream, strict=False))


def test_a_stream_ends_when_the_server_leaves_its_job_to_others(held: Served) -> None:
    held.one(wait_seconds=0)
    held.models.engine.wait_until_begun(1)
    queued = held.one(wait_seconds=0)["job_id"]
    jobs = held.app.extensions["yue"].jobs
    told = read(events.stream(jobs, jobs.get(queued), None, lambda: False))
    assert next(told)[0] == "progress"
    jobs.drain()
    assert all(name == "progress" for name, _, _ in told)


def test_streams_take_slots_and_a_head_request_does_not_keep_one() -> None:
    served = Served(may_generate=False, threads=RESERVED_THREADS + 1)
    served.client.post("/download-models")
    job_id = served.one(wait_seconds=0)["job_id"]
    served.client.head(f"/jobs/{job_id}/events").close()
    assert served.waiters == 0
    open_one = served.client.get(f"/jobs/{job_id}/events", buffered=False)
    assert "Retry-After" in served.client.get(f"/jobs/{job_id}/events").headers
    assert served.client.get("/health").status_code == 200
    open_one.close()
    assert served.waiters == 0
    close_app(served.app)
