"""Jobs that are listed page by page, shown with what was asked for, and deleted, on any server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from inference.song import Reference, SongRequest
from server import close_app
from serving.jobs.job import Job, next_moment
from serving.jobs.listing import JobQuery
from serving.settings import RESERVED_THREADS
from storage import Storage
from tests.support.fakes import INSTANCE, LYRICS, FakeClock, Served, new_folder, problem
from tests.support.replicas import Replica
from tests.support.songs import tone


@pytest.fixture
def held() -> Iterator[Served]:
    """Its engine begins songs, but ends none until told."""
    served = Served(may_generate=False, threads=RESERVED_THREADS + 3)
    served.client.post("/download-models")
    yield served
    served.models.engine.release()
    served.app.extensions["yue"].jobs.close()


def listed(served: Served, query: str = "") -> list[str]:
    return [job["job_id"] for job in served.client.get(f"/jobs{query}").json["jobs"]]


def a_life(served: Served) -> dict[str, list[str]]:
    """Job ids by their states: three songs, a cancelled one, one that is made, two that wait; each the newest first."""
    ids: dict[str, list[str]] = {"succeeded": [], "queued": []}
    served.models.engine.release()
    ids["succeeded"] = [served.one()["job_id"] for _ in range(3)][::-1]
    served.models.engine.may_generate.clear()
    ids["running"] = [served.one(wait_seconds=0)["job_id"]]
    served.models.engine.wait_until_begun(4)
    cancelled = served.one(wait_seconds=0)["job_id"]
    served.client.delete(f"/jobs/{cancelled}")
    ids["cancelled"] = [cancelled]
    ids["queued"] = [served.one(wait_seconds=0)["job_id"] for _ in range(2)][::-1]
    return ids


def test_jobs_are_listed_by_state_and_page_by_page(held: Served) -> None:
    ids = a_life(held)
    every = [*ids["queued"], *ids["running"], *ids["cancelled"], *ids["succeeded"]]
    assert listed(held) == every
    for states in ("queued", "running", "cancelled", "succeeded", "failed", "queued,succeeded", "cancelled,running"):
        wanted = [job_id for job_id in every if any(job_id in ids.get(state, []) for state in states.split(","))]
        assert listed(held, f"?status={states}") == wanted
    assert listed(held, "?status=queued&status=succeeded") == ids["queued"] + ids["succeeded"]
    assert listed(held, "?status=succeeded&limit=1") == ids["succeeded"][:1]
    for limit in range(1, 9):
        assert pages(held, f"limit={limit}") == every
        assert pages(held, f"status=succeeded,queued&limit={limit}") == ids["queued"] + ids["succeeded"]
    for place, job_id in enumerate(every):
        assert listed(held, f"?before={job_id}") == every[place + 1 :]


def pages(served: Served, query: str) -> list[str]:
    """All that is listed, over as many pages as it takes."""
    found: list[str] = []
    answer: Any = served.client.post(f"/jobs?{query}").json
    while True:
        found += [job["job_id"] for job in answer["jobs"]]
        if answer["next"] is None:
            return found
        answer = served.client.get(f"/jobs?{query}&before={answer['next']}").json


def test_a_page_begins_where_the_last_one_ended_whatever_happens_meanwhile(held: Served) -> None:
    ids = a_life(held)
    first: Any = held.client.get("/jobs?limit=5&status=cancelled,succeeded,running,queued").json
    held.client.delete(f"/jobs/{first['jobs'][-1]['job_id']}")
    held.one(wait_seconds=0)
    assert listed(held, f"?before={first['next']}") == ids["succeeded"][1:]


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("state=failed", ["state"]),
        ("status=failed&page=2&foo=", ["page", "foo"]),
        ("status=done", ["status"]),
        ("status=", ["status"]),
        ("status=failed,", ["status"]),
        ("limit=0", ["limit"]),
        ("limit=1001", ["limit"]),
        ("limit=-1", ["limit"]),
        ("limit=1.5", ["limit"]),
        ("limit=٣", ["limit"]),
        ("limit=1&limit=2", ["limit"]),
        ("limit=9999999999999999999999", ["limit"]),
        ("before=", ["before"]),
        ("before=../../x", ["before"]),
        ("limit=x&status=y&before=z", ["status", "limit", "before"]),
    ],
)
def test_what_the_list_cannot_be_asked_is_refused_by_name(held: Served, query: str, fields: list[str]) -> None:
    answer = problem(held.client.get(f"/jobs?{query}"), 400)
    named = [error["field"] for error in answer["errors"]] if "errors" in answer else [answer["field"]]
    assert named == fields and "allowed" in answer["detail"]


def test_a_page_behind_a_job_that_is_not_here_is_not_found(held: Served) -> None:
    assert problem(held.client.get(f"/jobs?before={'0' * 32}"), 404)["field"] == "before"


def test_the_list_is_the_same_on_every_server() -> None:
    storage, clock = Storage.at(new_folder()), FakeClock()
    one, other = Replica(storage, clock, max_queue=9), Replica(storage, clock)
    waiting = [one.submit(None) for _ in range(5)]
    for _ in range(3):
        one.begin()
        one.finish()
    one.begin()
    for query in (JobQuery(), JobQuery(frozenset({"succeeded"}), 2), JobQuery(frozenset({"queued"}))):
        pages = [server.jobs.page(query) for server in (one, other)]
        assert [job.id for job in pages[0].jobs] == [job.id for job in pages[1].jobs] != []
        assert pages[0].following == pages[1].following
    assert [job.id for job in other.jobs.list()] == [waiting[place].id for place in (4, 3, 2, 1, 0)]


# -- deleting


def test_a_finished_job_is_forgotten_with_its_audio_and_key(held: Served) -> None:
    held.models.engine.release()
    song = held.one(request_id="key")
    other = Served(data=held.app.extensions["yue"].settings.data)
    assert other.client.get(song["tracks"]["mix"]["url"]).status_code == 200
    answer: Any = held.client.delete(f"/jobs/{song['job_id']}").json
    assert (answer["deleted"], answer["status"], answer["job_id"]) == (True, "succeeded", song["job_id"])
    for served in (held, other):
        problem(served.client.get(f"/jobs/{song['job_id']}"), 404)
        problem(served.client.get(song["tracks"]["mix"]["url"]), 404)
        problem(served.client.delete(f"/jobs/{song['job_id']}"), 404)
        assert listed(served) == []
    storage = Storage.at(held.app.extensions["yue"].settings.data)
    assert not [entry.path for folder in ("jobs", "keys", "ended") for entry in storage.entries(folder)]
    assert other.one(request_id="key")["job_id"] != song["job_id"]
    other.app.extensions["yue"].jobs.close()


def test_deleting_an_unfinished_job_cancels_it_and_cancelling_a_finished_one_keeps_it(held: Served) -> None:
    running, queued = (held.one(wait_seconds=0)["job_id"] for _ in range(2))
    held.models.engine.wait_until_begun(1)
    answer: Any = held.client.delete(f"/jobs/{queued}").json
    assert (answer["status"], answer["deleted"]) == ("cancelled", False)
    assert held.client.get(f"/jobs/{queued}").json["status"] == "cancelled"
    assert held.client.delete(f"/jobs/{running}").json["cancel_requested"]
    held.wait_for(running)
    for job_id in (running, queued):
        assert held.client.post(f"/jobs/{job_id}/cancel").json["status"] == "cancelled"
        assert held.predict({"job_id": job_id, "operation": "cancel"}).json["predictions"][0]["status"] == "cancelled"
    assert set(listed(held)) == {running, queued}
    assert held.predict({"job_id": queued, "operation": "delete"}).json["predictions"][0]["deleted"]
    problem(held.predict({"job_id": queued, "operation": "delete"}), 404)
    assert listed(held) == [running]


def test_jobs_that_are_deleted_by_many_at_once_are_deleted_once(held: Served) -> None:
    held.models.engine.release()
    job_ids = [held.one(request_id=f"key-{number}")["job_id"] for number in range(4)]
    other = Served(data=held.app.extensions["yue"].settings.data)
    with ThreadPoolExecutor(8) as pool:
        asked = [(served, job_id) for job_id in job_ids for served in (held, other, held, other)]
        answers = list(pool.map(lambda ask: ask[0].app.test_client().delete(f"/jobs/{ask[1]}"), asked))
    for first in range(0, len(answers), 4):
        statuses = sorted(answer.status_code for answer in answers[first : first + 4])
        assert statuses[0] == 200 and set(statuses) <= {200, 404}, [answer.text for answer in answers]
    assert listed(held) == listed(other) == []
    storage = Storage.at(held.app.extensions["yue"].settings.data)
    assert not [entry.path for folder in ("jobs", "keys", "ended") for entry in storage.entries(folder)]
    other.app.extensions["yue"].jobs.close()


# -- what was asked for


def test_what_was_asked_for_is_shown_on_any_server_also_when_it_is_done() -> None:
    folder = new_folder()
    served = Served(data=folder)
    wanted = {
        "segments": 1,
        "max_new_tokens": 500,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.2,
        "guidance_scale": 2,
        "format": "flac",
        "tracks": ["vocal", "mix"],
        "deadline_seconds": 900.0,
        "model": "tiny",
    }
    song = served.one(**wanted)
    asked = {**INSTANCE, **wanted, "guidance_scale": [2, 2], "seed": song["seed"], "reference": None}
    assert song["request"] == asked
    plain = served.one()
    defaults = SongRequest("", "", plain["seed"])
    assert plain["request"]["max_new_tokens"] == defaults.max_new_tokens and plain["request"]["segments"] is None
    served.app.extensions["yue"].jobs.close()
    other = Served(data=folder)
    assert other.client.get(f"/jobs/{song['job_id']}").json["request"] == asked
    for operation in ("status", "result"):
        told: Any = other.predict({"job_id": song["job_id"], "operation": operation}).json
        assert told["predictions"][0]["request"] == asked
    other.app.extensions["yue"].jobs.close()


def test_reference_audio_is_shown_as_names_and_sizes_only(held: Served) -> None:
    audio = tone(3.0)
    reference = Reference(vocal=audio, instrumental=audio, start_seconds=0.5, end_seconds=2.5)
    job = Job(SongRequest("pop", LYRICS, 1, reference=reference), "tiny")
    job.told_reference = {"start_seconds": 0.5, "end_seconds": 2.5, "vocal": {"name": "voice.wav"}}
    jobs = held.app.extensions["yue"].jobs
    jobs.submit(job)
    file = {"name": None, "bytes": len(audio)}
    expected = {"vocal": {**file, "name": "voice.wav"}, "instrumental": file, "start_seconds": 0.5, "end_seconds": 2.5}
    assert held.client.get(f"/jobs/{job.id}").json["request"]["reference"] == expected
    held.models.engine.release()
    held.wait_for(job.id)
    other = Served(data=held.app.extensions["yue"].settings.data)
    for served in (held, other):
        assert served.client.get(f"/jobs/{job.id}").json["request"]["reference"] == expected
    other.app.extensions["yue"].jobs.close()


def test_the_list_shows_only_how_long_lyrics_begin(held: Served) -> None:
    lyrics = "[verse]\n" + "la " * 6_000
    job_id = held.one(lyrics=lyrics, wait_seconds=0)["job_id"]
    (job,) = held.client.get("/jobs").json["jobs"]
    assert len(job["request"]["lyrics"]) == 200 and lyrics.startswith(job["request"]["lyrics"].rstrip("…"))
    assert held.client.get(f"/jobs/{job_id}").json["request"]["lyrics"] == lyrics


def test_a_job_whose_record_is_no_file_hides_no_other_from_the_list() -> None:
    data = new_folder()
    first = Served(data=data)
    broken, whole = (first.one(request_id=name)["job_id"] for name in ("a", "b"))
    record = Path(str(data)) / "jobs" / broken / "end.json"
    record.unlink()
    record.symlink_to(record)
    other = Served(data=data)
    assert whole in [job["job_id"] for job in other.client.get("/jobs").json["jobs"]]
    for served in (first, other):
        close_app(served.app)


def test_jobs_made_in_one_millisecond_keep_their_order() -> None:
    moments = [next_moment() for _ in range(100)]
    milliseconds = [int(moment.timestamp() * 1_000) for moment in moments]
    assert milliseconds == sorted(set(milliseconds))
