"""The server as it is really run: gunicorn binds its port at once and leaves no process behind."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from server import GUNICORN_HALT
from serving.settings import RESERVED_THREADS, Settings
from tests.support.deaf_worker import SONGS as DEAF_SONGS
from tests.support.fakes import INSTANCE
from tests.support.real_server import PROJECT, SECONDS, RealServer, is_running, until
from tests.support.songs import tone

pytestmark = pytest.mark.slow

Start = Callable[..., RealServer]
DEFAULT_THREADS = Settings.model_fields["threads"].default


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers and waits until they answer; ends what a failed test leaves."""
    with ExitStack() as servers:

        def start(app: str = "tests.support.fakes:fake_app()", **settings: str) -> RealServer:
            server = servers.enter_context(RealServer(settings, app))
            server.wait_until_answered()
            return server

        yield start


@pytest.mark.parametrize("line", ["Starting gunicorn", "Booting worker"])
def test_a_server_that_is_told_to_stop_while_it_starts_stops(line: str) -> None:
    with RealServer({}, "tests.support.fakes:fake_app()") as server:
        until(lambda: line in server.log())
        server.process.terminate()
        assert server.process.wait(SECONDS) == 0, server.log()


@pytest.mark.parametrize(("loading", "status", "health"), [("on_demand", 200, "healthy"), ("startup", 503, "starting")])
def test_the_port_answers_while_the_models_are_not_there(start: Start, loading: str, status: int, health: str) -> None:
    server = start("tests.support.fakes:fake_app(may_fetch=False)", YUE_LOADING=loading)
    answered, body = server.ask("/health")
    assert (answered, body["status"]) == (status, health)
    assert server.end() == 0  # in the middle of a download, too


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_engine(start: Start, number: signal.Signals) -> None:
    server = start()
    status, body = server.ask("/predict", {"instances": [INSTANCE]})
    assert (status, body["predictions"][0]["status"]) == (200, "succeeded")
    engine_pid = server.ask("/models/status")[1]["engine"]["pid"]
    assert is_running(engine_pid)
    server.process.send_signal(number)
    assert server.process.wait(SECONDS) == 0
    assert not is_running(engine_pid)


def test_at_startup_the_models_are_loaded_without_a_request(start: Start) -> None:
    server = start(YUE_LOADING="startup")
    assert server.ask("/download-models", {})[1]["models"]["status"] == "ready"
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize("loading", ["on_demand", "startup"])
def test_a_server_that_stops_refuses_new_work_at_once_and_answers_what_is_open(start: Start, loading: str) -> None:
    server = start("tests.support.fakes:fake_app(may_generate=False)", YUE_LOADING=loading)
    server.ask("/download-models", {})
    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(server.ask, "/predict", {"instances": [{**INSTANCE, "request_id": "first"}]})
        job_id = until(lambda: next((job["job_id"] for job in jobs_of(server) if job["status"] == "running"), None))
        queued = server.ask("/predict", {"instances": [{**INSTANCE, "wait_seconds": 0}]})[1]["predictions"][0]["job_id"]
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask("/health")[0] == 503)
        assert server.ask("/health")[1]["status"] == "draining"
        status, refused = server.ask("/predict", {"instances": [INSTANCE]})
        assert (status, refused["type"]) == (503, "urn:yue:problem:stopping")
        assert server.ask(f"/jobs/{job_id}")[1]["status"] == "running"
        assert server.ask(f"/jobs/{queued}")[1]["status"] == "queued"
        server.ask("/release", {})
        status, body = song.result(SECONDS)
    assert (status, body["predictions"][0]["status"]) == (200, "succeeded")
    assert server.ask(f"/jobs/{job_id}")[1]["status"] == "succeeded", "who asks from time to time still gets it"
    assert server.process.wait(SECONDS) == 0


def test_when_the_grace_period_is_over_who_waits_is_told_and_the_song_is_left(start: Start) -> None:
    server = start("tests.support.fakes:fake_app(may_generate=False)", YUE_WAIT_SECONDS="0")
    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(server.ask, "/predict", {"instances": [{**INSTANCE, "wait_seconds": 3_000}]})
        until(lambda: any(job["status"] == "running" for job in jobs_of(server)))
        server.process.send_signal(signal.SIGTERM)
        status, body = song.result(SECONDS)
    assert (status, body["predictions"][0]["status"]) == (200, "queued")
    assert server.process.wait(SECONDS) == 0


def test_a_client_that_goes_away_ends_its_song_unless_it_can_ask_for_it_again(start: Start) -> None:
    server = start("tests.support.fakes:fake_app(may_generate=False)")
    for fields, ends in (({}, True), ({"request_id": "a"}, False), ({"wait_seconds": 100}, False)):
        known = {job["job_id"] for job in jobs_of(server)}
        with hang_up_after(server, "/predict", {"instances": [{**INSTANCE, **fields}]}):
            job_id = until(lambda known=known: next(iter({job["job_id"] for job in jobs_of(server)} - known), None))
        until(lambda: server.ask("/waiters")[1] == 0)
        assert server.ask(f"/jobs/{job_id}")[1]["cancel_requested"] == ends
    server.ask("/release", {})


def test_on_vertex_ai_a_song_outlives_its_client(start: Start) -> None:
    server = start("tests.support.fakes:fake_app(may_generate=False)", AIP_MODE="PREDICTION")
    with hang_up_after(server, "/predict", {"instances": [INSTANCE]}):
        job_id = until(lambda: next((job["job_id"] for job in jobs_of(server)), None))
    until(lambda: server.ask("/waiters")[1] == 0)
    assert not server.ask(f"/jobs/{job_id}")[1]["cancel_requested"]
    server.ask("/release", {})


def test_a_listener_that_goes_away_frees_its_slot_and_others_leave_health_its_thread(start: Start) -> None:
    server = start("tests.support.fakes:fake_app(may_generate=False)", YUE_THREADS=str(RESERVED_THREADS + 2))
    job_id = server.ask("/predict", {"instances": [{**INSTANCE, "wait_seconds": 0}]})[1]["predictions"][0]["job_id"]
    with hang_up_after(server, f"/jobs/{job_id}/events", {}), hang_up_after(server, f"/jobs/{job_id}/events", {}):
        until(lambda: server.ask("/waiters")[1] == 2)
        status, refused = server.ask(f"/jobs/{job_id}/events", {})
        assert (status, refused["type"]) == (503, "urn:yue:problem:too-many-waiters")
        assert server.ask("/health")[0] == 200
    until(lambda: server.ask("/waiters")[1] == 0)
    server.ask("/release", {})


def jobs_of(server: RealServer) -> list[Any]:
    return list(server.ask("/jobs")[1]["jobs"])


@contextmanager
def hang_up_after(server: RealServer, path: str, body: object) -> Iterator[None]:
    """A request whose client is gone at the end of `with`."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=SECONDS)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    yield
    connection.close()


def test_an_engine_that_reads_nothing_holds_up_no_cancel_request_and_no_look_at_the_models(start: Start) -> None:
    server = start("tests.support.deaf_worker:deaf_app()")

    def begun(seconds: int) -> str:
        reference = {"audio": base64.b64encode(tone(seconds)).decode(), "end_seconds": seconds}
        status, song = server.generate(**INSTANCE, reference=reference, wait_seconds=0)
        assert status == 200, song
        until(lambda: server.ask(f"/jobs/{song['job_id']}")[1]["status"] == "running")
        return str(song["job_id"])

    songs = [begun(100) for _ in range(DEAF_SONGS)]  # each many times what a pipe holds
    requests = 2 * DEFAULT_THREADS
    with ThreadPoolExecutor(requests) as clients:
        answers = clients.map(lambda i: server.ask(f"/jobs/{songs[i % len(songs)]}", method="DELETE"), range(requests))
        assert {(status, job["cancel_requested"]) for status, job in answers} == {(200, True)}
    models = server.models()
    assert models["status"] == "ready"
    os.kill(models["engine"]["pid"], signal.SIGKILL)
    until(lambda: {server.ask(f"/jobs/{job_id}")[1]["status"] for job_id in songs} == {"cancelled"})


def test_a_wrong_setting_ends_it_with_one_clear_line() -> None:
    with RealServer({"YUE_LOADING": "sometimes"}) as server:
        assert server.process.wait(SECONDS) != 0
        assert server.log() == "YUE_LOADING: got 'sometimes'; allowed: on_demand or startup\n"


def test_a_misspelt_setting_is_named(start: Start) -> None:
    log = start(YUE_LODING="startup", YUE_COLOUR="blue", YUE_URL="http://127.0.0.1:8080").log()
    assert "YUE_LODING is not a setting; did you mean YUE_LOADING?" in log
    assert "YUE_COLOUR is not a setting" in log and "YUE_URL" not in log


@pytest.mark.parametrize(("model", "warned"), [("en-cot", True), ("tiny", False)])
def test_a_setting_that_leads_to_no_hub_is_told_at_the_start(start: Start, model: str, warned: bool) -> None:
    log = start(YUE_MODEL=model, HF_ENDPOINT="hf-mirror.invalid").log()
    assert ("HF_ENDPOINT: got 'hf-mirror.invalid'; allowed: " in log) == warned


def test_a_server_that_anybody_may_use_says_so(start: Start) -> None:
    (line,) = (line for line in start(YUE_HOST="0.0.0.0").log().splitlines() if "whoever reaches" in line)
    assert '"WARNING"' in line and "YUE_HOST=0.0.0.0 without YUE_API_KEY" in line


def test_a_place_for_jobs_that_cannot_be_made_ends_it_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with RealServer({"YUE_DATA": str(tmp_path / "file" / "jobs")}) as server:
        assert server.process.wait(SECONDS) == GUNICORN_HALT
        (line,) = (line for line in server.log().splitlines() if "YUE_DATA" in line)
        assert f"{tmp_path}/file/jobs: Not a directory" in line and "allowed: a folder" in line
        assert "Traceback" not in server.log()


def test_a_stop_while_the_app_is_being_made_is_no_error() -> None:
    with RealServer({}, "tests.support.fakes:app_that_stops_its_server()") as server:
        assert server.process.wait(SECONDS) == 0
        assert "Traceback" not in server.log()


def test_without_arguments_it_serves_the_real_app() -> None:
    check = [sys.executable, "-m", "gunicorn", "--check-config"]
    subprocess.run(check, cwd=PROJECT, check=True, timeout=SECONDS, capture_output=True)
