"""Many songs at once: each is what it would be alone, whatever else runs and whenever it came."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch

from inference.engine.pipeline import Pipeline, SongInProgress
from inference.engine.scheduler import ENCODING_WAIT_S, EndedSong, Limits, Scheduler
from inference.engine.stage1 import Composition, Stage1Settings
from inference.errors import Cancelled, EngineError, InvalidField, YueError
from inference.models.llama import Llama
from inference.song import MAX_NEW_TOKENS, Reference, Song, SongRequest
from inference.text.prompt import Prompt
from tests.support.scheduling import ignore, run
from tests.support.songs import request, tone

pytestmark = pytest.mark.slow


def different_songs(n: int) -> list[SongRequest]:
    """Songs that differ in everything that could leak from one to another."""
    dice = random.Random(5)
    return [
        request(
            seed=i,
            genres=dice.choice(["folk calm", "metal male loud", "jazz"]),
            max_new_tokens=dice.choice([50, 60, 80]),
            segments=dice.choice([1, 2]),
            temperature=dice.choice([0.0, 0.8, 1.0, 1.3]),
            top_k=dice.choice([0, 5, 50]),
            top_p=dice.choice([0.5, 0.93, 1.0]),
            guidance_scale=dice.choice([(1.5, 1.2), (1.0, 1.0), (1.0, 2.0)]),
            tracks=("vocal", "instrumental"),
        )
        for i in range(n)
    ]


def audio_of(outcome: EndedSong) -> dict[str, bytes]:
    assert isinstance(outcome.result, Song), outcome.result
    return outcome.result.audio


def test_eight_songs_at_random_arrivals_are_each_as_if_alone(small: Pipeline) -> None:
    songs = different_songs(8)
    alone = [Scheduler(small, Limits(1, 1)).generate(song).audio for song in songs]
    dice = random.Random(11)
    engine = Scheduler(small, Limits(songs=5, rows=7))
    arrivals = sorted((dice.randrange(20), i) for i in range(8))

    def arrive(step: int) -> None:
        while arrivals and (arrivals[0][0] <= step or engine.idle):
            _, i = arrivals.pop(0)
            engine.add(str(i), songs[i], ignore)

    outcomes = run(engine, arrive)
    assert len(outcomes) == 8
    for i in range(8):
        assert audio_of(outcomes[str(i)]) == alone[i], f"song {i}"


def test_a_song_of_many_pieces_sounds_as_in_one(small: Pipeline) -> None:
    long_song = request(seed=1, max_new_tokens=400, segments=2, tracks=("vocal",))
    alone = Scheduler(small).generate(long_song)
    assert alone.duration_seconds > 6.0
    engine = Scheduler(small, Limits(songs=2, rows=1))
    engine.add("long", long_song, ignore)
    engine.add("short", request(), ignore)
    assert audio_of(run(engine)["long"]) == alone.audio


def test_more_songs_than_places_are_all_generated(tiny_pipeline: Pipeline) -> None:
    engine = Scheduler(tiny_pipeline, Limits(songs=2, rows=2))
    for i in range(5):
        engine.add(str(i), request(seed=i, segments=1), ignore)
    outcomes = run(engine)
    assert {song_id for song_id, outcome in outcomes.items() if isinstance(outcome.result, Song)} == set("01234")


def test_a_refused_song_ends_and_the_others_go_on(tiny_pipeline: Pipeline) -> None:
    engine = Scheduler(tiny_pipeline)
    engine.add("bad", request(lyrics="no tag"), ignore)
    engine.add("good", request(segments=1), ignore)
    outcomes = run(engine)
    assert isinstance(outcomes["bad"].result, InvalidField)
    assert isinstance(outcomes["good"].result, Song)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((SongInProgress, "_composition"), AssertionError("a budget that no row has room for")),
        ((SongInProgress, "_composition"), RuntimeError("Overflow when unpacking long long")),
        ((Composition, "start_section"), IndexError("list index out of range")),
        ((SongInProgress, "new_pieces"), ValueError("a piece has 1 to 300 frames, not 0")),
        ((SongInProgress, "report_progress"), ZeroDivisionError("division by zero")),
        ((SongInProgress, "decode_part"), AssertionError("a piece has its codes when it is done")),
        ((SongInProgress, "result"), TypeError("a song without spans")),
    ],
)
def test_a_mistake_in_one_song_ends_it_and_no_other(
    small: Pipeline, monkeypatch: pytest.MonkeyPatch, place: tuple[type, str], error: Exception
) -> None:
    owner, name = place
    real = getattr(owner, name)

    def failing(self: Any, *arguments: Any) -> Any:
        if (self.request.seed if owner is SongInProgress else self.seed) == 1:
            raise error
        return real(self, *arguments)

    monkeypatch.setattr(owner, name, failing)
    monkeypatch.setattr(Composition, "seed", property(lambda self: self.noise._generator.initial_seed()), raising=False)
    engine = Scheduler(small, Limits(songs=2, rows=4))
    for seed in range(2):
        engine.add(str(seed), request(seed=seed, segments=1, max_new_tokens=4), ignore)
    outcomes = run(engine)
    assert isinstance(outcomes["1"].result, YueError) and str(error) in str(outcomes["1"].result)
    assert isinstance(outcomes["0"].result, Song)
    assert (engine.n_free_songs, engine.n_free_rows) == (engine.limits.songs, engine.limits.rows)


def test_a_fault_of_the_device_is_no_mistake_in_one_song(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(song: SongInProgress) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(SongInProgress, "decode_part", fail)
    monkeypatch.setattr(Scheduler, "_device_works", lambda engine: False)
    engine = Scheduler(small)
    engine.add("song", request(segments=1, max_new_tokens=4), ignore)
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(engine)


def test_a_section_that_the_model_has_no_room_for_is_refused(tiny_pipeline: Pipeline) -> None:
    engine = Scheduler(tiny_pipeline)
    for name, budget in (("million", 10**9), ("beyond", MAX_NEW_TOKENS + 1)):
        engine.add(name, request(max_new_tokens=budget), ignore)
    assert all(isinstance(outcome.result, InvalidField) for outcome in run(engine).values())
    few = Prompt("", ((1, 2, 3),), (0,))
    with pytest.raises(InvalidField, match="up to 4094"):
        Composition(few, Stage1Settings(max_new_tokens=5_000), 1, context=4_096)


@pytest.mark.parametrize("stage", ["prompt", "stage1", "stage2"])
def test_a_cancelled_song_leaves_its_place_at_once(tiny_pipeline: Pipeline, stage: str) -> None:
    engine = Scheduler(tiny_pipeline, Limits(songs=1, rows=2))
    seen: list[str] = []
    engine.add("first", request(max_new_tokens=400, segments=1), lambda progress: seen.append(progress.stage))
    engine.add("second", request(segments=1), ignore)
    while stage not in seen:
        engine.step()
    engine.cancel("first")
    engine.cancel("unknown")
    outcomes = run(engine)
    assert isinstance(outcomes["first"].result, Cancelled)
    assert isinstance(outcomes["second"].result, Song)


def test_a_full_gpu_ends_one_song_and_not_the_others(tiny_pipeline: Pipeline) -> None:
    """Memory runs out in the middle of stage 1, as an allocation in a forward would."""
    engine = Scheduler(tiny_pipeline)
    songs = {str(i): request(seed=i, segments=1) for i in range(3)}
    alone = {name: Scheduler(tiny_pipeline).generate(song).audio for name, song in songs.items()}
    for name, song in songs.items():
        engine.add(name, song, ignore)
    engine.step()
    with memory_that_runs_out(tiny_pipeline.stage1, at_forward=2):
        outcomes = run(engine)
    assert isinstance(outcomes["2"].result, EngineError)  # the one that came last
    assert all(audio_of(outcomes[name]) == alone[name] for name in "01")
    engine.add("next", songs["2"], ignore)
    assert audio_of(run(engine)["next"]) == alone["2"]


@contextmanager
def memory_that_runs_out(llama: Llama, at_forward: int) -> Iterator[None]:
    """Once, at so many forwards from now."""
    real_forward, numbers = llama.forward, count()

    def failing_forward(*arguments: object) -> torch.Tensor:
        if next(numbers) == at_forward:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real_forward(*arguments)  # type: ignore[arg-type]

    llama.forward = failing_forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del llama.forward


def test_a_song_whose_prompt_finds_no_memory_is_ended_itself(
    tiny_pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Scheduler(tiny_pipeline)
    for name in "01":
        engine.add(name, request(seed=int(name), segments=1), ignore)
    with memory_that_runs_out(tiny_pipeline.stage1, at_forward=0):
        outcomes = run(engine)
    assert isinstance(outcomes["0"].result, EngineError)
    assert isinstance(outcomes["1"].result, Song)
    assert [vars(record)["job_id"] for record in caplog.records if record.levelname == "ERROR"] == ["0"]


def test_numbers_that_are_none_stop_the_engine(tiny_pipeline: Pipeline) -> None:
    engine = Scheduler(tiny_pipeline)
    engine.add("song", request(), ignore)
    head = tiny_pipeline.stage1.model.lm_head.weight
    kept = head[50_000].clone()
    head[50_000] = torch.nan
    try:
        with pytest.raises(EngineError, match="non-finite"):
            run(engine)
    finally:
        head[50_000] = kept


def test_no_place_is_lost_over_many_random_lives(small: Pipeline) -> None:
    dice = random.Random(3)
    engine = Scheduler(small, Limits(songs=3, rows=3))
    made = 0

    def live(step: int) -> None:
        nonlocal made
        if made < 30 and dice.random() < 0.5:
            engine.add(str(made), request(seed=made, segments=dice.choice([1, 2]), max_new_tokens=40), ignore)
            made += 1
        if dice.random() < 0.3:
            engine.cancel(str(dice.randrange(30)))

    ended = 0
    for step in range(10_000):
        live(step)
        ended += len(engine.step())
        if made == 30 and engine.idle:
            break
    assert ended == 30
    assert (engine.n_free_songs, engine.n_free_rows) == (3, 3)


def test_a_reference_is_heard_by_its_own_song_only(tiny_pipeline: Pipeline) -> None:
    plain, referred = request(seed=8, segments=1), request(seed=8, segments=1, reference=Reference(mix=tone(2.0)))
    alone = [Scheduler(tiny_pipeline).generate(song).audio for song in (plain, referred)]
    assert alone[0] != alone[1]
    engine = Scheduler(tiny_pipeline)
    engine.add("plain", plain, ignore)
    engine.add("referred", referred, ignore)
    outcomes = run(engine)
    assert [audio_of(outcomes[name]) for name in ("plain", "referred")] == alone


def step_until_encoding(engine: Scheduler, seen: list[str]) -> None:
    """Until the song whose stages are `seen` is being encoded."""
    while "encode" not in seen:
        assert not engine.step()


class HeldEncoder:
    """Encodes as ever, but not before it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_go = threading.Event()
        real = SongInProgress.encode

        def encode(song: SongInProgress) -> dict[str, bytes]:
            assert self.let_go.wait(60)
            return real(song)

        monkeypatch.setattr(SongInProgress, "encode", encode)


def test_the_others_are_generated_while_a_song_is_encoded(
    tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = {"first": request(segments=1), "second": request(seed=1, segments=1)}
    alone = {name: Scheduler(tiny_pipeline).generate(song).audio for name, song in songs.items()}
    encoder = HeldEncoder(monkeypatch)
    engine = Scheduler(tiny_pipeline)
    for name, song in songs.items():
        seen: list[str] = []
        engine.add(name, song, lambda progress, seen=seen: seen.append(progress.stage))  # type: ignore[misc]
        step_until_encoding(engine, seen)
    assert not engine.idle
    began = time.monotonic()
    assert not engine.step() and not engine.step()
    assert time.monotonic() - began >= 2 * ENCODING_WAIT_S, "it waits where there is nothing else to do"
    encoder.let_go.set()
    outcomes = run(engine)
    assert {name: audio_of(outcome) for name, outcome in outcomes.items()} == alone


def test_a_song_can_be_cancelled_while_it_is_encoded(tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = HeldEncoder(monkeypatch)
    engine = Scheduler(tiny_pipeline)
    seen: list[str] = []
    engine.add("song", request(segments=1), lambda progress: seen.append(progress.stage))
    step_until_encoding(engine, seen)
    engine.cancel("song")
    (outcome,) = engine.step()
    assert isinstance(outcome.result, Cancelled)
    assert engine.idle
    encoder.let_go.set()
    assert isinstance(engine.generate(request(segments=1)), Song)


def test_what_cannot_be_encoded_ends_its_own_song(tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SongInProgress.encode

    def encode(song: SongInProgress) -> dict[str, bytes]:
        if song.request.seed == 1:
            raise MemoryError("no room for the file")
        return real(song)

    monkeypatch.setattr(SongInProgress, "encode", encode)
    engine = Scheduler(tiny_pipeline)
    for seed in range(2):
        engine.add(str(seed), request(seed=seed, segments=1), ignore)
    outcomes = run(engine)
    assert isinstance(outcomes["0"].result, Song)
    assert isinstance(outcomes["1"].result, EngineError) and "no room for the file" in str(outcomes["1"].result)


def test_the_encoder_ends_with_the_engine(tiny_pipeline: Pipeline) -> None:
    before = set(threading.enumerate())
    engine = Scheduler(tiny_pipeline)
    engine.generate(request(segments=1))
    (thread,) = set(threading.enumerate()) - before
    del engine
    thread.join(10)
    assert not thread.is_alive()
