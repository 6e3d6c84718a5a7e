"""The engine's own process: songs come back from it, and neither side outlives or hangs the other."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from inference.catalog import ModelFiles
from inference.engine.scheduler import Scheduler
from inference.errors import Cancelled, CheckpointError, EngineError, InvalidField, RecordingFailed
from inference.options import EngineOptions
from inference.process.engine_process import PROJECT, EngineProcess
from inference.process.engine_series import EngineSeries
from inference.song import Progress, SongPart
from tests.support.songs import request

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0
ON_CPU = EngineOptions("cpu", "float32")


@pytest.fixture(scope="module")
def engine(tiny_files: ModelFiles) -> Iterator[EngineProcess]:
    engine = EngineProcess.start(tiny_files, ON_CPU)
    yield engine
    engine.close()


@pytest.fixture
def fresh_engine(tiny_files: ModelFiles) -> Iterator[EngineProcess]:
    """An engine that the test may break."""
    engine = EngineProcess.start(tiny_files, ON_CPU)
    yield engine
    engine.close()


def ignore(progress: Progress) -> None:
    """An observer who does not look."""


def long_song(engine: EngineProcess, song_id: str) -> tuple:
    """A song that goes on for longer than a test, and an event that is set once it runs."""
    started = threading.Event()
    future = engine.generate(song_id, request(max_new_tokens=6_000), lambda progress: started.set())
    return future, started


def test_a_song_from_the_process_is_the_song_of_the_pipeline(engine: EngineProcess, tiny_engine: Scheduler) -> None:
    song = engine.generate("a", request(format="mp3"), ignore).result(DEADLINE_S)
    assert song.audio == tiny_engine.generate(request(format="mp3")).audio


def test_songs_are_generated_together_and_each_is_its_own(engine: EngineProcess, tiny_engine: Scheduler) -> None:
    futures = [engine.generate(f"song {seed}", request(segments=1, seed=seed), ignore) for seed in range(3)]
    for seed, future in enumerate(futures):
        assert future.result(DEADLINE_S).audio == tiny_engine.generate(request(segments=1, seed=seed)).audio


def test_a_short_song_does_not_wait_for_a_long_one(engine: EngineProcess) -> None:
    running, started = long_song(engine, "endless")
    assert started.wait(DEADLINE_S)
    assert engine.generate("short", request(segments=1), ignore).result(DEADLINE_S).audio
    assert not running.done()
    engine.cancel("endless")
    with pytest.raises(Cancelled):
        running.result(DEADLINE_S)


def test_a_process_that_hangs_is_killed(tiny_files: ModelFiles) -> None:
    engine = EngineProcess.start(tiny_files, ON_CPU, stall_seconds=2.0)
    running, started = long_song(engine, "hung")
    assert started.wait(DEADLINE_S)
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="made no progress with any song"):
        running.result(DEADLINE_S)
    assert not engine.alive
    engine.close()


def test_progress_reaches_the_parent(engine: EngineProcess) -> None:
    seen: list[Progress] = []
    engine.generate("watched", request(segments=1), seen.append).result(DEADLINE_S)
    assert {progress.stage for progress in seen} >= {"stage1", "stage2"}


def test_the_parts_of_a_song_reach_the_parent_before_its_end(engine: EngineProcess) -> None:
    parts: list[tuple[SongPart, bool]] = []
    done = threading.Event()
    future = engine.generate("song", request(), ignore, lambda part: parts.append((part, done.is_set())))
    future.add_done_callback(lambda song: done.set())
    engine.listen("song")
    assert future.result(DEADLINE_S).parts == len(parts) == 1
    part, came_late = parts[0]
    assert not came_late
    assert (part.index, part.end_seconds, list(part.audio)) == (0, 3.0, ["mix"])


def test_a_refused_song_raises_its_error_and_the_next_one_is_generated(engine: EngineProcess) -> None:
    refused = engine.generate("bad", request(lyrics="no tag"), ignore)
    good = engine.generate("good", request(segments=1), ignore)
    with pytest.raises(InvalidField, match="lyrics"):
        refused.result(DEADLINE_S)
    assert good.result(DEADLINE_S).audio


def test_cancel_ends_the_running_song_and_no_other(engine: EngineProcess) -> None:
    running, started = long_song(engine, "running")
    waiting = engine.generate("waiting", request(segments=1), ignore)
    assert started.wait(DEADLINE_S)
    engine.cancel("running")
    with pytest.raises(Cancelled):
        running.result(DEADLINE_S)
    assert waiting.result(DEADLINE_S).audio


def test_a_waiting_song_can_be_cancelled_and_an_unknown_one_is_ignored(engine: EngineProcess) -> None:
    running, started = long_song(engine, "long")
    waiting = engine.generate("never", request(), ignore)
    assert started.wait(DEADLINE_S)
    for name in ("never", "unknown", "long"):
        engine.cancel(name)
    for future in (running, waiting):
        with pytest.raises(Cancelled):
            future.result(DEADLINE_S)


def test_a_killed_process_fails_its_songs_and_says_how_it_ended(fresh_engine: EngineProcess) -> None:
    running, started = long_song(fresh_engine, "running")
    waiting = fresh_engine.generate("waiting", request(), ignore)
    assert started.wait(DEADLINE_S)
    os.kill(fresh_engine.pid, signal.SIGKILL)
    for future in (running, waiting):
        with pytest.raises(EngineError, match="SIGKILL"):
            future.result(DEADLINE_S)
    assert not fresh_engine.alive
    with pytest.raises(EngineError):
        fresh_engine.generate("late", request(), ignore).result(DEADLINE_S)


def test_closing_ends_the_process_and_its_songs(fresh_engine: EngineProcess) -> None:
    running, started = long_song(fresh_engine, "running")
    assert started.wait(DEADLINE_S)
    fresh_engine.close()
    with pytest.raises(EngineError):
        running.result(DEADLINE_S)
    with pytest.raises(ProcessLookupError):
        os.kill(fresh_engine.pid, 0)


def test_files_that_cannot_be_loaded_are_named(tiny_files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        EngineProcess.start(replace(tiny_files, codec=tmp_path), ON_CPU)


class Noted(EngineProcess):
    """An engine's process that breaks in a recording, if there is one."""

    compiles: ClassVar[list[bool]]

    @classmethod
    def start(cls, files: ModelFiles, options: EngineOptions, *arguments: Any, **named: Any) -> EngineProcess:
        cls.compiles.append(options.compile)
        return super().start(files, options, *arguments, **named)


def test_an_engine_that_broke_in_a_recording_is_followed_by_one_that_records_nothing(tiny_files: ModelFiles) -> None:
    program = ("tests.support.faulty_worker", "record", "stage1")
    kind = type("Breaking", (Noted,), {"program": program, "compiles": []})
    series = EngineSeries(ON_CPU, kind)
    first = series.start(tiny_files, lambda part: None)
    with pytest.raises(EngineError, match="recording stage 1 for 8 rows"):
        long_song(first, "lost")[0].result(DEADLINE_S)
    assert not first.alive
    first.close()
    series.start(tiny_files, lambda part: None).close()
    assert kind.compiles == [True, False]


def test_an_engine_that_breaks_in_a_recording_while_it_loads_is_started_again_at_once(tiny_files: ModelFiles) -> None:
    program = ("tests.support.faulty_worker", "record", "load")
    kind = type("Breaking", (Noted,), {"program": program, "compiles": []})
    with pytest.raises(RecordingFailed):
        EngineSeries(ON_CPU, kind).start(tiny_files, lambda part: None)
    assert kind.compiles == [True, False]


def test_loading_tells_its_parts(tiny_files: ModelFiles) -> None:
    parts: list[str] = []
    engine = EngineProcess.start(tiny_files, ON_CPU, parts.append)
    engine.close()
    assert parts == ["libraries", "tokenizer", "stage 1", "stage 2", "codec", "vocoders"]
    assert engine.info()["device"] == "cpu"


PARENT = """
import sys, time
from pathlib import Path
from inference.catalog import ModelFiles
from inference.options import EngineOptions
from inference.process.engine_process import EngineProcess
engine = EngineProcess.start(ModelFiles("tiny", "", *map(Path, sys.argv[1:])), EngineOptions("cpu", "float32"))
print(engine.pid, flush=True)
sys.stdin.read()
"""


def test_the_process_ends_when_its_parent_is_killed(tiny_files: ModelFiles) -> None:
    folders = [str(folder) for folder in (tiny_files.stage1, tiny_files.stage2, tiny_files.codec)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *folders], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout and parent.stdin
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    readable, _, _ = select.select([child], [], [], DEADLINE_S)  # a pidfd becomes readable when its process ends
    os.close(child)
    assert readable


def test_the_parents_side_imports_no_torch() -> None:
    code = "import sys, inference.process.engine_process; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
