"""Answers keep to their size, tell what a queued song can expect, and refuse what would come too late."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from inference.song import SongRequest
from server import close_app
from serving.http import predictions
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from serving.jobs.wait_estimates import WaitEstimator
from storage import Storage
from tests.support.bucket_server import bucket_server
from tests.support.fakes import INSTANCE, LYRICS, SECONDS, FakeModels, Served, audio_of, problem

LIMIT = 10_000
LONG = "x" * 990  # the fake engine's audio repeats the genres, so these make a large song
MP3 = {"Accept": "audio/mpeg"}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Its songs are larger than its answers may be."""
    monkeypatch.setattr("tests.support.fakes.audio_of", lambda request, track: large_audio(track))
    served = Served(max_response_bytes=LIMIT)
    yield served
    close_app(served.app)


def large_audio(track: str) -> bytes:
    return bytes(range(256)) * 100 + track.encode()


def test_a_song_that_is_too_large_is_fetched_in_pieces(large: Served) -> None:
    response = large.predict({**INSTANCE, "request_id": "a"})
    song = response.json["predictions"][0]
    assert (song["status"], "audio" in song) == ("succeeded", False)
    assert "next_offset" in song["audio_omitted"] and song["warnings"]
    audio, offset = b"", 0
    while offset is not None:
        ask = {"job_id": song["job_id"], "operation": "result", "track": "mix", "offset": offset}
        response = large.predict(ask)
        assert len(response.data) <= LIMIT
        piece = response.json["predictions"][0]
        audio += base64.b64decode(piece["audio"])
        offset = piece["next_offset"]
    assert audio == large_audio("mix") and piece["bytes"] == len(audio)


def test_a_piece_has_the_length_that_was_asked_for(large: Served) -> None:
    ask = {"job_id": large.one(wait_seconds=0)["job_id"], "operation": "result", "track": "mix"}
    large.wait_for(ask["job_id"])
    piece = large.predict({**ask, "offset": 5, "length": 4}).json["predictions"][0]
    assert (base64.b64decode(piece["audio"]), piece["next_offset"]) == (large_audio("mix")[5:9], 9)
    assert problem(large.predict({**ask, "offset": 1_000_000}), 400)["field"] == "offset"
    assert problem(large.predict({**ask, "track": "vocal"}), 400)["allowed"] == "mix"
    assert problem(large.predict({**ask, "operation": "status"}), 400)["field"] == "track"
    assert problem(large.predict({**ask, "track": None, "offset": 3}), 400)["field"] == "track"


def test_a_raw_song_that_is_too_large_is_a_problem_that_names_its_job(large: Served) -> None:
    answer = problem(large.predict({**INSTANCE, "request_id": "a"}, headers=MP3), 400)
    assert answer["type"] == "urn:yue:problem:response-too-large" and answer["job_id"]


def test_a_client_that_could_never_get_its_song_is_told_before_it_is_generated(large: Served) -> None:
    answer = problem(large.predict(INSTANCE), 400)
    assert answer["type"] == "urn:yue:problem:response-too-large" and answer["expected"] > answer["allowed"] == LIMIT
    assert large.client.get("/jobs").json["jobs"] == []
    assert "in pieces" in answer["detail"] or "result" in answer["detail"]


def test_songs_that_would_fit_alone_and_not_together_are_told_so_before_they_are_generated(large: Served) -> None:
    expected = problem(large.predict(INSTANCE), 400)["expected"]
    served = Served(max_response_bytes=expected + 1)
    assert served.one()["warnings"] == []
    answer = problem(served.predict(*[{**INSTANCE, "seed": seed} for seed in range(8)]), 400)
    assert {error["type"] for error in answer["errors"]} == {"urn:yue:problem:response-too-large"}
    assert len(served.client.get("/jobs").json["jobs"]) == 1
    close_app(served.app)


def test_songs_that_fit_come_whole_and_several_share_one_answer() -> None:
    served = Served(max_response_bytes=LIMIT)
    instances = [{**INSTANCE, "genres": "x", "request_id": str(number)} for number in range(3)]
    response = served.predict(*instances, parameters={"seed": 1})
    assert [base64.b64decode(song["audio"]) for song in response.json["predictions"]] == [b"mix of x 1"] * 3
    assert len(response.data) <= LIMIT
    close_app(served.app)


def test_on_vertex_ai_answers_are_small_and_elsewhere_of_any_size() -> None:
    from serving.settings import Settings

    assert Settings(aip_mode="PREDICTION").max_response_bytes == 1_400_000
    assert Settings(aip_mode=None).max_response_bytes is None


def test_in_a_bucket_a_song_that_is_too_large_is_named_by_its_address() -> None:
    with bucket_server() as google:
        models = FakeModels()
        jobs = Jobs(models.manager(), JobStore(google.storage("here")), max_queue=3)
        job = jobs.submit(Job(SongRequest("pop", LYRICS, 1), "tiny"))
        assert jobs.wait(job, SECONDS)
        places = predictions.Answers(jobs, LIMIT, is_bucket=True)._elsewhere(job)
        assert places["audio_uri"] == f"gs://songs/here/jobs/{job.id}/audio-0/mix.mp3"
        assert google.objects[places["audio_uri"].removeprefix("gs://songs/")][0] == audio_of(job.request, "mix")
        jobs.close()


def test_a_bucket_signs_an_address_for_its_object_and_a_folder_none(tmp_path: Any) -> None:
    from obstore.store import S3Store

    store = S3Store("songs", prefix="here", region="us-east-1", access_key_id="a", secret_access_key="b")
    signed = Storage(store, "s3://songs/here").sign("jobs/1/mix.mp3", 60)
    assert signed and "/here/jobs/1/mix.mp3?" in signed and "X-Amz-Expires=60" in signed
    assert (Storage.at(tmp_path).sign("a", 60), Storage.at(tmp_path).uri("a")) == (None, None)


def test_places_are_given_to_songs_in_the_order_they_come() -> None:
    estimator = WaitEstimator()
    assert estimator.start_times([3.0], 2) == []  # nothing was measured
    estimator.max_songs = 2
    estimator.note(8.0)
    estimator.note(12.0)
    assert estimator.start_times([4.0, 7.0], 3) == [3.0, 6.0, 13.0]
    assert estimator.start_times([11.0], 2) == [0.0, 0.0]


def test_a_queued_song_tells_its_position_and_when_it_is_expected(held: Served) -> None:
    ids = [held.one(wait_seconds=0)["job_id"] for _ in range(3)]
    held.models.engine.wait_until_begun(1)
    second = held.client.get(f"/jobs/{ids[2]}").json
    assert (second["position"], second["expected_seconds"]) == (2, None)
    measured(held, 100.0)
    listed = {job["job_id"]: job for job in held.client.get("/jobs").json["jobs"]}
    assert [listed[job_id].get("position") for job_id in ids] == [None, 1, 2]
    assert 200 < listed[ids[2]]["expected_seconds"] <= 300


def test_a_full_queue_says_when_a_place_is_expected_to_be_free() -> None:
    served = Served(may_generate=False, max_queue=1)
    served.client.post("/download-models")
    served.one(wait_seconds=0)
    served.models.engine.wait_until_begun(1)
    served.one(wait_seconds=0)
    measured(served, 100.0)
    response = served.predict({**INSTANCE, "wait_seconds": 0})
    answer = problem(response, 429)
    assert 50 < int(response.headers["Retry-After"]) <= 100
    assert answer["position"] == 2 and 200 < answer["expected_seconds"] <= 300
    close_app(served.app)


def test_what_cannot_meet_its_deadline_is_refused_at_once(held: Served) -> None:
    held.one(wait_seconds=0)
    held.models.engine.wait_until_begun(1)
    assert held.one(wait_seconds=0, deadline_seconds=86_400)["status"] == "queued"  # nothing was measured yet
    measured(held, 100.0)
    response = held.predict({**INSTANCE, "wait_seconds": 0, "deadline_seconds": 150})
    answer = problem(response, 503)
    assert answer["type"] == "urn:yue:problem:deadline-unreachable"
    assert answer["deadline_seconds"] == pytest.approx(150, abs=20) and 200 < answer["expected_seconds"] <= 300
    assert 30 < int(response.headers["Retry-After"]) <= 150
    assert held.one(wait_seconds=0, deadline_seconds=1_000)["status"] == "queued"
    assert problem(held.predict({**INSTANCE, "deadline_seconds": 0.5}), 400)["field"] == "deadline_seconds"


def test_a_song_whose_deadline_passes_while_it_waits_is_not_generated(held: Served) -> None:
    first = held.one(wait_seconds=0)["job_id"]
    held.models.engine.wait_until_begun(1)
    answer = problem(held.predict({**INSTANCE, "deadline_seconds": 1}), 504)
    assert answer["type"] == "urn:yue:problem:deadline-passed"
    assert held.client.get(f"/jobs/{answer['job_id']}").json["status"] == "failed"
    held.models.engine.release()
    held.wait_for(first)
    assert held.models.engine.generated == [first]


def test_a_deadline_goes_from_server_to_server_as_seconds_left(held: Served) -> None:
    job_id = held.one(wait_seconds=0, deadline_seconds=1_000)["job_id"]
    stored = held.app.extensions["yue"].jobs._store.read(job_id)
    ours = held.app.extensions["yue"].jobs.get(job_id)
    assert stored is not ours and stored.deadline == pytest.approx(ours.deadline, abs=SECONDS)


def test_whatever_delete_does_post_does_too(held: Served) -> None:
    running, queued = (held.one(wait_seconds=0)["job_id"] for _ in range(2))
    held.models.engine.wait_until_begun(1)
    assert held.client.post(f"/jobs/{queued}/cancel").json["status"] == "cancelled"
    assert held.client.post(f"/jobs/{running}/cancel").json["cancel_requested"]
    assert held.client.post("/download-models/cancel").json["status"] == "nothing_to_cancel"


def measured(served: Served, seconds: float) -> None:
    """As if a song had taken so long."""
    served.app.extensions["yue"].jobs.queue.note_duration(seconds)
