"""Who is let in: keys, what only administrators may do, and names that lead nowhere else."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import close_app
from tests.support.fakes import INSTANCE, SECONDS, Served, problem
from tests.support.real_server import RealServer

KEY, OTHER = "first-key-0123456789", "second-key-987654321"
BEYOND = "0.0.0.0"


@pytest.fixture
def locked() -> Iterator[Served]:
    """It has two keys."""
    served = Served(api_key=f"{KEY}, {OTHER}", host=BEYOND)
    yield served
    close_app(served.app)


@pytest.fixture(scope="module")
def bare() -> Iterator[RealServer]:
    """A real server, to be asked what no client asks."""
    with RealServer({"YUE_LOG_LEVEL": "debug"}, "tests.support.fakes:fake_app()") as server:
        server.wait_until_answered()
        yield server


def ask(served: Served, method: str, path: str, **headers: str) -> Any:
    return served.client.open(path, method=method, headers=headers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("GET", "/models/status"),
        ("GET", "/metrics"),
        ("POST", "/download-models"),
        ("DELETE", "/download-models"),
        ("GET", "/jobs"),
        ("GET", "/jobs/00000000000000000000000000000000"),
        ("GET", "/jobs/00000000000000000000000000000000/audio/mix.mp3"),
        ("GET", "/no/such/path"),
        ("PUT", "/predict"),
    ],
)
def test_no_data_is_answered_without_a_key(locked: Served, method: str, path: str) -> None:
    response = ask(locked, method, path)
    assert problem(response, 401)["type"] == "urn:yue:problem:unauthorized"
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


def test_health_needs_no_key_under_either_name() -> None:
    served = Served(api_key=KEY, health_route="/v1/alive")
    assert {
        ask(served, method, path).status_code for method in ("GET", "POST") for path in ("/health", "/v1/alive")
    } == {200}
    close_app(served.app)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {OTHER} "},
        {"X-API-Key": OTHER},
        {"X-API-Key": KEY, "Authorization": "Bearer the-platforms-own-token"},
    ],
)
def test_each_key_opens_in_each_header(locked: Served, headers: dict[str, str]) -> None:
    prediction = locked.predict(INSTANCE, headers=headers).json["predictions"][0]
    assert prediction["status"] == "succeeded"
    assert locked.client.post("/download-models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {KEY}0"},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": f"{KEY},{OTHER}"},
        {"X-API-Key": f"{KEY}, {OTHER}"},
        {"X-API-Key": "ké" * 20},
    ],
)
def test_what_is_no_key_does_not_open(locked: Served, headers: dict[str, str]) -> None:
    problem(locked.predict(INSTANCE, headers=headers), 401)


def test_a_key_is_never_written_down(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [
        locked.predict(INSTANCE, headers={"X-API-Key": KEY}),
        locked.predict({}, headers={"Authorization": f"Bearer {OTHER}"}),
        locked.predict(INSTANCE, headers={"X-API-Key": KEY + "x"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 401]
    written = caplog.text + "".join(answer.get_data(as_text=True) + str(answer.headers) for answer in answers)
    assert "/predict" in written and KEY not in written and OTHER not in written


def test_on_vertex_ai_songs_need_no_key_and_other_paths_do() -> None:
    served = Served(api_key=KEY, aip_mode="PREDICTION", predict_route="/v1/predict")
    song = served.client.post("/v1/predict", json={"instances": [INSTANCE]})
    assert song.json["predictions"][0]["status"] == "succeeded"
    done = served.client.post("/v1/predict", json={"instances": [{"operation": "download-models"}]})
    assert done.json["predictions"][0]["status"] == "success"
    problem(served.predict(INSTANCE), 401)
    platform = {"Authorization": "Bearer the-platforms-own-token"}
    problem(ask(served, "GET", "/jobs", **platform), 401)
    assert ask(served, "GET", "/jobs", **platform, **{"X-API-Key": KEY}).status_code == 200
    close_app(served.app)


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ({"host": BEYOND}, False),
        ({"host": "::"}, False),
        ({"host": "10.0.0.1", "admin": "off"}, False),
        ({"admin": "off"}, False),
        ({"admin": "off", "aip_mode": "PREDICTION"}, False),
        ({"host": BEYOND, "admin": "on"}, True),
        ({"host": BEYOND, "aip_mode": "PREDICTION"}, True),
        ({"host": "127.0.0.1"}, True),
        ({"host": "::1"}, True),
    ],
)
def test_who_may_change_models_and_see_all_jobs(settings: dict[str, str], may: bool) -> None:
    served = Served(**settings)
    changes = [{"force": True}, {"model": "en-cot"}, {"model": "tiny"}]  # back to the one that is set up
    operations = [{"operation": "cancel-download"}, *({"operation": "download-models", **change} for change in changes)]
    answers = [
        *(served.client.post("/download-models", json=change) for change in changes),
        ask(served, "DELETE", "/download-models"),
        ask(served, "POST", "/download-models/cancel"),
        ask(served, "GET", "/jobs"),
        *map(served.predict, operations),
    ]
    if may:
        assert {answer.status_code for answer in answers} == {200}
    else:
        assert [answer.status_code for answer in answers] == [403, 403, 200, 403, 403, 403, 403, 403, 403, 200]
    assert len(served.models.fetches) == (6 if may else 1)
    close_app(served.app)


@pytest.mark.parametrize("settings", [{"host": BEYOND}, {"host": BEYOND, "admin": "off"}])
@pytest.mark.parametrize("asked", [{}, {"wait": False}, {"model": "tiny"}, {"force": False, "model": None}])
def test_clients_that_may_generate_may_load_the_configured_model(
    settings: dict[str, str], asked: dict[str, object]
) -> None:
    for by_operation in (False, True):
        served = Served(**settings)
        if by_operation:
            answer = served.predict({"operation": "download-models", **asked}).json["predictions"][0]
        else:
            answer = served.client.post("/download-models", json=asked).json
        assert answer["status"] in ("success", "accepted")
        assert served.one()["status"] == "succeeded"
        assert len(served.models.fetches) == 1
        close_app(served.app)


def test_the_loaded_model_is_the_one_that_administrators_chose() -> None:
    served = Served(host=BEYOND)
    served.manager.load("en-cot", "some-branch").result(SECONDS)
    assert (
        served.client.post("/download-models", json={"model": "en-cot", "revision": "some-branch"}).status_code == 200
    )
    for asked in ({"model": "en-cot"}, {"model": "tiny"}, {"revision": "main"}, {"model": "no such model"}):
        problem(served.client.post("/download-models", json=asked), 403)
    assert len(served.models.fetches) == 1
    close_app(served.app)


def test_a_pause_after_crashes_is_ended_by_administrators_alone() -> None:
    served = Served(host=BEYOND)
    served.models.crash(4)
    answer = served.client.post("/download-models")
    assert problem(answer, 503)["type"] == "urn:yue:problem:engine-failed"
    assert answer.headers["Retry-After"] == "20"
    served.models.clock.advance(20)
    assert served.client.post("/download-models").status_code == 200
    close_app(served.app)


def test_a_closed_server_says_how_to_open_it_and_still_generates() -> None:
    served = Served(host=BEYOND)
    refused = problem(ask(served, "DELETE", "/download-models"), 403)
    assert refused["type"] == "urn:yue:problem:forbidden"
    assert "YUE_API_KEY" in refused["detail"] and "YUE_ADMIN=on" in refused["detail"]
    job_id = served.one()["job_id"]  # which brought the models
    assert served.client.get(f"/jobs/{job_id}").json["status"] == "succeeded"
    assert served.client.get("/models/status").json["status"] == "ready"
    assert served.client.delete(f"/jobs/{job_id}").status_code == 200
    close_app(served.app)


def test_every_answer_is_taken_for_what_it_says() -> None:
    served = Served()
    job_id = served.one()["job_id"]
    for path in ("/health", "/nothing", f"/jobs/{job_id}/audio/mix.mp3"):
        assert served.client.get(path).headers["X-Content-Type-Options"] == "nosniff"
    close_app(served.app)


@pytest.mark.parametrize(
    "job_id", ["..", "../keys/0", "%2e%2e%2fkeys", "..%2f..%2fetc%2fpasswd", "%00", "a" * 5_000, "0" * 31 + "A", "*"]
)
def test_a_jobs_id_leads_nowhere_else(tmp_path: Path, job_id: str) -> None:
    served = Served(data=tmp_path / "data")
    for name in ("job.json", "end.json"):
        (tmp_path / "data" / name).write_text("{}")
        (tmp_path / name).write_text("{}")
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/audio/mix.mp3"):
        assert problem(served.client.get(path), 404)
    problem(served.client.delete(f"/jobs/{job_id}"), 404)
    problem(served.predict({"job_id": job_id, "operation": "cancel"}), 404)
    assert not list(tmp_path.rglob("*cancel*"))
    close_app(served.app)


@pytest.mark.parametrize(
    "name", ["../end.json", "..%2fend.json", "../../../etc/passwd", "%2e%2e/%2e%2e/job.json", "mix%00.mp3"]
)
def test_a_tracks_name_leads_nowhere_else(name: str) -> None:
    served = Served()
    job_id = served.one()["job_id"]
    problem(served.client.get(f"/jobs/{job_id}/audio/{name}"), 404)
    close_app(served.app)


def test_a_request_id_stays_a_name(tmp_path: Path) -> None:
    served = Served(data=tmp_path / "data")
    job_id = served.one(request_id="../../../escaped/file")["job_id"]
    assert served.one(request_id="../../../escaped/file")["job_id"] == job_id
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert all(len(path.stem) == 64 for path in (tmp_path / "data" / "keys").iterdir())
    close_app(served.app)


def test_an_idempotency_key_has_a_limit() -> None:
    served = Served()
    assert problem(served.predict(INSTANCE, headers={"Idempotency-Key": "k" * 129}), 400)["field"] == "Idempotency-Key"
    close_app(served.app)


def test_a_body_of_very_many_values_is_refused_unparsed() -> None:
    served = Served()
    body = b'{"instances": [' + b",".join([b"[]"] * 150_000) + b"]}"
    answer = served.client.post("/predict", data=body, content_type="application/json")
    assert "more than 200000" in problem(answer, 413)["detail"]
    close_app(served.app)


def test_headers_and_bodies_without_end_are_refused_by_the_real_server() -> None:
    with RealServer({"YUE_MAX_REQUEST_BYTES": "2000", "YUE_API_KEY": KEY}) as server:
        server.wait_until_answered()
        assert server.ask("/jobs")[0] == 401
        host = server.url.removeprefix("http://")
        key = {"X-API-Key": KEY}
        assert _status(host, "GET", "/jobs", headers=key) == 200
        assert _status(host, "GET", "/health", headers={"X-Long": "x" * 20_000}) == 431
        assert _status(host, "GET", "/health", headers={f"X-{i}": "x" for i in range(200)}) == 431
        assert _status(host, "GET", "/" + "x" * 10_000) == 414
        as_json = {"Content-Type": "application/json", **key}
        assert _status(host, "POST", "/predict", b"x" * 2_001, as_json) == 413
        in_chunks = [(_status(host, "POST", "/predict", iter([b"x" * 1_000] * n), as_json)) for n in (2, 3)]
        assert in_chunks == [400, 413]  # without a Content-Length
        assert KEY not in server.log()


@pytest.mark.parametrize(
    ("head", "status", "kind"),
    [
        ("NO HTTP AT ALL", 400, "bad-request"),
        ("GET /health HTTP/1.1\r\nno colon " + KEY, 400, "bad-request"),
        ("GET /health HTTP/1.1\r\nX-Long: " + "x" * 20_000, 431, "request-header-fields-too-large"),
        (f"GET /{'x' * 10_000} HTTP/1.1", 414, "request-uri-too-long"),
    ],
)
def test_what_no_route_sees_is_refused_as_a_problem_too(bare: RealServer, head: str, status: int, kind: str) -> None:
    with socket.create_connection(("127.0.0.1", bare.port), timeout=60) as connection:
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            problem = json.load(response)
    assert (response.status, response.headers["Content-Type"]) == (status, "application/problem+json")
    assert (problem["type"], problem["status"]) == (f"urn:yue:problem:{kind}", status)
    assert response.headers["X-Request-Id"] in bare.log() and KEY not in bare.log()


def _status(host: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path, body, headers or {}, encode_chunked=not isinstance(body, bytes | None))
        return connection.getresponse().status
    finally:
        connection.close()
