"""The models' routes as a client sees them: download, cancel, status, and health in both ways of loading."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference.errors import Cancelled, DownloadError
from server import close_app, create_app, make_manager
from serving.settings import Settings
from tests.support.fakes import INSTANCE, SECONDS, FakeModels, Served, problem
from tests.support.real_server import until


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


def test_the_models_operations_work_through_predict(served: Served) -> None:
    assert served.predict({"operation": "models/status"}).json["predictions"][0]["status"] == "not_loaded"
    assert served.predict({"operation": "download-models"}).json["predictions"][0]["status"] == "success"
    assert served.predict({"operation": "models/status"}).json["predictions"][0]["status"] == "ready"
    cancelled = served.predict({"operation": "cancel-download"}).json["predictions"][0]
    assert cancelled["status"] == "nothing_to_cancel"
    assert problem(served.predict({"operation": "sing"}), 400)["field"] == "operation"


def test_status_tells_that_there_is_no_gpu() -> None:
    manager = make_manager(Settings(device="cpu"))
    assert (manager.status()["status"], manager.status()["gpu"]) == ("not_loaded", False)


def test_download_models_waits_and_is_idempotent(served: Served) -> None:
    for _ in range(2):
        response = served.client.post("/download-models")
        assert response.status_code == 200
        assert response.json["status"] == "success"
        assert response.json["message"].startswith("Models downloaded")
        assert response.json["models"]["status"] == "ready"
    assert len(served.models.fetches) == 1


def test_download_models_without_waiting_is_accepted() -> None:
    served = Served(may_fetch=False)
    response = served.client.post("/download-models", json={"wait": False})
    assert response.status_code == 202
    assert response.json["models"]["status"] == "downloading"
    served.models.may_fetch.set()
    assert served.client.post("/download-models", json={}).json["status"] == "success"
    assert len(served.models.fetches) == 1
    close_app(served.app)


def test_download_models_names_what_is_wrong(served: Served) -> None:
    assert problem(served.client.post("/download-models", json={"models": "tiny"}), 400)["field"] == "models"
    assert problem(served.client.post("/download-models", json={"model": "nonsense"}), 400)["field"] == "model"
    problem(served.client.post("/download-models", json=[]), 400)
    served.models.errors.append(DownloadError("gated: accept its terms"))
    assert "gated" in problem(served.client.post("/download-models"), 503)["detail"]


def test_a_download_is_cancelled_and_who_waits_is_told() -> None:
    served = Served(may_fetch=False)
    with ThreadPoolExecutor(2) as pool:
        song = pool.submit(served.predict, INSTANCE)
        assert served.manager.models_downloading.wait(SECONDS)  # begun for the song, which waits for it
        joined = served.manager.load()
        download = pool.submit(served.client.post, "/download-models")
        until(lambda: served.waiters == 2)
        response = served.client.delete("/download-models")
        assert (response.status_code, response.json["status"]) == (200, "cancelled")
        assert isinstance(joined.exception(SECONDS), Cancelled)
        assert response.json["models"]["status"] == "not_loaded"
        for waiting in (download, song):
            answer = problem(waiting.result(SECONDS), 409)
            assert "download of tiny was cancelled" in answer["detail"]
    assert served.client.delete("/download-models").json["status"] == "nothing_to_cancel"
    close_app(served.app)


def test_a_second_model_is_refused_while_one_loads() -> None:
    served = Served(may_fetch=False)
    served.client.post("/download-models", json={"wait": False})
    answer = problem(served.client.post("/download-models", json={"model": "en-cot"}), 409)
    assert "tiny is being loaded" in answer["detail"]
    close_app(served.app)


def test_force_proves_and_loads_anew(served: Served) -> None:
    for _ in range(2):
        served.client.post("/download-models", json={"force": True})
    assert served.models.forced == [True, True]
    assert len(served.models.engines) == 2


def test_health_on_demand_is_healthy_before_during_and_after_loading() -> None:
    served = Served(may_fetch=False)
    for status in ("not_loaded", "downloading", "ready"):
        response = served.client.get("/health")
        assert response.status_code == 200
        assert (response.json["status"], response.json["models"]["status"]) == ("healthy", status)
        served.client.post("/download-models", json={"wait": False})
        if status == "downloading":
            served.models.may_fetch.set()
            served.client.post("/download-models")
    assert served.client.post("/health").status_code == 200
    close_app(served.app)


def test_health_at_startup_waits_for_the_models() -> None:
    served = Served(may_fetch=False, loading="startup")
    response = served.client.get("/health")
    assert (response.status_code, response.json["status"]) == (503, "starting")
    served.models.may_fetch.set()
    served.client.post("/download-models")
    response = served.client.get("/health")
    assert (response.status_code, response.json["status"]) == (200, "healthy")
    close_app(served.app)


def test_health_at_startup_stays_good_while_a_gpu_changes_models() -> None:
    served = Served(may_fetch=False, loading="startup")
    served.models.on_a_gpu = True
    served.models.may_fetch.set()
    served.client.post("/download-models")
    served.models.starting.clear()
    served.models.may_start.clear()
    served.client.post("/download-models", json={"model": "en-cot", "wait": False})
    assert served.models.starting.wait(SECONDS)
    health = served.client.get("/health")
    assert (health.status_code, health.json["models"]["status"]) == (200, "loading")
    served.models.may_start.set()
    close_app(served.app)


@pytest.mark.parametrize(
    ("reason", "aip_mode", "given_up"),
    [("gated", "PREDICTION", True), ("unavailable", "PREDICTION", False), ("gated", None, False)],
)
def test_on_vertex_a_server_that_can_never_be_ready_ends(reason: str, aip_mode: str | None, given_up: bool) -> None:
    models = FakeModels(may_fetch=False)
    models.errors.append(DownloadError("no weights", reason))
    manager, reasons = models.manager(), []
    app = create_app(Settings(loading="startup", aip_mode=aip_mode), manager, give_up=reasons.append)
    outcome = manager.load()
    models.may_fetch.set()
    assert outcome.exception(SECONDS)
    app.test_client().get("/health")
    assert reasons == (["no weights"] if given_up else [])
    close_app(app)


def test_health_at_startup_tells_the_error() -> None:
    models = FakeModels(may_fetch=False)
    models.errors.append(DownloadError("no disk"))
    manager = models.manager()
    app = create_app(Settings(loading="startup"), manager)
    outcome = manager.load()
    models.may_fetch.set()
    assert outcome.exception(SECONDS)
    response = app.test_client().get("/health")
    assert (response.status_code, response.json["status"]) == (503, "unhealthy")
    assert response.json["models"]["last_error"]["detail"] == "no disk"
    close_app(app)


def test_health_at_startup_gets_a_new_engine_for_a_dead_one() -> None:
    served = Served(loading="startup")
    served.client.post("/download-models")
    served.models.may_fetch.clear()
    served.models.engine.die()
    assert served.client.get("/health").json["status"] == "starting"
    served.models.may_fetch.set()
    served.client.post("/download-models")
    assert served.client.get("/health").json["status"] == "healthy"
    assert len(served.models.engines) == 2
    close_app(served.app)


def test_health_at_startup_does_not_begin_a_cancelled_download_again() -> None:
    served = Served(may_fetch=False, loading="startup")
    served.client.delete("/download-models")
    for _ in range(2):
        response = served.client.get("/health")
        assert (response.status_code, response.json["status"]) == (503, "unhealthy")
        assert response.json["models"]["last_error"]["error"] == "Cancelled"
    served.models.may_fetch.set()
    served.client.post("/download-models")
    assert served.client.get("/health").json["status"] == "healthy"
    close_app(served.app)


def test_a_crash_loop_shows_in_health_on_demand_and_songs_are_told_when_to_come_back(served: Served) -> None:
    served.models.crash(4)
    health = served.client.get("/health")
    assert (health.status_code, health.json["status"]) == (200, "healthy")
    models = health.json["models"]
    assert (models["status"], models["crashes"], models["next_try_seconds"]) == ("error", 4, 20)
    assert "SIGKILL" in models["last_error"]["detail"]
    assert served.client.get("/models/status").json == models
    refused = served.predict(INSTANCE)
    assert refused.headers["Retry-After"] == "20"
    answer = problem(refused, 503)
    assert answer["type"].endswith("engine-failed")
    assert "4 times in a row" in answer["detail"] and "SIGKILL" in answer["detail"]
    served.models.clock.advance(20)
    served.one()


def test_a_person_who_asks_for_the_models_ends_the_pause_of_a_crash_loop(served: Served) -> None:
    served.models.crash(4)
    assert served.client.post("/download-models").json["status"] == "success"
    served.one()


def test_a_crash_loop_at_startup_is_unhealthy_until_an_engine_lives() -> None:
    served = Served(loading="startup")
    served.models.crash(3)
    for may_start in (False, True):  # in the pause, and while the next engine starts
        health = served.client.get("/health")
        assert (health.status_code, health.json["status"]) == (503, "unhealthy")
        assert "SIGKILL" in health.json["models"]["last_error"]["detail"]
        served.models.may_start.clear()
        served.models.clock.advance(10 * (not may_start))
    assert health.json["models"]["status"] in ("downloading", "loading")
    served.models.may_start.set()
    served.client.post("/download-models")
    assert served.client.get("/health").json["status"] == "healthy"
    close_app(served.app)
