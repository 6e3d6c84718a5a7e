"""Schedules many songs on one device: which songs run stage 1, which pieces run stage 2, what is decoded next.

The steps of a song are defined in `inference/engine/pipeline.py`. This module decides when each step runs, and batches
as many songs as fit into every pass through a model.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from inference.engine.cuda_graphs import Recorder
from inference.engine.pipeline import Pipeline, SongInProgress
from inference.engine.stage1_batch import RecordedStage1Step, Stage1Batch
from inference.engine.stage2 import ROW_TOKENS
from inference.engine.stage2_batch import RecordedStage2Step, Stage2Batch
from inference.errors import Cancelled, EngineError, YueError
from inference.log_relay import JOB
from inference.models.llama import Llama
from inference.options import EngineOptions
from inference.song import MAX_NEW_TOKENS, Progress, Song, SongRequest

log = logging.getLogger(__name__)

TOKENS_A_STEP = 16  # of stage 1; a cancelled song leaves after at most this many
FRAMES_A_STEP = 4  # of stage 2
ENCODING_WAIT_S = 0.05  # in a step, while all songs are being encoded


@dataclass(frozen=True)
class Limits:
    """The batch sizes: songs in stage 1, rows (pieces) in stage 2."""

    songs: int
    rows: int


CPU_LIMITS = Limits(songs=8, rows=32)
MOST = Limits(songs=32, rows=128)  # beyond it a larger batch gains nothing on the fastest cards
ROWS_A_SONG = 3  # rows that keep up with one song in stage 1
RESERVED_BYTES = 4 << 30  # of the GPU, for activations, recorded steps and the codec


@dataclass(frozen=True)
class EndedSong:
    """How a song ended."""

    song_id: str
    result: Song | YueError


class Scheduler:
    """Generates songs that join and leave at any time. `step` takes all of them a little further. One thread calls it.

    A second thread encodes, so the device keeps working. It ends with the engine.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None, recorder: Recorder | None = None) -> None:
        self.limits = limits or measured_limits(pipeline.composer, pipeline.upsampler)
        self._pipeline = pipeline
        self._stage1 = Stage1Batch(pipeline.composer, self.limits.songs, recorder)
        self._stage2 = Stage2Batch(pipeline.upsampler, self.limits.rows, recorder)
        self._songs: dict[str, SongInProgress] = {}  # every song that has not ended, in order of arrival
        self._waiting: deque[str] = deque()  # for a slot in stage 1
        self._in_stage1: set[str] = set()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._encodings: dict[str, Future[dict[str, bytes]]] = {}
        self._ended: list[EndedSong] = []

    @property
    def idle(self) -> bool:
        """True while there is no song, and no ended song to return."""
        return not self._songs and not self._ended

    @property
    def n_free_songs(self) -> int:
        """The free slots of stage 1."""
        return self._stage1.n_free

    @property
    def n_free_rows(self) -> int:
        """The free rows of stage 2."""
        return self._stage2.n_free

    def prepare_next(self) -> bool:
        """Record one more step, the smallest bucket first, while the engine is idle. False if all are recorded.

        A bucket that is needed earlier is recorded on demand, and the songs wait for it.
        """
        assert self.idle, "songs are being generated"
        missing = [step for step in self._recorded_steps.values() if step.recordings.missing]
        if missing:
            step = min(missing, key=lambda step: step.recordings.missing[0])
            step.prepare(step.recordings.missing[0])
        return bool(missing)

    @property
    def missing_steps(self) -> int:
        """The number of steps that are not recorded yet."""
        return sum(len(step.recordings.missing) for step in self._recorded_steps.values())

    def recordings(self) -> dict[str, dict[str, object]]:
        """The status of the recorded steps, by stage."""
        return {stage: step.recordings.status() for stage, step in self._recorded_steps.items()}

    def add(self, song_id: str, request: SongRequest, observe: Callable[[Progress], None]) -> None:
        """Generate a song, as soon as a slot is free. An invalid request ends with the next step."""
        assert song_id not in self._songs, f"song {song_id} is being generated"
        with self._ending_alone(song_id):
            self._songs[song_id] = SongInProgress(self._pipeline, request, observe)
            self._waiting.append(song_id)

    def cancel(self, song_id: str) -> None:
        """End a song now. If it is unknown or has ended, nothing happens."""
        if song_id in self._songs:
            self._end(song_id, Cancelled("the song was cancelled"))

    def step(self) -> list[EndedSong]:
        """Compute a few tokens of stage 1, a few frames of stage 2 and one part of audio. Returns the songs that ended.

        A failure of one song ends that song. An exception concerns all songs and leaves them in no known state: the
        engine must not be used again.
        """
        self._admit()
        if not self._stage_1_may_pause():
            self._run_stage1()
            self._hand_over()
        self._run_stage2()
        self._report_progress()
        self._decode_one_part()
        self._collect_encoded()
        ended, self._ended = self._ended, []
        return ended

    def generate(self, request: SongRequest, observe: Callable[[Progress], None] = lambda progress: None) -> Song:
        """Generate one song by itself. Raises its YueError, or whatever `observe` raises."""
        assert self.idle, "other songs are being generated"
        self.add("", request, observe)
        try:
            while not (ended := self.step()):
                pass
        except BaseException:
            self.cancel("")
            self._ended.clear()
            raise
        (outcome,) = ended
        if isinstance(outcome.result, Song):
            return outcome.result
        raise outcome.result

    @property
    def _recorded_steps(self) -> dict[str, RecordedStage1Step | RecordedStage2Step]:
        both = {"stage1": self._stage1.recorded, "stage2": self._stage2.recorded}
        return {stage: step for stage, step in both.items() if step}

    def _admit(self) -> None:
        while self._waiting and self.n_free_songs:
            song_id = self._waiting.popleft()
            with self._ending_alone(song_id):
                self._stage1.join(self._songs[song_id].composition)
                self._in_stage1.add(song_id)

    def _run_stage1(self) -> None:
        taken = 0
        while taken < TOKENS_A_STEP:
            try:
                taken += self._stage1.step()
            except torch.OutOfMemoryError as error:
                self._end_one_of(self._in_stage1, error)
            except Exception as error:
                reading = self._reading()
                if reading is None or not self._concerns_one_song(error):
                    raise
                self._end(reading, _as_ours(reading, error))

    def _reading(self) -> str | None:
        """The song whose prompt is being read, or was when an error occurred."""
        return next((name for name, song in self._songs.items() if song.composition is self._stage1.reading), None)

    def _hand_over(self) -> None:
        """Give stage 2 the pieces that stage 1 has completed."""
        for song_id in sorted(self._in_stage1):
            song = self._songs[song_id]
            with self._ending_alone(song_id):
                for piece in song.new_pieces():
                    self._stage2.join(piece)
                if song.composition.finished:
                    self._in_stage1.discard(song_id)
                    song.progress.enter("stage2")

    def _stage_1_may_pause(self) -> bool:
        """True while every song in stage 1 awaits its first piece: the pause delays no other song."""
        return bool(self._in_stage1) and all(self._songs[song_id].awaits_first_piece for song_id in self._in_stage1)

    def _waiting_pieces_may_begin(self) -> bool:
        """True if the rows can be filled, or a song needs its pieces now.

        A pass costs the same for few rows as for many, so it waits for many, unless a song has no piece yet or has
        finished stage 1. Every song finishes stage 1, so no piece waits forever.
        """
        if self._stage2.n_waiting >= self.n_free_rows:
            return True
        waiting = (song for song in self._songs.values() if song.waits_for_stage_2)
        return any(song.composition.finished or song.awaits_first_piece for song in waiting)

    def _run_stage2(self) -> None:
        begin, taken = self._waiting_pieces_may_begin(), 0
        while taken < FRAMES_A_STEP:
            try:
                taken += self._stage2.step(begin)
            except torch.OutOfMemoryError as error:
                self._end_one_of({song_id for song_id, song in self._songs.items() if song.in_stage_2}, error)

    def _decode_one_part(self) -> None:
        for song_id, song in list(self._songs.items()):
            if not song.can_decode:
                continue
            with self._ending_alone(song_id):
                song.decode_part()
                if song.fully_decoded:
                    song.progress.enter("encode")
                    self._encodings[song_id] = self._encoder.submit(song.encode)
            return

    def _collect_encoded(self) -> None:
        """End the songs whose files are encoded. If nothing else is left to do, wait a moment for one."""
        if self._encodings and len(self._encodings) == len(self._songs) and not self._ended:
            wait(self._encodings.values(), ENCODING_WAIT_S, FIRST_COMPLETED)
        for song_id in [song_id for song_id, encoding in self._encodings.items() if encoding.done()]:
            with self._ending_alone(song_id):
                self._end(song_id, self._songs[song_id].finish(_files(song_id, self._encodings[song_id])))

    def _report_progress(self) -> None:
        for song_id, song in list(self._songs.items()):
            with self._ending_alone(song_id):
                song.report_progress()

    @contextmanager
    def _ending_alone(self, song_id: str) -> Iterator[None]:
        """A failure within ends this song. Raises errors that concern all songs."""
        try:
            yield
        except Exception as error:
            if not self._concerns_one_song(error):
                raise
            if song_id in self._songs:
                self._end(song_id, _as_ours(song_id, error))
            else:
                self._ended.append(EndedSong(song_id, _as_ours(song_id, error)))

    def _concerns_one_song(self, error: Exception) -> bool:
        """True if the other songs can go on. A failing device raises RuntimeErrors for good, or computes NaN."""
        if isinstance(error, YueError | torch.OutOfMemoryError):
            return True
        return not isinstance(error, FloatingPointError) and (not isinstance(error, RuntimeError) or self._answers())

    def _answers(self) -> bool:
        """True if the device still computes."""
        try:
            return torch.ones(1, device=self._pipeline.composer.device).item() == 1
        except RuntimeError:
            return False

    def _end_one_of(self, song_ids: set[str], error: torch.OutOfMemoryError) -> None:
        """End one of the songs, so the others can go on: the one whose prompt is being read, or else the newest.

        Raises `error` if there is none.
        """
        candidates = [song_id for song_id in self._songs if song_id in song_ids]
        if not candidates:
            raise error
        reading = self._reading()
        chosen = reading if reading in candidates else candidates[-1]
        self._end(chosen, _as_ours(chosen, error))

    def _end(self, song_id: str, result: Song | YueError) -> None:
        """Remove the song from every stage, and report its end."""
        song = self._songs.pop(song_id)
        if song_id in self._waiting:
            self._waiting.remove(song_id)
        if song_id in self._in_stage1:
            self._in_stage1.discard(song_id)
            self._stage1.leave(song.composition)
        if encoding := self._encodings.pop(song_id, None):
            encoding.cancel()  # one that has begun goes on; its result is discarded
        for pieces in song.pieces.values():
            for piece in pieces:
                self._stage2.leave(piece)
        self._ended.append(EndedSong(song_id, result))


def make_engine(pipeline: Pipeline, options: EngineOptions) -> Scheduler:
    """The engine for the options. Raises EngineError if the device has no memory for a song."""
    limits = chosen_limits(pipeline, options.max_songs)
    device = pipeline.composer.device
    if device.type != "cuda" or not options.compile:
        return Scheduler(pipeline, limits)
    for llama in (pipeline.composer, pipeline.upsampler):
        llama.compile()
    return Scheduler(pipeline, limits, Recorder.on(device, options.deterministic))


def chosen_limits(pipeline: Pipeline, max_songs: int | None) -> Limits:
    """The measured limits, with at most `max_songs` songs. Raises EngineError."""
    limits = measured_limits(pipeline.composer, pipeline.upsampler)
    return limits if max_songs is None else Limits(min(max_songs, limits.songs), limits.rows)


def measured_limits(composer: Llama, upsampler: Llama) -> Limits:
    """The batch sizes that fit into the device's free memory. Raises EngineError if not even one song fits."""
    if composer.device.type != "cuda":
        return CPU_LIMITS
    song_bytes = composer.cache_bytes(composer.context) + composer.cache_bytes(MAX_NEW_TOKENS + 1)
    row_bytes = upsampler.cache_bytes(ROW_TOKENS)
    torch.cuda.empty_cache()  # memory that loading freed counts as free
    free_bytes = torch.cuda.mem_get_info(composer.device)[0] - RESERVED_BYTES
    songs = min(MOST.songs, free_bytes // (song_bytes + ROWS_A_SONG * row_bytes))
    songs = max(songs, 1)
    rows = min(MOST.rows, (free_bytes - songs * song_bytes) // row_bytes)
    if rows < 1:
        needed_gb = (song_bytes + row_bytes) / 1e9
        raise EngineError(f"the GPU has {free_bytes / 1e9:.1f} GB left for songs, one needs {needed_gb:.1f} GB")
    return Limits(songs, rows)


def _files(song_id: str, encoding: Future[dict[str, bytes]]) -> dict[str, bytes]:
    """The encoded files. Raises YueError: an encoding error concerns neither other songs nor the device."""
    try:
        return encoding.result()
    except YueError:
        raise
    except Exception as error:
        log.error("song %s could not be encoded", song_id, exc_info=error, extra={JOB: song_id})
        raise EngineError(f"the song could not be encoded ({type(error).__name__}: {error})") from error


def _as_ours(song_id: str, error: Exception) -> YueError:
    if isinstance(error, YueError):
        return error
    log.error("song %s was ended", song_id, exc_info=error, extra={JOB: song_id})
    if isinstance(error, torch.OutOfMemoryError):
        return EngineError("the GPU's memory was full; the song was ended so that the others could go on")
    return YueError(f"the song cannot be generated because of a bug in the server: {type(error).__name__}: {error}")
