"""The engine's process is killed with songs in it: the next one generates each once, as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from inference.catalog import TINY, Model, ModelFiles, find
from inference.engine.scheduler import Scheduler
from inference.options import EngineOptions
from inference.process.engine_process import EngineProcess
from inference.song import SongRequest
from model_manager import ModelManager
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from serving.models.states import Fetch
from storage import Storage
from tests.support.songs import request

pytestmark = pytest.mark.slow

DEADLINE_S = 90.0


class FilesThatAreHere:
    """A download of what is here already."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> ModelFiles:
        return self._files

    def cancel(self) -> None:
        """Nothing runs."""


class Engines:
    """Starts real engines, and knows the newest."""

    def __init__(self) -> None:
        self.started: list[EngineProcess] = []

    def start(self, files: ModelFiles, on_loading: Callable[[str], None]) -> EngineProcess:
        self.started.append(EngineProcess.start(files, EngineOptions("cpu", "float32"), on_loading))
        return self.started[-1]


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def jobs(engines: Engines, tiny_files: ModelFiles, tmp_path: Path) -> Iterator[Jobs]:
    def fetch(model: Model, force: bool) -> Fetch:
        return FilesThatAreHere(tiny_files)

    jobs = Jobs(ModelManager(find(TINY), fetch, engines.start), JobStore(Storage.at(tmp_path)), max_queue=10)
    yield jobs
    jobs.close()


def job(song: SongRequest) -> Job:
    return Job(song, TINY)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_songs_outlive_the_death_of_their_engine(
    jobs: Jobs, engines: Engines, tiny_engine: Scheduler, stage: str
) -> None:
    songs = [request(seed=seed, segments=1, max_new_tokens=160) for seed in range(3)]
    submitted = [jobs.submit(job(song)) for song in songs]
    first = submitted[0]
    assert jobs.queue.wait_until(lambda: first.progress is not None and first.progress.stage == stage, DEADLINE_S)
    os.kill(engines.started[0].pid, signal.SIGKILL)
    for each, song in zip(submitted, songs, strict=True):
        assert jobs.wait(each, DEADLINE_S)
        assert each.song is not None, each.error
        assert each.song.audio == tiny_engine.generate(song).audio
    assert len(engines.started) == 2


def test_a_song_that_was_cancelled_is_not_generated_after_its_engine_died(jobs: Jobs, engines: Engines) -> None:
    endless = jobs.submit(job(request(max_new_tokens=6_000)))
    assert jobs.queue.wait_until(lambda: endless.progress is not None, DEADLINE_S)
    os.kill(engines.started[0].pid, signal.SIGSTOP)  # it hears nothing any more
    jobs.cancel(endless.id)
    os.kill(engines.started[0].pid, signal.SIGKILL)
    assert jobs.wait(endless, DEADLINE_S)
    assert endless.state == "cancelled"
    assert len(engines.started) == 1
