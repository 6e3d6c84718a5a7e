"""The models' life: one loads, the others wait, errors reach all who waited, and a dead engine is replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from inference import catalog
from inference.catalog import ModelFiles
from inference.errors import DownloadError, EngineError, UnknownModel, YueError
from inference.song import Song, SongRequest
from model_manager import Engine, ModelManager
from serving.problems import Problem
from tests.fakes import LYRICS, SECONDS, FakeModels

MANY = 100


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def manager(models: FakeModels) -> Iterator[ModelManager]:
    manager = models.manager()
    yield manager
    manager.close()


def sing(manager: ModelManager) -> Song:
    with manager.borrowed() as loaded:
        return loaded.engine.sing("1", SongRequest("pop", LYRICS, 1), lambda progress: None).result(SECONDS)


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
    assert status["engine"] == {"device": "fake"}
    assert manager.models_loaded.is_set() and not manager.models_downloading.is_set()
    manager.close()


def test_status_keeps_the_last_error(manager: ModelManager, models: FakeModels) -> None:
    models.start_errors.append(EngineError("out of memory"))
    with pytest.raises(EngineError, match="out of memory"):
        manager.ensure_models_available()
    status = manager.status()
    assert (status["status"], status["last_error"]) == ("error", "out of memory")


def test_the_same_model_is_not_loaded_twice(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    assert manager.load("tiny").done()
    assert len(models.engines) == 1


def test_force_loads_anew(manager: ModelManager, models: FakeModels) -> None:
    manager.ensure_models_available()
    manager.load(force=True).result(SECONDS)
    assert len(models.engines) == 2
    assert [engine.alive for engine in models.engines] == [False, True]


def test_a_dead_engine_is_replaced(manager: ModelManager, models: FakeModels) -> None:
    first = manager.ensure_models_available()
    models.engine.die()
    assert manager.status()["status"] == "not_loaded"
    assert "ended" in str(manager.status()["last_error"])
    assert not manager.models_loaded.is_set()
    assert models.engine.closed.is_set()
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
    assert (manager.status()["status"], manager.status()["last_error"]) == ("ready", "gated")
    assert sing(manager).seed == 1


def test_another_model_cannot_be_asked_for_while_one_loads(manager: ModelManager, models: FakeModels) -> None:
    models.may_fetch.clear()
    first = manager.load("en-cot")
    assert manager.load("en-cot") is first
    assert manager.load() is first
    with pytest.raises(Problem, match="en-cot is being loaded"):
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
    assert isinstance(outcome.exception(SECONDS), EngineError)
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
