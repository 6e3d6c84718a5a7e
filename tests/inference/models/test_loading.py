"""Loading as a user meets it: the real server, real downloads from a stand-in Hub, and real songs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from inference import catalog
from inference.catalog import ModelFiles
from tests.support.hub_server import HubServer, serve_tiny
from tests.support.real_server import SECONDS, RealServer, descendants, is_running, until
from tests.support.songs import SHORTEST_BUDGET

pytestmark = pytest.mark.slow

SONG = {"genres": "pop", "lyrics": "[verse]\nla", "max_new_tokens": SHORTEST_BUDGET, "format": "wav"}
STAGE_1 = catalog.find("en-cot").stage1.name
OTHER_STAGE_1 = catalog.find("zh-cot").stage1.name
PORT_SECONDS = 10.0  # a platform that finds no port gives a container up some time after that
END_SECONDS = 5.0  # some platforms kill what has not ended soon after
MANY = 100
DOWNLOAD, ENGINE = "inference.weights.download", "inference.process.engine_process"

Start = Callable[..., RealServer]


@pytest.fixture
def hub(tiny_files: ModelFiles) -> Iterator[HubServer]:
    with serve_tiny(tiny_files) as hub:
        yield hub


@pytest.fixture
def start(hub: HubServer, tmp_path: Path) -> Iterator[Start]:
    """Starts servers of en-cot with an empty cache, and ends them."""
    with ExitStack() as servers:

        def start(**settings: str) -> RealServer:
            defaults = {"YUE_MODEL": "en-cot", "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
            return servers.enter_context(RealServer({**hub.environment(tmp_path), **defaults, **settings}))

        yield start
        hub.heal()  # else a download that is held would hold up the end


@pytest.fixture
def aside() -> Iterator[Callable[..., Future[Any]]]:
    """Calls functions in threads."""
    with ThreadPoolExecutor(MANY) as pool:
        yield pool.submit


def assert_generates(server: RealServer, model: str = "en-cot") -> None:
    status, prediction = server.generate(**SONG)
    assert (status, prediction.get("status"), prediction.get("model")) == (200, "succeeded", model), prediction
    assert prediction["audio"]


# -- the two ways to load


def test_on_demand_from_nothing_to_a_song(start: Start, hub: HubServer) -> None:
    server = start()
    status, health = server.wait_until_answered()
    assert (status, health["status"], health["models"]["status"]) == (200, "healthy", "not_loaded")
    assert server.models()["status"] == "not_loaded"
    assert hub.count() == 0
    status, answer = server.ask("/download-models", {})
    assert (status, answer["status"]) == (200, "success")
    assert answer["message"].startswith("Models downloaded")
    models = server.models()
    assert (models["status"], models["model"]) == ("ready", "en-cot")
    assert models["revision"] == catalog.find("en-cot").stage1.revision
    assert (models["engine"]["device"], models["last_error"]) == ("cpu", None)
    assert_generates(server)


def test_at_startup_health_is_good_exactly_when_the_models_are_ready(start: Start, hub: HubServer) -> None:
    held = hub.fault(f"{STAGE_1}/resolve", method="GET", effect="hold")
    server = start(YUE_LOADING="startup")
    status, health = server.wait_until_answered()
    assert (status, health["status"]) == (503, "starting")
    assert held.reached.wait(SECONDS)
    assert server.ask("/health")[0] == 503
    held.release()

    def ready() -> bool:
        status, health = server.ask("/health")
        assert (status == 200) == (health["models"]["status"] == "ready")
        assert health["status"] == ("healthy" if status == 200 else "starting"), health
        return status == 200

    until(ready)
    assert_generates(server)


def test_the_settings_reach_the_engine(start: Start) -> None:
    server = start(YUE_MODEL="tiny", YUE_DTYPE="bfloat16", YUE_QUANTIZATION="int8", YUE_MAX_SONGS="3")
    server.wait_until_answered()
    assert server.ask("/download-models", {})[0] == 200
    engine = server.models()["engine"]
    assert (engine["dtype"], engine["quantization"], engine["max_songs"]) == ("bfloat16", "int8", 3)
    assert_generates(server, "tiny")


def test_force_mends_the_loaded_model(start: Start, hub: HubServer, tmp_path: Path) -> None:
    server = start()
    server.wait_until_answered()
    server.ask("/download-models", {})
    (spoiled,) = tmp_path.glob(f"hf/hub/*{STAGE_1.split('/')[1]}/snapshots/*/tokenizer.model")
    right = spoiled.read_bytes()
    spoiled.resolve().write_bytes(right[::-1])
    (old,) = server.children(ENGINE)
    assert server.ask("/download-models", {"force": True})[0] == 200
    assert spoiled.read_bytes() == right
    assert until(lambda: [pid for pid in server.children(ENGINE) if pid != old])
    until(lambda: not is_running(old))
    assert_generates(server)


@pytest.mark.parametrize("loading", ["on_demand", "startup"])
def test_the_port_is_bound_while_nothing_can_be_downloaded(start: Start, hub: HubServer, loading: str) -> None:
    hub.fault("", times=None, effect="hold")
    server = start(YUE_LOADING=loading)
    server.wait_until_answered(PORT_SECONDS)
    assert server.models()["status"] in ("not_loaded", "downloading")


# -- many at once


def test_a_hundred_first_requests_make_one_download(
    start: Start, hub: HubServer, aside: Callable[..., Future[Any]]
) -> None:
    held = hub.fault(f"{STAGE_1}/resolve", method="GET", effect="hold")
    server = start(YUE_THREADS="200")
    server.wait_until_answered()
    by_operation = {"instances": [{"operation": "download-models"}]}
    answers = [aside(server.generate, **SONG)]
    answers += [aside(server.ask, "/download-models", {}) for _ in range(MANY // 2)]
    answers += [aside(server.ask, "/predict", by_operation) for _ in range(MANY // 2 - 1)]
    assert held.reached.wait(SECONDS)
    (pid,) = server.children(DOWNLOAD)
    held.release()
    assert [answer.result(SECONDS)[0] for answer in answers] == [200] * MANY
    fetched = [request.path for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert sorted(fetched) == sorted(set(fetched))
    assert server.log().count("en-cot: downloading") == 1
    assert not is_running(pid)
    assert len(server.children(ENGINE)) == 1


def test_songs_are_generated_before_during_and_after_a_swap(
    start: Start, hub: HubServer, aside: Callable[..., Future[Any]]
) -> None:
    server = start()
    server.wait_until_answered()
    server.ask("/download-models", {})
    held = hub.fault(f"{OTHER_STAGE_1}/resolve", method="GET", effect="hold")
    enough = Event()

    def keep_generating() -> list[tuple[int, Any]]:
        generated = []
        while not enough.is_set():
            generated.append(server.generate(**SONG))
        return [*generated, server.generate(**SONG)]

    streams = [aside(keep_generating) for _ in range(2)]
    swap = aside(server.ask, "/download-models", {"model": "zh-cot"})
    assert held.reached.wait(SECONDS)
    models = server.models()
    assert (models["status"], models["model"]) == ("ready", "en-cot")
    assert (models["next"]["status"], models["next"]["model"]) == ("downloading", "zh-cot")
    assert_generates(server, "en-cot")
    held.release()
    status, answer = swap.result(SECONDS)
    assert (status, answer["models"]["model"]) == (200, "zh-cot")
    assert_generates(server, "zh-cot")
    enough.set()
    generated = [each for stream in streams for each in stream.result(SECONDS)]
    assert {status for status, _ in generated} == {200}
    assert {prediction["model"] for _, prediction in generated} == {"en-cot", "zh-cot"}
    assert until(lambda: len(server.children(ENGINE)) == 1)


# -- what goes wrong


def test_a_download_is_cancelled_and_begun_again(
    start: Start, hub: HubServer, aside: Callable[..., Future[Any]]
) -> None:
    held = hub.fault(f"{STAGE_1}/resolve", method="GET", effect="hold")
    server = start()
    server.wait_until_answered()
    waiting = [aside(server.ask, "/download-models", {}), aside(server.generate, **SONG)]
    assert held.reached.wait(SECONDS)
    (pid,) = server.children(DOWNLOAD)
    until(lambda: server.ask("/jobs")[1]["jobs"])
    status, answer = server.ask("/download-models", method="DELETE")
    assert (status, answer["status"]) == (200, "cancelled")
    for status, problem in (each.result(SECONDS) for each in waiting):
        assert (status, problem["title"]) == (409, "Cancelled")
    until(lambda: not is_running(pid))
    assert server.models()["status"] == "not_loaded"
    nothing = {"instances": [{"operation": "cancel-download"}]}
    assert server.ask("/predict", nothing)[1]["predictions"][0]["status"] == "nothing_to_cancel"
    hub.heal()
    assert server.ask("/download-models", {})[1]["status"] == "success"
    assert server.models()["last_error"] is None


def test_a_gated_model_is_an_error_at_startup_until_the_next_call_works(start: Start, hub: HubServer) -> None:
    hub.fault(STAGE_1, times=None, status=403, error_code="GatedRepo")
    server = start(YUE_LOADING="startup")
    server.wait_until_answered()
    health = until(lambda: (answer := server.ask("/health")[1])["status"] == "unhealthy" and answer)
    assert server.ask("/health")[0] == 503
    assert health["models"]["status"] == "error"
    assert "is gated" in health["models"]["last_error"]["detail"]
    assert health["models"]["last_error"]["reason"] == "gated"
    assert server.models()["last_error"] == health["models"]["last_error"]
    status, problem = server.ask("/download-models", {})
    assert status == 503 and "is gated" in problem["detail"]
    hub.heal()
    assert server.ask("/download-models", {})[0] == 200
    status, health = server.ask("/health")
    assert (status, health["status"], health["models"]["last_error"]) == (200, "healthy", None)


def test_on_vertex_a_gated_model_ends_the_container(start: Start, hub: HubServer) -> None:
    hub.fault(STAGE_1, times=None, status=403, error_code="GatedRepo")
    server = start(YUE_LOADING="startup", AIP_MODE="PREDICTION")

    def probe() -> bool:
        with suppress(OSError, HTTPException):  # the server ends in the middle of a probe
            server.ask("/health")
        return server.process.poll() is not None

    assert until(probe)
    assert server.process.returncode == 3
    assert "is gated" in server.log()


def test_a_killed_download_and_a_killed_engine_are_told_and_replaced(
    start: Start, hub: HubServer, aside: Callable[..., Future[Any]]
) -> None:
    held = hub.fault(f"{STAGE_1}/resolve", method="GET", effect="hold")
    server = start()
    server.wait_until_answered()
    waiting = aside(server.ask, "/download-models", {})
    assert held.reached.wait(SECONDS)
    (pid,) = server.children(DOWNLOAD)
    os.kill(pid, signal.SIGKILL)
    assert waiting.result(SECONDS)[0] == 503
    assert server.models()["status"] == "error"
    hub.heal()
    assert_generates(server)
    (pid,) = server.children(ENGINE)
    os.kill(pid, signal.SIGKILL)
    error = until(lambda: server.models()["last_error"])  # the kernel ends a process's threads one by one
    assert "ended" in error["detail"]
    assert server.ask("/health")[0] == 200
    assert_generates(server)
    assert server.models()["last_error"] is None


def test_a_signal_during_a_download_ends_everything_and_who_waits_is_told(
    start: Start, hub: HubServer, aside: Callable[..., Future[Any]]
) -> None:
    held = hub.fault(f"{STAGE_1}/resolve", method="GET", effect="hold")
    server = start()
    server.wait_until_answered()
    download, song = aside(server.ask, "/download-models", {}), aside(server.generate, **SONG)
    assert held.reached.wait(SECONDS)
    until(lambda: server.ask("/jobs")[1]["jobs"])
    family = descendants(server.process.pid)
    assert len(family) >= 2
    assert server.end(END_SECONDS) == 0
    status, problem = download.result(SECONDS)
    assert (status, problem["type"]) == (503, "urn:yue:problem:stopping")
    status, job = song.result(SECONDS)  # accepted, and so for the next server on this folder
    assert status == 200 and job["status"] == "queued"
    until(lambda: not any(map(is_running, family)))
