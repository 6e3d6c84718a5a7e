"""What everybody is answered: that the process lives, and whether songs are taken."""

from __future__ import annotations

import pytest

from inference.errors import DownloadError
from server import close_app
from tests.support.fakes import SECONDS, Served


def ready(served: Served) -> tuple[int, str]:
    response = served.client.get("/readyz")
    assert (response.status_code == 200) == (response.json["status"] == "ready")
    assert (response.status_code == 503) == ("Retry-After" in response.headers)
    return response.status_code, response.json["status"]


def test_on_demand_songs_are_taken_before_the_models_are_here() -> None:
    served = Served(may_fetch=False)
    assert ready(served) == (200, "ready")
    served.client.post("/download-models", json={"wait": False})
    assert ready(served) == (200, "ready")
    served.models.may_fetch.set()
    served.one()
    assert ready(served) == (200, "ready")
    close_app(served.app)


def test_at_startup_songs_are_taken_once_the_models_are_here() -> None:
    served = Served(may_fetch=False, loading="startup")
    assert ready(served) == (503, "starting")
    served.models.may_fetch.set()
    served.client.post("/download-models")
    assert ready(served) == (200, "ready")
    close_app(served.app)


def test_at_startup_songs_are_taken_while_a_gpu_changes_models() -> None:
    served = Served(loading="startup")
    served.models.on_a_gpu = True
    served.client.post("/download-models", json={"force": True})
    served.models.starting.clear()
    served.models.may_start.clear()
    served.client.post("/download-models", json={"model": "en-cot", "wait": False})
    assert served.models.starting.wait(SECONDS)
    assert ready(served) == (200, "ready")
    served.models.may_start.set()
    close_app(served.app)


def test_at_startup_a_failure_is_told_and_nothing_is_begun_by_asking() -> None:
    served = Served(may_fetch=False, loading="startup")
    served.models.errors.append(DownloadError("no disk"))
    served.client.delete("/download-models")
    for _ in range(2):
        assert ready(served) == (503, "unhealthy")
    assert len(served.models.fetches) == 1
    close_app(served.app)


@pytest.mark.parametrize("loading", ["on_demand", "startup"])
def test_while_engines_end_again_and_again_songs_are_refused(loading: str) -> None:
    served = Served(loading=loading)
    served.models.crash(4)
    assert ready(served) == (503, "unhealthy")
    served.models.clock.advance(20)
    assert ready(served) == ((200, "ready") if loading == "on_demand" else (503, "unhealthy"))
    close_app(served.app)


def test_a_server_that_stops_lives_and_takes_no_songs() -> None:
    served = Served()
    served.app.extensions["yue"].drain()
    assert ready(served) == (503, "draining")
    assert served.client.get("/livez").json == {"status": "alive"}
    close_app(served.app)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_probes_may_ask_as_they_like(method: str) -> None:
    served = Served(api_key="0123456789abcdef")
    for path in ("/livez", "/readyz", "/health"):
        assert served.client.open(path, method=method).status_code == 200
    close_app(served.app)
