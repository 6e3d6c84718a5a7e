"""The routes as a client sees them: answers in order, problems by their form, songs as bytes, and no torch."""

from __future__ import annotations

import base64
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.errors import CheckpointError, DownloadError, EngineError
from inference.song import SongRequest
from server import close_app, create_app
from serving.jobs.listing import JobQuery, Page
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from serving.settings import RESERVED_THREADS, Settings
from storage import Storage
from tests.support.fakes import INSTANCE, LYRICS, SECONDS, FakeModels, Served, audio_of, new_folder, problem
from tests.support.paths import PROJECT

MP3 = {"Accept": "audio/mpeg"}


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


@pytest.fixture
def held() -> Iterator[Served]:
    """Its engine begins songs, but ends none until told."""
    served = Served(may_generate=False, threads=RESERVED_THREADS + 1)
    served.client.post("/download-models")
    yield served
    close_app(served.app)


def test_neither_importing_nor_building_the_app_imports_torch() -> None:
    check = (
        "import sys, server; server.create_app(); "
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", check], cwd=PROJECT, check=True, timeout=60)


def test_predict_generates_a_song(served: Served) -> None:
    prediction = served.one(seed=7, tracks=["mix", "vocal"])
    assert prediction["status"] == "succeeded"
    assert base64.b64decode(prediction["audio"]) == audio_of(SongRequest("pop", LYRICS, 7), "mix")
    assert (prediction["seed"], prediction["model"], prediction["mime_type"]) == (7, "tiny", "audio/mpeg")
    vocal = served.client.get(prediction["tracks"]["vocal"]["url"])
    assert vocal.data == base64.b64decode(prediction["tracks"]["vocal"]["audio"])


def test_predictions_keep_the_order_of_the_instances(served: Served) -> None:
    instances = [{**INSTANCE, "genres": genres} for genres in ("a", "b", "c")]
    predictions = served.predict(*instances, parameters={"seed": 1}).json["predictions"]
    generated = [base64.b64decode(prediction["audio"]) for prediction in predictions]
    assert generated == [b"mix of a 1", b"mix of b 1", b"mix of c 1"]


def test_a_bad_instance_does_not_stop_the_good_ones(served: Served) -> None:
    predictions = served.predict({"genres": "pop"}, INSTANCE, 3).json["predictions"]
    assert predictions[0]["error"]["field"] == "lyrics"
    assert predictions[0]["error"]["instance"] == "/predict#/instances/0"
    assert predictions[1]["status"] == "succeeded"
    assert predictions[2]["error"]["status"] == 400


def test_one_bad_instance_is_that_problem(served: Served) -> None:
    answer = problem(served.predict({**INSTANCE, "lyrics": "no tag"}), 400)
    assert (answer["field"], answer["line"], answer["instance"]) == ("lyrics", 1, "/predict#/instances/0")


def test_only_bad_instances_are_one_problem_that_lists_them(served: Served) -> None:
    answer = problem(served.predict({**INSTANCE, "top_p": 2}, {**INSTANCE, "seed": -2}), 400)
    assert [error["field"] for error in answer["errors"]] == ["top_p", "seed"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "named"),
    [
        (b"", "application/json", 400, "not JSON"),
        (b"{", "application/json", 400, "not JSON"),
        (b"\xff\xfe", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "nested too deeply; allowed: 32 levels"),
        (b"[]", "application/json", 400, "a JSON object"),
        (b"{}", "application/json", 400, "a list of 1 to 8 instances"),
        (b'{"instances": [1,2,3,4,5,6,7,8,9]}', "application/json", 400, "9 instances"),
        (b"{}", "text/plain", 415, "text/plain"),
        (b"x" * 200_000, "application/json", 413, "up to 150000 bytes"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_problem(body: bytes, content_type: str, status: int, named: str) -> None:
    served = Served(max_request_bytes=150_000)
    response = served.client.post("/predict", data=body, content_type=content_type)
    assert named in problem(response, status)["detail"]


def test_not_a_number_is_answered_with_valid_json(served: Served) -> None:
    body = '{"instances": [{"genres": "pop", "lyrics": "[verse]", "top_p": NaN}]}'
    response = served.client.post("/predict", data=body, content_type="application/json")
    assert problem(response, 400)["value"] == "nan"


def test_unknown_paths_and_methods_are_problems(served: Served) -> None:
    assert "/openapi.json" in problem(served.client.get("/nothing"), 404)["detail"]
    response = served.client.get("/predict")
    assert problem(response, 405)["detail"].endswith("allowed: OPTIONS, POST")
    assert "POST" in response.headers["Allow"]


def test_an_unforeseen_error_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Jobs):
        def page(self, query: JobQuery) -> Page:
            raise RuntimeError("a secret")

    manager = FakeModels().manager()
    app = create_app(Settings(), manager, Broken(manager, JobStore(Storage.at(new_folder())), max_queue=1))
    answer = problem(app.test_client().get("/jobs"), 500)
    assert "secret" not in str(answer)
    assert answer["error_id"] in caplog.text and "a secret" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"), [(EngineError("it died"), 503), (CheckpointError("stage1", "cut short"), 500)]
)
def test_a_song_that_fails_is_a_problem_with_its_job(served: Served, error: Exception, status: int) -> None:
    served.client.post("/download-models")
    served.models.engine.error = error
    answer = problem(served.predict(INSTANCE), status)
    assert answer["detail"] == str(error)
    assert served.client.get(f"/jobs/{answer['job_id']}").json["status"] == "failed"


def test_after_a_failed_download_the_next_request_generates(served: Served) -> None:
    served.models.errors.append(DownloadError("no network; check the connection"))
    response = served.predict(INSTANCE)
    assert "no network" in problem(response, 503)["detail"]
    assert "Retry-After" in response.headers
    assert served.one()["status"] == "succeeded"


def test_a_song_that_takes_longer_is_answered_with_its_job(held: Served) -> None:
    prediction = held.one(wait_seconds=0)
    assert prediction["status"] in ("queued", "running")
    assert "audio" not in prediction
    held.models.engine.release()
    held.wait_for(prediction["job_id"])
    result = held.predict({"job_id": prediction["job_id"], "operation": "result"}).json["predictions"][0]
    assert base64.b64decode(result["audio"]).startswith(b"mix of pop")


def test_the_raw_song_comes_with_its_job_and_seed(served: Served) -> None:
    response = served.predict({**INSTANCE, "seed": 5}, headers=MP3)
    assert response.status_code == 200
    assert response.mimetype == "audio/mpeg"
    assert response.data == b"mix of pop 5"
    assert response.headers["X-Seed"] == "5"
    assert response.headers["X-Job-Id"] in response.headers["Content-Disposition"]
    again = {"job_id": response.headers["X-Job-Id"], "operation": "result"}
    assert served.predict(again, headers=MP3).data == response.data


@pytest.mark.parametrize(
    ("accept", "mimetype"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("audio/*", "audio/wav"),
        ("audio/wav", "audio/wav"),
        ("application/json;q=0.5, audio/wav", "audio/wav"),
        ("application/json, audio/wav;q=0.5", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
    ],
)
def test_the_accept_header_chooses_between_json_and_bytes(served: Served, accept: str, mimetype: str) -> None:
    response = served.predict({**INSTANCE, "format": "wav"}, headers={"Accept": accept})
    assert (response.status_code, response.mimetype) == (200, mimetype)


def test_what_cannot_be_accepted_is_refused_before_it_is_generated(served: Served) -> None:
    answer = problem(served.predict({**INSTANCE, "format": "wav"}, headers=MP3), 406)
    assert "audio/wav" in answer["allowed"]
    problem(served.predict(INSTANCE, INSTANCE, headers=MP3), 406)
    assert served.client.get("/jobs").json == {"jobs": [], "next": None}


def test_raw_errors_are_problems(served: Served) -> None:
    problem(served.predict({}, headers=MP3), 400)
    problem(served.predict({"job_id": "none", "operation": "result"}, headers=MP3), 404)


def test_a_raw_song_that_takes_longer_is_answered_with_its_job(held: Served) -> None:
    response = held.predict({**INSTANCE, "wait_seconds": 0}, headers=MP3)
    assert response.status_code == 202
    assert response.headers["Location"] == f"/jobs/{response.json['job_id']}"


def test_those_who_wait_never_take_the_last_threads(held: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held.one)
        held.models.engine.wait_until_begun(1)
        assert held.one()["status"] == "queued"  # the only slot is taken: answered at once
        held.models.engine.release()
        assert first.result(SECONDS)["status"] == "succeeded"
    assert held.one()["status"] == "succeeded"  # the slot is free again


def test_a_song_or_an_operation_may_be_the_whole_body(served: Served) -> None:
    song = served.client.post("/predict", json={**INSTANCE, "seed": 3}).json["predictions"]
    assert [(each["status"], each["seed"]) for each in song] == [("succeeded", 3)]
    status = {"job_id": song[0]["job_id"], "operation": "status"}
    assert served.client.post("/predict", json=status).json["predictions"][0]["job_id"] == song[0]["job_id"]
    assert (
        served.client.post("/predict", json={"operation": "models/status"}).json["predictions"][0]["status"] == "ready"
    )
    file = served.client.post("/predict", json={**INSTANCE, "seed": 5}, headers=MP3)
    assert file.data == b"mix of pop 5"
    assert problem(served.client.post("/predict", json={"genres": "pop"}), 400)["field"] == "lyrics"


def test_a_drawn_seed_is_told_and_the_same_request_is_the_same_song(served: Served) -> None:
    drawn = served.one(seed=-1, request_id="drawn")
    assert drawn["seed"] >= 0
    assert served.one(request_id="drawn") == served.one(seed=-1, request_id="drawn") == drawn


def test_the_same_request_id_generates_once(served: Served) -> None:
    first, second = served.one(request_id="a"), served.one(request_id="a")
    assert first == second


def test_a_conflict_does_not_tell_the_id_of_the_job_that_has_the_request_id(served: Served) -> None:
    """Whoever knows a job's id may see and cancel it; the same body is the same job, and no conflict."""
    ids = [served.one(request_id="a")["job_id"]]
    both = served.predict(INSTANCE, INSTANCE, headers={"Idempotency-Key": "b"}).json["predictions"]
    ids += [prediction["job_id"] for prediction in both]
    other = {**INSTANCE, "genres": "rock"}
    answers = [
        served.predict({**other, "request_id": "a"}),
        served.predict(other, headers={"Idempotency-Key": "a"}),
        served.predict(other, INSTANCE, headers={"Idempotency-Key": "b"}),
        served.predict({**other, "request_id": "b.1"}),
        served.predict({**other, "request_id": "a"}, {**other, "request_id": "b"}),
        served.predict({**other, "request_id": "a"}, headers=MP3),
    ]
    for answer in answers:
        assert "conflict" in answer.text and not any(job_id in answer.text for job_id in ids)
        assert not any(job_id in str(answer.headers) for job_id in ids)
    assert served.one(request_id="a")["job_id"] == ids[0]


def test_a_full_queue_is_answered_with_when_to_come_back() -> None:
    served = Served(may_fetch=False, max_queue=1)
    served.one(wait_seconds=0)
    response = served.predict({**INSTANCE, "wait_seconds": 0})
    problem(response, 429)
    assert int(response.headers["Retry-After"]) > 0
    close_app(served.app)


def test_jobs_are_listed_shown_and_cancelled(held: Served) -> None:
    running = held.one(wait_seconds=0)["job_id"]
    queued = held.one(wait_seconds=0)["job_id"]
    assert [job["job_id"] for job in held.client.get("/jobs").json["jobs"]] == [queued, running]
    assert held.client.delete(f"/jobs/{queued}").json["status"] == "cancelled"
    assert held.client.post(f"/jobs/{queued}").json["error"]["status"] == 409
    problem(held.client.get("/jobs/none"), 404)
    problem(held.client.delete("/jobs/none"), 404)


def test_an_operation_on_a_job_that_is_not_named_says_what_is_missing(served: Served) -> None:
    assert problem(served.predict({"operation": "status"}), 400)["field"] == "job_id"
    assert "with a job_id status, result, cancel" in problem(served.predict({"operation": "dance"}), 400)["allowed"]


def test_every_job_operation_works_through_predict(held: Served) -> None:
    job_id = held.one(wait_seconds=0)["job_id"]
    held.models.engine.wait_until_begun(1)
    ask = {"job_id": job_id, "operation": "status"}
    assert held.predict(ask, parameters={"top_k": 3}).json["predictions"][0]["progress"]["stage"] == "stage1"
    cancelled = held.predict({"job_id": job_id, "operation": "cancel"}).json["predictions"][0]
    assert cancelled["cancel_requested"]
    held.wait_for(job_id)
    assert held.predict(ask).json["predictions"][0]["status"] == "cancelled"
    problem(held.predict({"job_id": "none", "operation": "status"}), 404)
    problem(held.predict({"job_id": job_id}), 400)


def test_audio_is_served_whole_and_in_ranges(served: Served) -> None:
    job_id = served.one(seed=1)["job_id"]
    url = f"/jobs/{job_id}/audio/mix.mp3"
    whole = served.client.get(url)
    assert (whole.data, whole.mimetype, whole.headers["Accept-Ranges"]) == (b"mix of pop 1", "audio/mpeg", "bytes")
    part = served.client.get(url, headers={"Range": "bytes=4-5"})
    assert (part.status_code, part.data) == (206, b"of")
    assert part.headers["Content-Range"] == "bytes 4-5/12"
    problem(served.client.get(url, headers={"Range": "bytes=99-"}), 416)
    assert served.client.get(url, headers={"If-None-Match": whole.headers["ETag"]}).status_code == 304


def test_audio_that_was_not_made_is_a_problem(held: Served) -> None:
    job_id = held.one(wait_seconds=0)["job_id"]
    problem(held.client.get(f"/jobs/{job_id}/audio/mix.mp3"), 409)
    held.models.engine.release()
    held.wait_for(job_id)
    assert problem(held.client.get(f"/jobs/{job_id}/audio/mix.wav"), 404)["allowed"] == ["mix.mp3"]
    assert problem(held.client.get(f"/jobs/{job_id}/audio/vocal.mp3"), 404)["allowed"] == ["mix.mp3"]
    problem(held.client.get("/jobs/none/audio/mix.mp3"), 404)


@pytest.mark.parametrize(
    ("health", "predict"),
    [
        ("/v1/endpoints/1/deployedModels/2", "/v1/endpoints/1/deployedModels/2:predict"),
        ("/health", "/predict"),
        ("/", "/"),
        ("/predict", "/health"),
    ],
)
def test_vertex_ais_own_routes_are_served_whatever_they_are(health: str, predict: str) -> None:
    served = Served(health_route=health, predict_route=predict)
    assert served.client.get(health).json["status"] == "healthy"
    assert served.client.get("/health").json["status"] == "healthy"
    for path in (predict, "/predict"):
        response = served.client.post(path, json={"instances": [INSTANCE]})
        assert response.json["predictions"][0]["status"] == "succeeded"
    close_app(served.app)


def test_a_folder_that_cannot_be_written_refuses_songs_and_leaves_the_rest_alive(tmp_path: Path) -> None:
    served = Served(data=tmp_path)
    (tmp_path / "jobs").write_text("in the way")  # root may write anywhere, so no permission would refuse this
    answer = problem(served.predict(INSTANCE), 503)
    assert answer["type"] == "urn:yue:problem:storage-failed"
    assert served.client.get("/health").status_code == 200
    (tmp_path / "jobs").unlink()
    assert served.one()["status"] == "succeeded"


def test_a_full_disk_refuses_songs_before_they_are_generated(tmp_path: Path) -> None:
    served = Served(data=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # bytes, less than a job takes
    try:
        answer = problem(served.predict(INSTANCE), 507)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer["type"] == "urn:yue:problem:storage-full" and str(tmp_path) in answer["detail"]
    assert served.one()["status"] == "succeeded"


def test_the_header_idempotency_key_is_a_request_id(served: Served) -> None:
    header = {"Idempotency-Key": '"abc"'}
    first = served.predict(INSTANCE, headers=header).json["predictions"][0]
    assert first["request_id"] == "abc"
    assert served.one(request_id="abc")["job_id"] == first["job_id"]
    problem(served.predict({**INSTANCE, "genres": "jazz"}, headers=header), 409)
    refused = problem(served.predict({**INSTANCE, "request_id": "other"}, headers=header), 400)
    assert refused["field"] == "Idempotency-Key"
    both = served.predict(INSTANCE, INSTANCE, headers={"Idempotency-Key": "many"}).json["predictions"]
    assert [song["request_id"] for song in both] == ["many", "many.1"]
    again = served.predict(INSTANCE, INSTANCE, headers={"Idempotency-Key": "many"}).json["predictions"]
    assert [song["job_id"] for song in again] == [song["job_id"] for song in both]


@pytest.mark.parametrize("songs", [1, 3])
def test_a_key_of_several_songs_holds_for_all_of_them_together(served: Served, songs: int) -> None:
    header = {"Idempotency-Key": "many"}
    served.predict(INSTANCE, INSTANCE, headers=header)
    assert problem(served.predict(*[INSTANCE] * songs, headers=header), 409)["type"] == "urn:yue:problem:conflict"
    assert len(served.client.get("/jobs").json["jobs"]) == 2


def test_a_key_that_is_too_long_for_several_songs_is_told_by_its_name(served: Served) -> None:
    refused = problem(served.predict(INSTANCE, INSTANCE, headers={"Idempotency-Key": "k" * 127}), 400)
    assert (refused["field"], refused["allowed"]) == ("Idempotency-Key", "1 to 126 characters for 2 instances")
