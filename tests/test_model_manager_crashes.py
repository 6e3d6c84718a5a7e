"""Engines that end by themselves again and again, and the change of models on a GPU that may not hold two."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from inference.errors import Cancelled, DownloadError, EngineCrashed, EngineError
from model_manager import ModelManager
from tests.support.fakes import SECONDS, FakeEngine, FakeModels, generate_song
from tests.support.real_server import until

# -- engines that end by themselves again and again


def test_songs_are_refused_for_ever_longer_while_engines_end_by_themselves(
    manager: ModelManager, models: FakeModels
) -> None:
    models.crash(1)
    assert generate_song(manager).seed == 1  # the first time at once
    models.engine.die()
    models.crash(2)  # the pauses so far: none, 5 s, 10 s, 20 s
    models.notice_the_end()
    for engines, pause_s in ((4, 20), (5, 40), (6, 80)):
        with pytest.raises(EngineCrashed, match=f"SIGKILL; the engine crashed {engines} times in a row") as refused:
            generate_song(manager)
        assert refused.value.retry_seconds == pause_s
        assert len(models.engines) == engines
        models.clock.advance(pause_s)
        assert generate_song(manager).seed == 1
        models.engine.die()
        models.notice_the_end()


def test_the_longest_pause_is_ten_minutes_however_often_engines_end(manager: ModelManager, models: FakeModels) -> None:
    models.crash(30)
    assert manager.status()["next_try_seconds"] == 600


def test_a_short_pause_is_waited_out_and_ends_early_when_a_person_asks(
    manager: ModelManager, models: FakeModels
) -> None:
    models.crash(2)
    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(generate_song, manager)
        until(lambda: manager._guard._waiters)  # type: ignore[attr-defined]
        assert len(models.engines) == 2 and not song.done()
        manager.load()
        assert song.result(SECONDS).seed == 1
    assert len(models.engines) == 3


def test_a_pause_that_is_waited_out_ends_by_itself(models: FakeModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.models.states.FIRST_PAUSE_SECONDS", 0.2)
    models.clock = time.monotonic  # type: ignore[assignment]
    manager = models.manager()
    models.crash(2)
    assert generate_song(manager).seed == 1
    manager.close()


def test_who_waits_for_a_pause_is_told_when_the_server_stops(manager: ModelManager, models: FakeModels) -> None:
    models.crash(2)
    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(generate_song, manager)
        until(lambda: manager._guard._waiters)  # type: ignore[attr-defined]
        manager.stop()
        assert "stopping" in str(song.exception(SECONDS))


def test_an_engine_that_cannot_be_started_makes_songs_wait_too(manager: ModelManager, models: FakeModels) -> None:
    models.start_errors += [EngineError("the engine's process was ended by SIGKILL while it loaded") for _ in range(3)]
    for _ in range(3):
        assert manager.load().exception(SECONDS)
    with pytest.raises(EngineCrashed, match="crashed 3 times"):
        generate_song(manager)


def test_a_download_that_fails_after_crashes_makes_no_song_wait(manager: ModelManager, models: FakeModels) -> None:
    models.crash(4)
    models.errors.append(DownloadError("no network"))
    assert isinstance(manager.load().exception(SECONDS), DownloadError)
    assert generate_song(manager).seed == 1


def test_crashes_are_forgotten_when_an_engine_ran_for_long(manager: ModelManager, models: FakeModels) -> None:
    models.crash(4)
    manager.load().result(SECONDS)
    assert (manager.status()["crashes"], manager.status()["next_try_seconds"]) == (4, None)
    models.clock.advance(601)
    assert manager.status()["crashes"] == 0
    models.engine.die()
    assert manager.status()["crashes"] == 1
    assert generate_song(manager).seed == 1


def test_crashes_are_forgotten_with_another_model(manager: ModelManager, models: FakeModels) -> None:
    models.crash(4)
    manager.load("en-cot").result(SECONDS)
    models.engine.die()
    assert generate_song(manager).seed == 1


def test_status_tells_a_crash_loop(manager: ModelManager, models: FakeModels) -> None:
    assert (manager.status()["crashes"], manager.status()["next_try_seconds"]) == (0, None)
    for engines, status, pause_s in ((1, "not_loaded", 0), (2, "not_loaded", 5), (3, "error", 10)):
        models.crash(1)
        seen = manager.status()
        assert (seen["status"], seen["crashes"], seen["next_try_seconds"]) == (status, engines, pause_s)
    models.clock.advance(4)
    assert manager.status()["next_try_seconds"] == 6


# -- a GPU, whose memory may not hold two models


def waits_for_the_song(manager: ModelManager) -> bool:
    """True while the next model waits for the running song."""
    next_model: Any = manager.status().get("next", {})
    return next_model.get("loading") == "waiting for the running song"


@pytest.fixture
def gpu(manager: ModelManager, models: FakeModels) -> FakeEngine:
    """The engine of a model on a GPU."""
    models.on_a_gpu = True
    manager.ensure_models_available()
    return models.engine


def test_on_a_gpu_the_old_engine_is_closed_before_the_new_one_starts(
    manager: ModelManager, models: FakeModels, gpu: FakeEngine
) -> None:
    models.may_start.clear()
    models.starting.clear()
    with manager.borrowed():
        outcome = manager.load("en-cot")
        until(lambda: waits_for_the_song(manager))
        assert gpu.alive and manager.status()["status"] == "ready"
    assert models.starting.wait(SECONDS)
    assert gpu.closed.is_set()
    models.may_start.set()
    assert outcome.result(SECONDS).model.name == "en-cot"


def test_on_a_gpu_the_old_engine_is_used_until_the_new_files_are_here(
    manager: ModelManager, models: FakeModels, gpu: FakeEngine
) -> None:
    models.errors.append(DownloadError("gated"))
    assert manager.load("en-cot").exception(SECONDS)
    assert manager.ensure_models_available() is gpu
    assert len(models.engines) == 1


def test_on_a_gpu_the_old_model_is_started_again_when_the_new_one_fails(
    manager: ModelManager, models: FakeModels, gpu: FakeEngine
) -> None:
    models.may_start.clear()
    models.starting.clear()
    models.start_errors.append(EngineError("out of memory"))
    outcome = manager.load("en-cot")
    assert models.starting.wait(SECONDS)
    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(generate_song, manager)  # it comes while no engine is there
        models.may_start.set()
        assert isinstance(outcome.exception(SECONDS), EngineError)
        assert song.result(SECONDS).seed == 1
    status = manager.status()
    assert (status["status"], status["model"], status["last_error"]["detail"]) == ("ready", "tiny", "out of memory")
    assert len(models.fetches) == 2  # the old model's files are not fetched again
    assert models.engine is not gpu


def test_on_a_gpu_a_cancel_leaves_the_old_engine_that_was_to_make_room(
    manager: ModelManager, models: FakeModels, gpu: FakeEngine
) -> None:
    with manager.borrowed():
        outcome = manager.load("en-cot")
        until(lambda: waits_for_the_song(manager))
        manager.cancel()
        assert isinstance(outcome.exception(SECONDS), Cancelled)
    assert manager.ensure_models_available() is gpu
    assert generate_song(manager).seed == 1
