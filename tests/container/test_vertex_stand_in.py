"""The stand-in for Vertex AI, before a small container whose health is a file and which answers as it is told."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.http_handler import QuietHandler
from tests.support.paths import PROJECT
from tests.support.vertex import (
    DEDICATED,
    HEALTH_ROUTE,
    PREDICT_ROUTE,
    SHARED,
    Answer,
    Deployment,
    Limits,
    Probes,
    endpoint,
)
from tests.support.vertex_requests import DEADLINE_S, TOLERANT, body_of, post

pytestmark = pytest.mark.slow

# The platform's numbers of tries, but in quick succession.
QUICK = Probes(liveness_period_s=0.05, health_period_s=0.05, health_timeout_s=5.0)


class Told(QuietHandler):
    """Health is the status in a file. A body that is JSON says in its first instance what to answer."""

    def do_GET(self) -> None:
        assert self.path == HEALTH_ROUTE
        self._send(int(HEALTH_FILE.read_text()), "text/plain", b"")

    def do_POST(self) -> None:
        assert self.path == PREDICT_ROUTE
        body = self.rfile.read(int(self.headers["Content-Length"]))
        content_type = self.headers["Content-Type"]
        if content_type != "application/json":
            return self._send(200, content_type, body)
        told = json.loads(body)["instances"][0]
        time.sleep(told.get("late_s", 0))
        answer = {"predictions": ["x" * told.get("size_bytes", 1)], "metadata": "kept", "secret": "lost"}
        self._send(told.get("status", 200), "application/json", json.dumps(answer).encode())


@pytest.fixture
def health(tmp_path: Path) -> Path:
    file = tmp_path / "health"
    file.write_text("200")
    return file


@pytest.fixture
def told(health: Path) -> Iterator[Deployment]:
    environment = dict(os.environ) | {"PYTHONPATH": str(PROJECT)}
    with Deployment([sys.executable, __file__, str(health)], environment, TOLERANT) as deployment:
        assert deployment.wait_until_routed(DEADLINE_S)
        yield deployment


def test_only_predictions_and_metadata_come_back(told: Deployment) -> None:
    with endpoint(told, SHARED) as shared:
        answer = json.loads(post(f"{shared.url}:predict", body_of({})).body)
    assert answer["predictions"] == ["x"] and answer["metadata"] == "kept"
    assert "secret" not in answer


def test_raw_predict_takes_and_gives_anything(told: Deployment) -> None:
    with endpoint(told, SHARED) as shared:
        assert post(f"{shared.url}:rawPredict", b"\0\1", "audio/mpeg") == Answer(200, "audio/mpeg", b"\0\1")


def test_a_failure_keeps_its_status(told: Deployment) -> None:
    with endpoint(told, SHARED) as shared:
        assert post(f"{shared.url}:predict", body_of({"status": 429})).status == 429
        assert post(f"{shared.url}:predict", b'{"instance": 1}').status == 400
        assert post(f"{shared.url}:explain", body_of({})).status == 404


@pytest.mark.parametrize(("limits", "status"), [(SHARED, 400), (DEDICATED, 413)])
def test_what_is_too_large_is_refused_each_way(limits: Limits, status: int, told: Deployment) -> None:
    with endpoint(told, limits) as front:
        for way in ("predict", "rawPredict"):
            assert post(f"{front.url}:{way}", body_of({"padding": "x" * limits.payload_bytes})).status == status
            assert post(f"{front.url}:{way}", body_of({"size_bytes": limits.payload_bytes})).status == 400
            assert post(f"{front.url}:{way}", body_of({"size_bytes": limits.payload_bytes - 1_000})).status == 200


def test_who_waits_too_long_is_told_so(told: Deployment) -> None:
    with endpoint(told, Limits(timeout_s=0.05, payload_bytes=1_000)) as impatient:
        assert post(f"{impatient.url}:predict", body_of({"late_s": 1})).status == 504


def test_four_failed_probes_stop_the_requests_and_one_good_one_brings_them_back(health: Path) -> None:
    environment = dict(os.environ) | {"PYTHONPATH": str(PROJECT)}
    probes = Probes(liveness_period_s=0.25, liveness_tries=160, health_period_s=0.05)
    with (
        Deployment([sys.executable, __file__, str(health)], environment, probes) as deployment,
        endpoint(deployment, SHARED) as shared,
    ):
        assert deployment.wait_until_routed(DEADLINE_S)
        health.write_text("503")
        assert deployment.wait_until_routed(DEADLINE_S, routed=False)
        assert post(f"{shared.url}:predict", body_of({})).status == 503
        health.write_text("200")
        assert deployment.wait_until_routed(DEADLINE_S)
        assert post(f"{shared.url}:predict", body_of({})).status == 200
        assert deployment.starts == 1, "bad health is no reason for a restart"


@pytest.mark.parametrize("program", ["import time; time.sleep(600)", "pass"])
def test_what_does_not_listen_or_has_ended_is_started_again(program: str) -> None:
    with Deployment([sys.executable, "-c", program], dict(os.environ), QUICK) as deployment:
        assert deployment.wait_until_restarted(3, DEADLINE_S)
        assert not deployment.routed


if __name__ == "__main__":
    HEALTH_FILE = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["AIP_HTTP_PORT"])), Told).serve_forever()
