"""What is seen of requests and songs from outside: ids, traces, and every line of a real server's log."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from inference.errors import EngineError
from server import close_app
from serving.observability import logs
from serving.settings import Settings
from tests.support.fakes import INSTANCE, Served, new_folder
from tests.support.real_server import RealServer

pytestmark = pytest.mark.slow

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
JSON_LOG = {"YUE_LOG_FORMAT": "json"}
Line = dict[str, Any]


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


class Kept(logging.Handler):
    """The lines that a server would write."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.setFormatter(logs.formatter(Settings(aip_mode=None, log_format="json", **settings)))
        self.lines: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def kept() -> Iterator[Kept]:
    """All that is logged during a test, in a project of Google Cloud."""
    root, handler = logging.getLogger(), Kept(google_cloud_project="music")
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def lines_of(log: str) -> list[Line]:
    """Each line of a server's log, which must all be in one form."""
    lines = []
    for text in log.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            raise AssertionError(f"no JSON: {text!r}") from None
        assert {"severity", "message", "time"} <= line.keys(), text
        assert line["severity"] in logging.getLevelNamesMapping() and line["message"]
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
        lines.append(line)
    return lines


def test_an_id_that_a_client_gives_is_given_back(served: Served) -> None:
    answered = served.client.get("/health", headers={"X-Request-Id": "mine-1"})
    assert answered.headers["X-Request-Id"] == "mine-1"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, 'a"b', "{}", "-dash"])
def test_an_id_that_cannot_be_logged_is_replaced(served: Served, given: str) -> None:
    first = served.client.get("/health", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    second = served.client.get("/health", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    assert len(first) == 32 and first not in (given, second)


def test_refusals_have_ids_too(served: Served) -> None:
    assert served.client.get("/nowhere", headers={"X-Request-Id": "lost"}).headers["X-Request-Id"] == "lost"
    assert served.client.put("/predict", headers={"X-Request-Id": "odd"}).headers["X-Request-Id"] == "odd"


def test_a_songs_lines_name_its_job_and_the_request_that_made_it(served: Served, kept: Kept) -> None:
    headers = {"X-Request-Id": "from-me", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    job_id = served.predict(INSTANCE, headers=headers).json["predictions"][0]["job_id"]
    lines = [line for line in kept.lines if line.get("job_id") == job_id]
    assert [line["message"].split(": ")[1] for line in lines] == ["queued", "running on tiny", "succeeded"]
    for line in lines:
        assert line["request_id"] == "from-me"
        assert line["logging.googleapis.com/trace"] == f"projects/music/traces/{TRACE}"
        assert (line["logging.googleapis.com/spanId"], line["logging.googleapis.com/trace_sampled"]) == (SPAN, True)


def test_the_next_server_names_the_request_that_made_the_song(kept: Kept) -> None:
    folder = new_folder()
    first = Served(may_generate=False, data=folder)
    headers = {"X-Request-Id": "from-me", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    job_id = first.predict({**INSTANCE, "wait_seconds": 0}, headers=headers).json["predictions"][0]["job_id"]
    close_app(first.app)
    kept.lines.clear()
    following = Served(data=folder)
    following.wait_for(job_id)
    close_app(following.app)
    lines = [line for line in kept.lines if line.get("job_id") == job_id]
    assert [line["message"].split(": ")[1] for line in lines] == [
        "its server ended; it continues here",
        "running on tiny",
        "succeeded",
    ]
    for line in lines:
        assert line["request_id"] == "from-me"
        assert line["logging.googleapis.com/trace"] == f"projects/music/traces/{TRACE}"


def test_a_request_is_logged_with_what_it_asked_and_got(served: Served, kept: Kept) -> None:
    for path in ("/models/status", "/jobs"):
        served.client.get(f"{path}?key=secret", headers={"X-Request-Id": "r", "Authorization": "Bearer secret"})
    lines = [line for line in kept.lines if "httpRequest" in line]
    told = [[line["httpRequest"][name] for name in ("requestMethod", "requestUrl", "status")] for line in lines]
    assert told == [["GET", "/models/status", 200], ["GET", "/jobs", 400]]  # the list takes no such parameter
    assert lines[0]["request_id"] == "r" and "secret" not in json.dumps(kept.lines)


def test_no_request_has_the_trace_of_the_one_before(served: Served, kept: Kept) -> None:
    served.client.get("/jobs", headers={"X-Request-Id": "first", "traceparent": f"00-{TRACE}-{SPAN}-01"})
    served.client.get("/jobs", headers={"X-Request-Id": "second"})
    first, second = (line for line in kept.lines if "httpRequest" in line)
    assert TRACE in first["logging.googleapis.com/trace"]
    assert second["request_id"] == "second" and "logging.googleapis.com/trace" not in second


@pytest.mark.parametrize(
    ("headers", "span", "sampled"),
    [
        ({"traceparent": f"00-{TRACE}-{SPAN}-00"}, SPAN, False),
        ({"X-Cloud-Trace-Context": f"{TRACE}/255;o=1"}, "00000000000000ff", True),
        ({"X-Cloud-Trace-Context": TRACE}, None, False),
        ({"traceparent": f"00-{'0' * 32}-{SPAN}-01", "X-Cloud-Trace-Context": f"{TRACE}/1"}, f"{1:016x}", False),
    ],
)
def test_traces_come_by_both_headers(
    served: Served, kept: Kept, headers: dict[str, str], span: str | None, sampled: bool
) -> None:
    served.client.get("/jobs", headers=headers)
    (line,) = (line for line in kept.lines if "httpRequest" in line)
    assert line["logging.googleapis.com/trace"].endswith(TRACE)
    assert (line.get("logging.googleapis.com/spanId"), line["logging.googleapis.com/trace_sampled"]) == (span, sampled)


@pytest.mark.parametrize("header", ["traceparent", "X-Cloud-Trace-Context"])
@pytest.mark.parametrize("value", ["", "x", f"00-{TRACE}", f"00-{'0' * 32}-{SPAN}-01", "0" * 32, f"{TRACE}/x"])
def test_a_trace_that_is_none_is_left_out(served: Served, kept: Kept, header: str, value: str) -> None:
    assert served.client.get("/jobs", headers={header: value}).status_code == 200
    assert not any("logging.googleapis.com/trace" in line for line in kept.lines)


def test_an_error_comes_with_its_stack(served: Served, kept: Kept) -> None:
    served.client.post("/download-models")
    served.models.engine.error = EngineError("the boiler burst")
    assert served.predict(INSTANCE).status_code == 503
    (line,) = (line for line in kept.lines if line["severity"] == "ERROR")
    assert line["stack_trace"].startswith("Traceback (most recent call last):\n  File ")
    assert line["stack_trace"].rstrip().endswith("EngineError: the boiler burst")


def test_every_line_of_a_servers_life_is_json_and_none_holds_the_songs_words() -> None:
    project = {"GOOGLE_CLOUD_PROJECT": "music", "YUE_API_KEY": "hush-hush-0123456"}
    with RealServer(JSON_LOG | project) as server:
        server.key = project["YUE_API_KEY"]
        server.wait_until_answered()
        song = {"genres": "zydecopop", "lyrics": "[verse]\nxylophonic zanzibar\n\n[chorus]\nla", "max_new_tokens": 100}
        status, answer = server.generate(**song)
        assert (status, answer["status"]) == (200, "succeeded")
        assert server.generate(**song, seed=-2)[0] == 400
        assert server.generate(**{**song, "lyrics": "xylophonic zanzibar"})[0] == 400
        assert server.ask("/nowhere")[0] == 404
        assert server.end() == 0
        log = server.log()
    lines = lines_of(log)
    messages = "\n".join(line["message"] for line in lines)
    for expected in ("Listening at", "model tiny: ready", ": succeeded", "GET /nowhere 404", "Shutting down"):
        assert expected in messages
    assert not [word for word in ("xylophonic", "zanzibar", "zydecopop", "hush-hush") if word in log]


def test_words_are_logged_where_a_setting_says_so() -> None:
    with RealServer(JSON_LOG | {"YUE_LOG_LYRICS": "true"}) as server:
        server.wait_until_answered()
        server.generate(genres="zydecopop", lyrics="[verse]\nxylophonic zanzibar", wait_seconds=0)
        server.end()
        lines = lines_of(server.log())
    (queued,) = (line for line in lines if line["message"].endswith(": queued"))
    assert (queued["genres"], queued["lyrics"]) == ("zydecopop", "[verse]\nxylophonic zanzibar")


def test_an_engine_that_is_killed_is_told_of_in_the_same_form() -> None:
    with RealServer(JSON_LOG) as server:
        server.wait_until_answered()
        server.ask("/download-models", {})
        (engine,) = server.children("inference.process.engine_process")
        os.kill(engine, signal.SIGKILL)
        assert server.generate(**INSTANCE, max_new_tokens=100)[0] == 200
        server.end()
        lines = lines_of(server.log())
    assert any("was ended by SIGKILL" in line["message"] and line["severity"] == "WARNING" for line in lines)


def test_at_a_level_less_is_said() -> None:
    with RealServer(JSON_LOG | {"YUE_LOG_LEVEL": "warning"}) as server:
        server.wait_until_answered()
        server.ask("/jobs")
        server.end()
        assert server.log() == ""


def test_for_a_person_lines_are_no_json() -> None:
    with RealServer({"YUE_LOG_FORMAT": "console"}) as server:
        server.wait_until_answered()
        server.ask("/jobs")
        server.end()
        (line,) = (line for line in server.log().splitlines() if "GET /jobs 200" in line)
    assert not line.startswith("{") and "[info" in line and "request_id=" in line
