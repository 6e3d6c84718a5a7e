"""The models' life: one loads, the others wait, errors reach all who waited, and a dead engine is replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from inference import catalog
from inference.catalog import ModelFiles
from inference.errors import (
    Cancelled,
    DownloadError,
    EngineCrashed,
    EngineError,
    ModelBusy,
    ServerStopping,
    UnknownModel,
    YueError,
)
from inference.song import Song, SongRequest
from model_manager import ModelManager
from serving.models.states import Attempt, Engine
from tests.support.fakes import LYRICS, SECONDS, FakeEngine, FakeModels
from tests.support.real_server import until

MANY = 100


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def manager(models: FakeModels) -> Iterator[ModelManager]:
    manager = models.manager()
    yield manager
    manager.close()


def waits_for_the_song(manager: ModelManager) -> bool:
    """Whether the next model is held up by the song that is being sung."""
    next_model: Any = manager.status().get("next", {})
    return next_model.get("loading") == "waiting for the running song"


def sing(manager: ModelManager) -> Song:
    with manager.borrowed() as loaded:
        return loaded.engine.generate("1", SongRequest("pop", LYRICS, 1), lambda progress: None).result(SECONDS)


def test_a_hundred_callers_share_one_fetch_and_one_engine() -> None:
    models = FakeModels(may_fetch=False)
    manager = models.manager()
    all_here = threading.Barrier(MANY + 1)

    def ask() -> object:
        all_here.wait(SECONDS)
        return manager.ensure_models_available()

    with ThreadPoolExecutor(MANY) as pool:
        asked = [pool.submit(ask) for _ in range(MANY)]
        all_here.wait(SECONDS)
        models.may_fetch.set()
        engines = {id(future.result(SECONDS)) for future in asked}
    assert engines == {id(models.engine)}
    assert (len(models.fetches), len(models.engines)) == (1, 1)
    manager.close()


def test_everyone_who_waits_gets_the_error_and_the_next_call_tries_again() -> None:
    models = FakeModels(may_fetch=False)
    models.errors.append(DownloadError("no network"))
    manager = models.manager()
    joined = [manager.load() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(manager.ensure_models_available) for _ in range(5)]
        models.may_fetch.set()
        outcomes = [future.exception(SECONDS) for future in joined]
        assert all(isinstance(error, DownloadError) for error in outcomes)
        # Who came after the error has a new attempt, which succeeds: nobody is left waiting.
        wait(asked, SECONDS)
    assert manager.ensure_models_available().alive
    assert len(models.fetches) == 2
    assert manager.status()["last_error"] is None
    manager.close()


def test_status_follows_the_models_life() -> None:
    models = FakeModels(may_fetch=False)
    manager = models.manager()
    assert manager.status()["status"] == "not_loaded"
    assert not manager.models_loaded.is_set()
    outcome = manager.load()
    assert manager.models_downloading.wait(SECONDS)
    assert manager.status()["status"] == "downloading"
    models.may_fetch.set()
    outcome.result(SECONDS)
    status = manager.status()
    assert (status["status"], status["model"], status["revision"]) == ("ready", "tiny", "commit-tiny")
    assert status["engine"]["device"] == "fake"
    assert manager.models_loaded.is_set() and not manager.models_downloading.is_set()
    manager.close()


def test_status_keeps_the_last_error(manager: ModelManager, models: FakeModels) -> None:
    models.start_errors.append(EngineError("out of memory"))
    with pytest.raises(EngineError, match="out of memory"):
        manager.ensure_models_available()
    status = manager.status()
    assert status["status"] == "error"
    assert (status["last_error"]["detail"], status["last_error"]["error"]) == ("out of memory", "EngineError")
    assert status["last_error"]["model"] == "tiny" and status["last_error"]["at"]


def test_the_same_model_is_not_loaded_twice(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    assert manager.load("tiny").done()
    assert len(models.engines) == 1


def test_force_loads_anew(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    manager.load(force=True).result(SECONDS)
    assert models.forced == [False, True]
    assert len(models.engines) == 2
    assert [engine.alive for engine in models.engines] == [False, True]


def test_a_dead_engine_is_replaced(manager: ModelManager, models: FakeModels) -> None:
    first = manager.ensure_models_available()
    models.engine.die()
    assert manager.status()["status"] == "not_loaded"
    assert "ended" in str(manager.status()["last_error"])
    assert not manager.models_loaded.is_set()
    assert models.engine.closed.wait(SECONDS)
    assert manager.ensure_models_available() is not first


def test_the_old_model_sings_until_the_new_one_is_ready(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    models.may_fetch.clear()
    outcome = manager.load("en-cot")
    assert sing(manager).seed == 1
    status = manager.status()
    assert (status["status"], status["model"]) == ("ready", "tiny")
    assert status["next"]["model"] == "en-cot"
    assert manager.model.name == "tiny"
    models.may_fetch.set()
    outcome.result(SECONDS)
    assert manager.status()["model"] == "en-cot"
    assert manager.model.name == "en-cot"


def test_a_replaced_engine_is_closed_after_its_song(manager: ModelManager, models: FakeModels) -> None:
    with manager.borrowed() as loaded:
        manager.load("en-cot").result(SECONDS)
        assert loaded.engine.alive
    assert not loaded.engine.alive
    assert models.engine.alive


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    models.errors.append(DownloadError("gated"))
    assert isinstance(manager.load("en-cot").exception(SECONDS), DownloadError)
    assert manager.status()["status"] == "ready"
    assert (manager.status()["last_error"]["detail"], manager.status()["last_error"]["model"]) == ("gated", "en-cot")
    assert sing(manager).seed == 1


@pytest.mark.parametrize("model", [None, "tiny", "en-cot"])
def test_an_error_is_forgotten_with_the_next_success(
    manager: ModelManager, models: FakeModels, model: str | None
) -> None:
    manager.ensure_models_available()
    models.errors.append(DownloadError("gated"))
    assert manager.load("en-cot").exception(SECONDS)
    manager.load(model).result(SECONDS)
    assert manager.status()["last_error"] is None


def test_the_end_of_an_engine_is_forgotten_with_the_next_one(manager: ModelManager, models: FakeModels) -> None:
    models.errors.append(DownloadError("no network"))
    assert manager.load().exception(SECONDS)
    manager.ensure_models_available()
    models.engine.die()
    assert "ended" in manager.status()["last_error"]["detail"]
    manager.ensure_models_available()
    assert manager.status()["last_error"] is None


def test_an_engine_that_ends_after_a_failed_swap_is_no_failure(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    models.errors.append(DownloadError("gated"))
    assert manager.load("en-cot").exception(SECONDS)
    models.engine.die()
    assert manager.status()["status"] == "not_loaded"


def test_another_model_cannot_be_asked_for_while_one_loads(manager: ModelManager, models: FakeModels) -> None:
    models.may_fetch.clear()
    first = manager.load("en-cot")
    assert manager.load("en-cot") is first
    assert manager.load() is first
    with pytest.raises(ModelBusy, match="en-cot is being loaded"):
        manager.load("zh-cot")
    models.may_fetch.set()


def test_an_unknown_model_is_named(manager: ModelManager) -> None:
    with pytest.raises(UnknownModel, match="allowed: tiny"):
        manager.load("no such model")


def test_a_revision_is_another_model(manager: ModelManager, models: FakeModels) -> None:
    manager.load("en-cot").result(SECONDS)
    manager.load("en-cot", revision="abc").result(SECONDS)
    assert manager.model == catalog.find("en-cot", "abc")
    assert len(models.engines) == 2


def test_close_while_downloading_wakes_those_who_wait() -> None:
    models = FakeModels(may_fetch=False)
    manager = models.manager()
    outcome = manager.load()
    manager.close()
    assert isinstance(outcome.exception(SECONDS), ServerStopping)
    assert models.fetches[0].cancelled
    with pytest.raises(YueError, match="stopping"):
        manager.ensure_models_available()


def test_an_engine_that_is_ready_only_after_close_is_closed() -> None:
    models = FakeModels()

    def start_engine(files: ModelFiles, on_loading: Callable[[str], None]) -> Engine:
        engine = models.start_engine(files, on_loading)
        manager.close()
        return engine

    manager = ModelManager(catalog.find("tiny"), models.fetch, start_engine)
    assert isinstance(manager.load().exception(SECONDS), EngineError)
    assert models.engine.closed.wait(SECONDS)


# -- progress


def test_status_adds_what_is_known_of_each_repository() -> None:
    models = FakeModels(may_fetch=False)
    manager = models.manager()
    manager.load()
    assert models.fetches[0].began.wait(SECONDS)
    download: Any = manager.status()["download"]
    assert (download["bytes_done"], download["bytes_total"]) == (1, 2)
    assert download["repositories"] == {"a/b": {"bytes_done": 1, "bytes_total": 2}}
    manager.close()


def test_bytes_are_counted_over_all_repositories_where_all_are_known() -> None:
    attempt = Attempt(catalog.find("tiny"), FakeModels().fetch(catalog.find("tiny")))
    attempt.note_progress({"repository": "a/b", "bytes_done": 5, "bytes_total": 5, "overall_done": 5})
    progress = {"bytes_done": 1, "bytes_total": 4, "overall_done": 6, "overall_total": 9, "bytes_per_second": 2.5}
    attempt.note_progress({"repository": "c/d", **progress, "waiting": {"seconds": 1, "reason": "429"}})
    download: Any = attempt.status()["download"]
    assert (download["bytes_done"], download["bytes_total"], download["bytes_per_second"]) == (6, 9, 2.5)
    assert download["waiting"] == {"seconds": 1, "reason": "429"}
    counts = {"a/b": {"bytes_done": 5, "bytes_total": 5}, "c/d": {"bytes_done": 1, "bytes_total": 4}}
    assert download["repositories"] == counts


def test_status_shows_which_part_is_loading(manager: ModelManager, models: FakeModels) -> None:
    models.may_start.clear()
    outcome = manager.load()
    assert models.starting.wait(SECONDS)
    assert (manager.status()["status"], manager.status()["loading"]) == ("loading", "stage1")
    models.may_start.set()
    outcome.result(SECONDS)


# -- cancelling


def test_who_waits_for_a_cancelled_download_is_told() -> None:
    models = FakeModels(may_fetch=False)
    manager = models.manager()
    outcome = manager.load()
    assert manager.cancel() == catalog.find("tiny")
    assert isinstance(outcome.exception(SECONDS), Cancelled)
    assert models.fetches[0].cancelled
    status = manager.status()
    assert (status["status"], status["last_error"]["error"]) == ("not_loaded", "Cancelled")
    assert manager.cancel() is None
    assert manager.ensure_models_available().alive
    manager.close()


def test_a_cancel_while_loading_leaves_the_old_engine(manager: ModelManager, models: FakeModels) -> None:
    old = manager.ensure_models_available()
    models.may_start.clear()
    models.starting.clear()
    outcome = manager.load("en-cot")
    assert models.starting.wait(SECONDS)
    manager.cancel()
    assert isinstance(outcome.exception(SECONDS), Cancelled)
    models.may_start.set()
    assert manager.ensure_models_available() is old
    assert sing(manager).seed == 1
    assert manager.load("zh-cot").result(SECONDS).model.name == "zh-cot"
    assert len(models.engines) == 2  # en-cot's start was ended before it had one


def test_an_engine_that_ended_is_replaced_but_no_cancelled_download_is_begun_again(
    manager: ModelManager, models: FakeModels
) -> None:
    manager.recover()
    assert not models.fetches
    manager.ensure_models_available()
    models.engine.die()
    models.may_fetch.clear()
    manager.recover()
    assert manager.status()["status"] == "downloading"
    manager.cancel()
    models.clock.advance(3_600)
    manager.recover()
    assert manager.status()["status"] == "not_loaded"


def test_what_fails_again_and_again_is_tried_again_after_ever_longer_pauses(
    manager: ModelManager, models: FakeModels
) -> None:
    models.errors += [DownloadError("no disk") for _ in range(3)]
    with pytest.raises(DownloadError):
        manager.ensure_models_available()
    for attempts, pause_s in enumerate((5, 10), start=1):
        models.clock.advance(pause_s - 1)
        manager.recover()
        assert len(models.fetches) == attempts
        models.clock.advance(1)
        models.may_fetch.clear()
        manager.recover()
        assert len(models.fetches) == attempts + 1
        outcome = manager.load()  # joins what runs
        models.may_fetch.set()
        assert isinstance(outcome.exception(SECONDS), DownloadError)


# -- engines that end by themselves again and again


def test_songs_are_refused_for_ever_longer_while_engines_end_by_themselves(
    manager: ModelManager, models: FakeModels
) -> None:
    models.crash(1)
    assert sing(manager).seed == 1  # the first time at once
    models.engine.die()
    models.crash(2)  # the pauses so far: none, 5 s, 10 s, 20 s
    models.notice_the_end()
    for engines, pause_s in ((4, 20), (5, 40), (6, 80)):
        with pytest.raises(EngineCrashed, match=f"SIGKILL; the engine crashed {engines} times in a row") as refused:
            sing(manager)
        assert refused.value.retry_seconds == pause_s
        assert len(models.engines) == engines
        models.clock.advance(pause_s)
        assert sing(manager).seed == 1
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
        song = pool.submit(sing, manager)
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
    assert sing(manager).seed == 1
    manager.close()


def test_who_waits_for_a_pause_is_told_when_the_server_stops(manager: ModelManager, models: FakeModels) -> None:
    models.crash(2)
    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(sing, manager)
        until(lambda: manager._guard._waiters)  # type: ignore[attr-defined]
        manager.stop()
        assert "stopping" in str(song.exception(SECONDS))


def test_an_engine_that_cannot_be_started_makes_songs_wait_too(manager: ModelManager, models: FakeModels) -> None:
    models.start_errors += [EngineError("the engine's process was ended by SIGKILL while it loaded") for _ in range(3)]
    for _ in range(3):
        assert manager.load().exception(SECONDS)
    with pytest.raises(EngineCrashed, match="3 times in a row"):
        sing(manager)


def test_a_download_that_fails_after_crashes_makes_no_song_wait(manager: ModelManager, models: FakeModels) -> None:
    models.crash(4)
    models.errors.append(DownloadError("no network"))
    assert isinstance(manager.load().exception(SECONDS), DownloadError)
    assert sing(manager).seed == 1


def test_crashes_are_forgotten_when_an_engine_sang_for_long(manager: ModelManager, models: FakeModels) -> None:
    models.crash(4)
    manager.load().result(SECONDS)
    assert (manager.status()["crashes"], manager.status()["next_try_seconds"]) == (4, None)
    models.clock.advance(601)
    assert manager.status()["crashes"] == 0
    models.engine.die()
    assert manager.status()["crashes"] == 1
    assert sing(manager).seed == 1


def test_crashes_are_forgotten_with_another_model(manager: ModelManager, models: FakeModels) -> None:
    models.crash(4)
    manager.load("en-cot").result(SECONDS)
    models.engine.die()
    assert sing(manager).seed == 1


def test_status_tells_a_crash_loop(manager: ModelManager, models: FakeModels) -> None:
    assert (manager.status()["crashes"], manager.status()["next_try_seconds"]) == (0, None)
    for engines, status, pause_s in ((1, "not_loaded", 0), (2, "not_loaded", 5), (3, "error", 10)):
        models.crash(1)
        seen = manager.status()
        assert (seen["status"], seen["crashes"], seen["next_try_seconds"]) == (status, engines, pause_s)
    models.clock.advance(4)
    assert manager.status()["next_try_seconds"] == 6


# -- stopping


def test_after_stop_nothing_is_loaded_but_an_engine_sings_on(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    models.may_fetch.clear()
    outcome = manager.load("en-cot")
    manager.stop()
    assert isinstance(outcome.exception(SECONDS), ServerStopping)
    assert sing(manager).seed == 1
    with pytest.raises(ServerStopping):
        manager.load("en-cot")


# -- a GPU, whose memory may not hold two models


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


def test_on_a_gpu_the_old_engine_sings_until_the_new_files_are_here(
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
        song = pool.submit(sing, manager)  # it comes while no engine is there
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
    assert sing(manager).seed == 1
