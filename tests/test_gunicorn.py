"""The server as it is really run: gunicorn binds its port at once and leaves no process behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.settings import RESERVED_THREADS
from tests.fakes import INSTANCE, new_folder
from tests.real_server import until

PROJECT = Path(__file__).parent.parent
SECONDS = 60.0  # the longest that anything may take on a busy machine


class Gunicorn:
    """A gunicorn process on a free port, with the project's own configuration."""

    def __init__(self, app: str, **settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        foreign = ("YUE_", "AIP_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", app],
            cwd=PROJECT,
            env={**environment, "PORT": str(port), "PYTHONUNBUFFERED": "1", "YUE_DATA": new_folder(), **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = f"http://127.0.0.1:{port}"
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def wait_until_bound(self) -> None:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Listening at" in line:
                return
        raise AssertionError("".join(lines))

    def ask(self, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.open(request, timeout=SECONDS) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def end(self, number: signal.Signals) -> int:
        """Its exit code after that signal."""
        self.process.send_signal(number)
        self.process.communicate(timeout=SECONDS)
        return self.process.returncode


Start = Callable[..., Gunicorn]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers, and ends what a failed test leaves."""
    started: list[Gunicorn] = []

    def start(app: str = "tests.fakes:fake_app()", **settings: str) -> Gunicorn:
        started.append(Gunicorn(app, **settings))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.terminate()
        server.process.communicate(timeout=SECONDS)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("loading", "status", "health"), [("on_demand", 200, "healthy"), ("startup", 503, "starting")])
def test_the_port_answers_while_the_models_are_not_there(start: Start, loading: str, status: int, health: str) -> None:
    server = start("tests.fakes:fake_app(may_fetch=False)", YUE_LOADING=loading)
    server.wait_until_bound()
    answered, body = server.ask("/health")
    assert (answered, body["status"]) == (status, health)
    assert server.end(signal.SIGTERM) == 0  # in the middle of a download, too


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_engine(start: Start, number: signal.Signals) -> None:
    server = start()
    server.wait_until_bound()
    status, body = server.ask("/predict", {"instances": [INSTANCE]})
    assert (status, body["predictions"][0]["status"]) == (200, "succeeded")
    engine_pid = server.ask("/models/status")[1]["engine"]["pid"]
    assert is_running(engine_pid)
    assert server.end(number) == 0
    assert not is_running(engine_pid)


def test_at_startup_the_models_are_loaded_without_a_request(start: Start) -> None:
    server = start(YUE_LOADING="startup")
    server.wait_until_bound()
    assert server.ask("/download-models", {})[1]["models"]["status"] == "ready"
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize("loading", ["on_demand", "startup"])
def test_a_server_that_stops_refuses_new_work_at_once_and_answers_what_is_open(start: Start, loading: str) -> None:
    server = start("tests.fakes:fake_app(may_sing=False)", YUE_LOADING=loading)
    server.wait_until_bound()
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
        server.ask("/sing-on", {})
        status, body = song.result(SECONDS)
    assert (status, body["predictions"][0]["status"]) == (200, "succeeded")
    server.process.communicate(timeout=SECONDS)
    assert server.process.returncode == 0


def test_when_the_grace_period_is_over_who_waits_is_told_and_the_song_is_left(start: Start) -> None:
    server = start("tests.fakes:fake_app(may_sing=False)", YUE_WAIT_SECONDS="0")
    server.wait_until_bound()
    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(server.ask, "/predict", {"instances": [{**INSTANCE, "wait_seconds": 3_000}]})
        until(lambda: any(job["status"] == "running" for job in jobs_of(server)))
        server.process.send_signal(signal.SIGTERM)
        status, body = song.result(SECONDS)
    assert (status, body["predictions"][0]["status"]) == (200, "queued")
    server.process.communicate(timeout=SECONDS)
    assert server.process.returncode == 0


def test_a_client_that_goes_away_ends_its_song_unless_it_can_ask_for_it_again(start: Start) -> None:
    server = start("tests.fakes:fake_app(may_sing=False)", YUE_LOG_LEVEL="warning")
    server.wait_until_bound()
    for fields, ends in (({}, True), ({"request_id": "a"}, False), ({"wait_seconds": 100}, False)):
        known = {job["job_id"] for job in jobs_of(server)}
        with hang_up_after(server, "/predict", {"instances": [{**INSTANCE, **fields}]}):
            job_id = until(lambda known=known: next(iter({job["job_id"] for job in jobs_of(server)} - known), None))
        until(lambda: server.ask("/waiters")[1] == 0)
        assert server.ask(f"/jobs/{job_id}")[1]["cancel_requested"] == ends
    server.ask("/sing-on", {})


def test_on_vertex_ai_a_song_outlives_its_client(start: Start) -> None:
    server = start("tests.fakes:fake_app(may_sing=False)", YUE_LOG_LEVEL="warning", AIP_MODE="PREDICTION")
    server.wait_until_bound()
    with hang_up_after(server, "/predict", {"instances": [INSTANCE]}):
        job_id = until(lambda: next((job["job_id"] for job in jobs_of(server)), None))
    until(lambda: server.ask("/waiters")[1] == 0)
    assert not server.ask(f"/jobs/{job_id}")[1]["cancel_requested"]
    server.ask("/sing-on", {})


def test_a_listener_that_goes_away_frees_its_seat_and_others_leave_health_its_thread(start: Start) -> None:
    server = start(
        "tests.fakes:fake_app(may_sing=False)", YUE_LOG_LEVEL="warning", YUE_THREADS=str(RESERVED_THREADS + 2)
    )
    server.wait_until_bound()
    job_id = server.ask("/predict", {"instances": [{**INSTANCE, "wait_seconds": 0}]})[1]["predictions"][0]["job_id"]
    with hang_up_after(server, f"/jobs/{job_id}/events", {}), hang_up_after(server, f"/jobs/{job_id}/events", {}):
        until(lambda: server.ask("/waiters")[1] == 2)
        status, refused = server.ask(f"/jobs/{job_id}/events", {})
        assert (status, refused["type"]) == (503, "urn:yue:problem:too-many-waiters")
        assert server.ask("/health")[0] == 200
    until(lambda: server.ask("/waiters")[1] == 0)
    server.ask("/sing-on", {})


def jobs_of(server: Gunicorn) -> list[Any]:
    return list(server.ask("/jobs")[1]["jobs"])


@contextmanager
def hang_up_after(server: Gunicorn, path: str, body: object) -> Iterator[None]:
    """A request whose client is gone at the end of `with`."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=SECONDS)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    yield
    connection.close()


def test_a_wrong_setting_ends_it_with_one_clear_line(start: Start) -> None:
    server = start(YUE_LOADING="sometimes")
    output, _ = server.process.communicate(timeout=SECONDS)
    assert server.process.returncode != 0
    assert output == "YUE_LOADING: got 'sometimes'; allowed: on_demand or startup\n"


def test_without_arguments_it_serves_the_real_app() -> None:
    check = [sys.executable, "-m", "gunicorn", "--check-config"]
    subprocess.run(check, cwd=PROJECT, check=True, timeout=SECONDS, capture_output=True)
