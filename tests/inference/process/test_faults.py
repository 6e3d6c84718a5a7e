"""What goes wrong ends one song or one engine, and nothing else: random lives, and real processes that break."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from inference.catalog import TINY, Model, ModelFiles, find
from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Limits, Scheduler
from inference.errors import Cancelled, EngineError
from inference.models.llama import Llama
from inference.options import EngineOptions
from inference.process.engine_process import EngineProcess
from inference.song import Progress, Song, SongPart, SongRequest
from model_manager import ModelManager
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from serving.models.states import Fetch
from storage import Storage
from tests.support.fakes import new_folder
from tests.support.faulty_worker import FaultyEngine
from tests.support.language_models import small_llama
from tests.support.songs import request

pytestmark = pytest.mark.slow

DEADLINE_S = 120.0
RUNS = 200
POOL = 8  # different songs
Alone = Callable[[int], bytes]


def ignore(progress: Progress) -> None:
    """An observer who does not look."""


def song_of(number: int) -> SongRequest:
    """A song of a moment; the numbers 0 … POOL - 1 differ in all that could leak from one to another."""
    return request(
        seed=number,
        genres=["folk calm", "metal male loud"][number % 2],
        segments=1 + number % 2,
        max_new_tokens=[4, 7, 12][number % 3],
        guidance_scale=[(1.5, 1.2), (1.0, 1.0), (1.0, 2.0)][number // 2 % 3],
    )


@pytest.fixture(scope="module")
def small(tiny_pipeline: Pipeline) -> Pipeline:
    """The tiny model with smaller language models."""
    tiny = tiny_pipeline
    composer, upsampler = small_llama("stage1"), small_llama("stage2")
    return Pipeline("small", tiny.tokenizer, composer, upsampler, tiny.codec, tiny.vocoders)


@pytest.fixture(scope="module")
def alone(small: Pipeline) -> Alone:
    """The bytes of a song that is generated alone."""

    @cache
    def generate_alone(number: int) -> bytes:
        return Scheduler(small, Limits(1, 1)).generate(song_of(number)).audio["mix"]

    return generate_alone


class Life:
    """Some songs that come to an engine at random times, and all that is known of how they ended."""

    def __init__(self, seed: int, pipeline: Pipeline) -> None:
        self.dice = random.Random(seed)
        self.pipeline = pipeline
        self.songs = {f"{i}": self.dice.randrange(POOL) for i in range(self.dice.randint(2, 3))}
        self.arrivals = {song_id: self.dice.randrange(6) for song_id in self.songs}
        self.cancelled: dict[int, list[str]] = {}  # before which step
        self.ended: dict[str, Song | Exception] = {}
        self.before_step: Callable[[int], None] = lambda step: None

    def live(self) -> Scheduler:
        """Until every song that has not ended yet has. Raises what the engine raises."""
        engine = Scheduler(self.pipeline, Limits(songs=self.dice.randint(1, 3), rows=self.dice.randint(1, 4)))
        coming, step = [song_id for song_id in self.songs if song_id not in self.ended], 0
        while coming or not engine.idle:
            for song_id in [each for each in coming if self.arrivals[each] <= step]:
                coming.remove(song_id)
                engine.add(song_id, song_of(self.songs[song_id]), ignore)
            self.before_step(step)
            left = [song_id for song_id in self.cancelled.get(step, []) if song_id not in [*coming, *self.ended]]
            for song_id in left:
                engine.cancel(song_id)
            for outcome in engine.step():
                assert outcome.song_id not in self.ended, "a song ends once"
                self.ended[outcome.song_id] = outcome.result
            assert all(song_id in self.ended for song_id in left), "a cancelled song ends with the next step"
            step += 1
        assert (engine.n_free_songs, engine.n_free_rows) == (engine.limits.songs, engine.limits.rows)
        return engine

    def check(self, alone: Alone) -> None:
        """Every song has ended, and what was generated is what it would be alone."""
        assert self.ended.keys() == self.songs.keys()
        for song_id, result in self.ended.items():
            if isinstance(result, Song):
                assert result.audio["mix"] == alone(self.songs[song_id]), f"song {song_id}"

    def all_ended(self, *kinds: type) -> int:
        """How many songs ended in one of these."""
        return sum(isinstance(result, kinds) for result in self.ended.values())


@contextmanager
def out_of_memory(llama: Llama, calls: set[int]) -> Iterator[list[int]]:
    """The forwards of these numbers find no memory; the list tells which did not."""
    forward, count, failed = llama.forward, iter(range(1_000_000)), []

    def failing(*arguments: Any) -> torch.Tensor:
        call = next(count)
        if call in calls:
            failed.append(call)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments)

    llama.forward = failing  # type: ignore[method-assign]
    try:
        yield failed
    finally:
        del llama.forward


def a_full_gpu(life: Life, llama: Llama, alone: Alone) -> None:
    first = life.dice.randrange(40)
    with out_of_memory(llama, {first, first + life.dice.randint(1, 5)}) as failed:
        life.live()
    life.check(alone)
    assert life.all_ended(EngineError) == len(failed), "each time one song, and no more"


def numbers_that_are_none(life: Life, llama: Llama, alone: Alone) -> None:
    weights = life.dice.choice([llama.model.model.norm.weight, llama.model.model.layers[0].mlp.down_proj.weight])
    kept, moment = weights.clone(), life.dice.randrange(6)

    def poison(step: int) -> None:
        if step == moment:
            weights.view(-1)[life.dice.randrange(weights.numel())] = torch.nan

    life.before_step = poison
    try:
        life.live()
    except EngineError as error:
        assert "non-finite" in str(error)
        before = life.all_ended(Song)
        assert before == len(life.ended)
    finally:
        weights.copy_(kept)
    life.before_step = lambda step: None
    life.live()  # as the next process does, with the songs that are left
    life.check(alone)
    assert life.all_ended(Song) == len(life.songs)


def cancels(life: Life, llama: Llama, alone: Alone) -> None:
    for song_id in [*life.dice.sample(sorted(life.songs), 2), "unknown"]:
        life.cancelled.setdefault(life.dice.randrange(7), []).append(song_id)
    life.cancelled = {step: [each for each in ids if each in life.songs] for step, ids in life.cancelled.items()}
    life.live()
    life.check(alone)
    assert life.all_ended(Song, Cancelled) == len(life.songs)
    assert life.all_ended(Cancelled) <= 2


class EngineInAThread:
    """An engine as its parent sees it, which ends as a killed process does, after some steps."""

    def __init__(self, pipeline: Pipeline, limits: Limits, steps: int) -> None:
        self._engine, self._limits, self._steps = Scheduler(pipeline, limits), limits, steps
        self._songs: dict[str, Future[Song]] = {}
        self._orders: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._dead = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    ending = "was ended by SIGKILL"

    @property
    def alive(self) -> bool:
        return not self._dead

    def info(self) -> dict[str, object]:
        return {"max_songs": self._limits.songs}

    def generate(
        self,
        song_id: str,
        song: SongRequest,
        on_progress: Callable[[Progress], None],
        on_part: Callable[[SongPart], None],
    ) -> Future[Song]:
        future: Future[Song] = Future()
        with self._changed:
            if self._dead:
                future.set_exception(EngineError(f"the engine's process {self.ending}"))
                return future
            self._songs[song_id] = future
            self._orders.append(lambda: self._engine.add(song_id, song, on_progress, on_part))
            self._changed.notify_all()
        return future

    def listen(self, song_id: str) -> None:
        with self._changed:
            self._orders.append(lambda: self._engine.listen(song_id))
            self._changed.notify_all()

    def cancel(self, song_id: str) -> None:
        with self._changed:
            self._orders.append(lambda: self._engine.cancel(song_id))
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._dead = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while not self._dead and self._steps:
            with self._changed:
                self._changed.wait_for(lambda: self._dead or self._orders or not self._engine.idle)
                orders, self._orders = self._orders, []
            for order in orders:
                order()
            self._steps -= 1
            for outcome in self._engine.step():
                future = self._songs.pop(outcome.song_id)
                if isinstance(outcome.result, Song):
                    future.set_result(outcome.result)
                else:
                    future.set_exception(outcome.result)
        with self._changed:
            self._dead = True
        for future in self._songs.values():
            future.set_exception(EngineError("the engine's process was ended by SIGKILL"))


def a_killed_process(life: Life, llama: Llama, alone: Alone) -> None:
    limits = Limits(songs=life.dice.randint(1, 3), rows=life.dice.randint(1, 4))
    lives = iter([life.dice.randint(1, 7)])  # steps of the first engine; the next one continues

    def start(files: ModelFiles, on_loading: Callable[[str], None]) -> EngineInAThread:
        return EngineInAThread(life.pipeline, limits, next(lives, -1))

    with jobs_over(start) as jobs:
        submitted = [jobs.submit(Job(song_of(number), TINY)) for number in life.songs.values()]
        unwanted = life.dice.choice([None, *submitted])
        if unwanted:
            jobs.cancel(unwanted.id)
        for job in submitted:
            assert jobs.wait(job, DEADLINE_S)
            assert job.attempts <= 2
    for job, (song_id, number) in zip(submitted, life.songs.items(), strict=True):
        if job.song:
            assert job.song.audio["mix"] == alone(number), f"song {song_id}"
        assert job.state == "succeeded" or (job is unwanted and job.state == "cancelled"), job.error


FAULTS = (a_full_gpu, numbers_that_are_none, cancels, a_killed_process)


@pytest.mark.parametrize("seed", range(RUNS))
def test_in_a_random_life_nothing_is_lost_but_what_the_fault_takes(small: Pipeline, alone: Alone, seed: int) -> None:
    life = Life(seed, small)
    fault = FAULTS[seed % len(FAULTS)]
    fault(life, life.dice.choice([small.stage1, small.stage2]), alone)


# -- real processes


class FilesThatAreHere:
    """A download of what is here already."""

    def __init__(self, files: ModelFiles | None) -> None:
        self._files = files

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> Any:
        return self._files or ModelFiles(TINY, "", *3 * [None])  # type: ignore[arg-type]

    def cancel(self) -> None:
        """Nothing runs."""


@contextmanager
def jobs_over(start: Callable[..., Any], files: ModelFiles | None = None) -> Iterator[Jobs]:
    """Jobs whose engines are made by `start`."""

    def fetch(model: Model, force: bool) -> Fetch:
        return FilesThatAreHere(files)

    jobs = Jobs(ModelManager(find(TINY), fetch, start), JobStore(Storage.at(new_folder())), max_queue=10)
    try:
        yield jobs
    finally:
        jobs.close()


def test_a_process_that_does_not_get_on_with_loading_is_killed(
    tiny_files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.faulty_worker.PART_SECONDS", 2.0)
    with pytest.raises(EngineError, match="took more than 2 s to load a part of the models"):
        FaultyEngine.broken("block", "load", tiny_files, lambda part: None)


class KeptEngine(EngineProcess):
    """One that the tests share: starting it takes longer than the songs."""

    def close(self) -> None:
        """The next test needs it."""


@pytest.fixture(scope="module")
def next_engine(tiny_files: ModelFiles) -> Iterator[EngineProcess]:
    """A sound one, which takes the place of those that break."""
    engine = KeptEngine.start(tiny_files, EngineOptions("cpu", "float32"))
    yield engine
    EngineProcess.close(engine)


@pytest.mark.parametrize(
    ("fault", "stage", "words"),
    [
        ("kill", "decode", "SIGKILL"),  # the other stages: test_recovery.py
        ("spin", "stage1", "made no progress with any song"),
        ("idle", "stage1", "made no progress with any song"),
        ("block", "stage2", "made no progress with any song"),
        ("block", "decode", "made no progress with any song"),
        ("nan", "stage1", "stage 1 computed non-finite logits"),
        ("nan", "stage2", "stage 2 computed non-finite logits"),
        ("nan", "decode", "non-finite samples"),
        ("cuda", "stage2", "illegal memory access"),
    ],
)
def test_a_process_that_breaks_is_replaced_and_its_songs_are_generated_once_more(
    tiny_files: ModelFiles, tiny_engine: Scheduler, next_engine: EngineProcess, fault: str, stage: str, words: str
) -> None:
    engines: list[EngineProcess] = []

    def start(files: ModelFiles, on_loading: Callable[[str], None]) -> EngineProcess:
        engines.append(next_engine if engines else FaultyEngine.broken(fault, stage, files, on_loading))
        return engines[-1]

    songs = [request(seed=seed, segments=1) for seed in range(2)]
    with jobs_over(start, tiny_files) as jobs:
        submitted = [jobs.submit(Job(song, TINY)) for song in songs]
        for job, song in zip(submitted, songs, strict=True):
            assert jobs.wait(job, DEADLINE_S)
            assert job.song is not None, job.error
            assert job.song.audio == tiny_engine.generate(song).audio
        assert words in engines[0].ending
        assert len(engines) == 2 and max(job.attempts for job in submitted) == 2


def test_songs_that_keep_coming_do_not_hide_a_hang(tiny_files: ModelFiles) -> None:
    engine = FaultyEngine.broken("block", "stage1", tiny_files, lambda part: None)
    hung = engine.generate("hung", request(), ignore)
    coming = (engine.generate(f"song {i}", request(), ignore) for i in range(60))
    while not wait([hung], timeout=1.0).done:
        assert next(coming, None), "a minute of songs, and the hang was not noticed"
    assert "made no progress with any song" in str(hung.exception())
    engine.close()
