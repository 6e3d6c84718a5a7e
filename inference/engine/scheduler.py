"""Schedules many songs on one device: which run stage 1, whose pieces run stage 2, what is decoded next.

The steps of each song are those of `inference/engine/pipeline.py`; this module decides when each step runs, and batches
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

TOKENS_A_STEP = 16  # of stage 1; a cancelled song leaves after as many at the most
FRAMES_A_STEP = 4  # of stage 2
ENCODING_WAIT_S = 0.05  # a step's, where nothing is left to do but to encode


@dataclass(frozen=True)
class Limits:
    """How many songs sing together, and how many stage-2 rows play together."""

    songs: int
    rows: int


CPU_LIMITS = Limits(songs=8, rows=32)
MOST = Limits(songs=32, rows=128)  # beyond it a larger batch gains nothing on the fastest cards
ROWS_A_SONG = 3  # rows that keep one song's stage 2 busy
RESERVED_BYTES = 4 << 30  # of the GPU, for activations, recorded steps and the codec


@dataclass(frozen=True)
class EndedSong:
    """How a song ended."""

    song_id: str
    result: Song | YueError


class Scheduler:
    """Songs join and leave at any time; `step` takes all of them a little further. One thread calls it.

    A second thread encodes, so that the device goes on meanwhile. It ends with the engine.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None, recorder: Recorder | None = None) -> None:
        self.limits = limits or measured_limits(pipeline.composer, pipeline.upsampler)
        self._pipeline = pipeline
        self._stage1 = Stage1Batch(pipeline.composer, self.limits.songs, recorder)
        self._stage2 = Stage2Batch(pipeline.upsampler, self.limits.rows, recorder)
        self._songs: dict[str, SongInProgress] = {}  # every song that has not ended, in the order they came
        self._waiting: deque[str] = deque()  # for a place in the batch
        self._in_stage1: set[str] = set()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._encodings: dict[str, Future[dict[str, bytes]]] = {}
        self._ended: list[EndedSong] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing to tell."""
        return not self._songs and not self._ended

    @property
    def n_free_songs(self) -> int:
        """How many more songs can join at once."""
        return self._stage1.n_free

    @property
    def n_free_rows(self) -> int:
        """How many more stage-2 rows can play at once."""
        return self._stage2.n_free

    def prepare_next(self) -> bool:
        """Record one more step for songs to come, the smallest bucket first; whether there was one left.

        For when the engine is idle. A bucket that is needed before is recorded then, and the songs wait for it.
        """
        assert self.idle, "songs are being sung"
        missing = [static for static in self._statics.values() if static.recordings.missing]
        if missing:
            static = min(missing, key=lambda static: static.recordings.missing[0])
            static.prepare(static.recordings.missing[0])
        return bool(missing)

    @property
    def missing_steps(self) -> int:
        """How many more `prepare_next` would record."""
        return sum(len(static.recordings.missing) for static in self._statics.values())

    def recordings(self) -> dict[str, dict[str, object]]:
        """Which steps are recorded, of each stage that has recorded steps."""
        return {stage: static.recordings.status() for stage, static in self._statics.items()}

    def add(self, song_id: str, request: SongRequest, observe: Callable[[Progress], None]) -> None:
        """Sing this song as soon as there is room. A request that cannot be sung ends with the next step."""
        assert song_id not in self._songs, f"song {song_id} is being sung"
        with self._ending_alone(song_id):
            self._songs[song_id] = SongInProgress(self._pipeline, request, observe)
            self._waiting.append(song_id)

    def cancel(self, song_id: str) -> None:
        """End this song now. Nothing happens to one that is unknown or has ended."""
        if song_id in self._songs:
            self._end(song_id, Cancelled("the song was cancelled"))

    def step(self) -> list[EndedSong]:
        """A few tokens of stage 1, a few frames of stage 2, one part decoded; the songs that have ended since.

        What goes wrong with one song ends that song. What is raised concerns all of them, and leaves none in a known
        state: the engine must not be used again.
        """
        self._admit()
        if not self._stage_1_may_pause():
            self._run_stage1()
            self._hand_over()
        self._run_stage2()
        self._tell_progress()
        self._decode_one_part()
        self._collect_encoded()
        ended, self._ended = self._ended, []
        return ended

    def generate(self, request: SongRequest, observe: Callable[[Progress], None] = lambda progress: None) -> Song:
        """One song, on its own. Raises its YueError, or what `observe` raises."""
        assert self.idle, "others are being sung"
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
    def _statics(self) -> dict[str, RecordedStage1Step | RecordedStage2Step]:
        both = {"stage1": self._stage1.static, "stage2": self._stage2.static}
        return {stage: static for stage, static in both.items() if static}

    def _admit(self) -> None:
        while self._waiting and self._stage1.n_free:
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
                self._sacrifice(self._in_stage1, error)
            except Exception as error:
                reading = self._reading()
                if reading is None or not self._concerns_one_song(error):
                    raise
                self._end(reading, _as_ours(reading, error))

    def _reading(self) -> str | None:
        """The song whose prompt is being read, or was when something went wrong."""
        return next((name for name, song in self._songs.items() if song.composition is self._stage1.reading), None)

    def _hand_over(self) -> None:
        """Give stage 2 what has been sung."""
        for song_id in sorted(self._in_stage1):
            song = self._songs[song_id]
            with self._ending_alone(song_id):
                for piece in song.new_pieces():
                    self._stage2.join(piece)
                if song.composition.finished:
                    self._in_stage1.discard(song_id)
                    song.progress.enter("stage2")

    def _stage_1_may_pause(self) -> bool:
        """Whether all who sing await their first piece: it is heard sooner then, and nobody else is held up."""
        return bool(self._in_stage1) and all(self._songs[song_id].awaits_first_piece for song_id in self._in_stage1)

    def _waiting_pieces_may_begin(self) -> bool:
        """A pass costs the same for few rows as for many: so wait for many, unless somebody waits for these.

        That is a song without its first piece, or one that is all sung. All are at last: no piece waits forever.
        """
        if self._stage2.n_waiting >= self._stage2.n_free:
            return True
        waiting = (song for song in self._songs.values() if song.waits_for_stage_2)
        return any(song.composition.finished or song.awaits_first_piece for song in waiting)

    def _run_stage2(self) -> None:
        begin, taken = self._waiting_pieces_may_begin(), 0
        while taken < FRAMES_A_STEP:
            try:
                taken += self._stage2.step(begin)
            except torch.OutOfMemoryError as error:
                self._sacrifice({song_id for song_id, song in self._songs.items() if song.in_stage_2}, error)

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
        """End the songs that have become files; wait a moment for one where there is nothing else to do."""
        if self._encodings and len(self._encodings) == len(self._songs) and not self._ended:
            wait(self._encodings.values(), ENCODING_WAIT_S, FIRST_COMPLETED)
        for song_id in [song_id for song_id, encoding in self._encodings.items() if encoding.done()]:
            with self._ending_alone(song_id):
                self._end(song_id, self._songs[song_id].finish(_files(song_id, self._encodings[song_id])))

    def _tell_progress(self) -> None:
        for song_id, song in list(self._songs.items()):
            with self._ending_alone(song_id):
                song.tell_progress()

    @contextmanager
    def _ending_alone(self, song_id: str) -> Iterator[None]:
        """What goes wrong meanwhile ends this song. Raises what concerns all of them."""
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
        """Whether the others can go on. The device fails in RuntimeErrors, once and for all, or in numbers."""
        if isinstance(error, YueError | torch.OutOfMemoryError):
            return True
        return not isinstance(error, FloatingPointError) and (not isinstance(error, RuntimeError) or self._answers())

    def _answers(self) -> bool:
        """Whether the device still computes."""
        try:
            return torch.ones(1, device=self._pipeline.composer.device).item() == 1
        except RuntimeError:
            return False

    def _sacrifice(self, song_ids: set[str], error: torch.OutOfMemoryError) -> None:
        """End one of these, so that the others can go on: whose prompt was too much, or else the last that came.

        Raises where there is none.
        """
        candidates = [song_id for song_id in self._songs if song_id in song_ids]
        if not candidates:
            raise error
        reading = self._reading()
        sacrificed = reading if reading in candidates else candidates[-1]
        self._end(sacrificed, _as_ours(sacrificed, error))

    def _end(self, song_id: str, result: Song | YueError) -> None:
        """Take the song out of wherever it is, and tell its end."""
        song = self._songs.pop(song_id)
        if song_id in self._waiting:
            self._waiting.remove(song_id)
        if song_id in self._in_stage1:
            self._in_stage1.discard(song_id)
            self._stage1.leave(song.composition)
        if encoding := self._encodings.pop(song_id, None):
            encoding.cancel()  # one that has begun goes on, unheard
        for pieces in song.pieces.values():
            for piece in pieces:
                self._stage2.leave(piece)
        self._ended.append(EndedSong(song_id, result))


def make_engine(pipeline: Pipeline, options: EngineOptions) -> Scheduler:
    """The engine as the options want it. Raises EngineError where the device has no room for a song."""
    limits = chosen_limits(pipeline, options.max_songs)
    device = pipeline.composer.device
    if device.type != "cuda" or not options.compile:
        return Scheduler(pipeline, limits)
    for llama in (pipeline.composer, pipeline.upsampler):
        llama.compile()
    return Scheduler(pipeline, limits, Recorder.on(device, options.deterministic))


def chosen_limits(pipeline: Pipeline, max_songs: int | None) -> Limits:
    """What the device has room for, and no more than `max_songs` songs. Raises EngineError."""
    limits = measured_limits(pipeline.composer, pipeline.upsampler)
    return limits if max_songs is None else Limits(min(max_songs, limits.songs), limits.rows)


def measured_limits(composer: Llama, upsampler: Llama) -> Limits:
    """What the device's free memory has room for. Raises EngineError where that is not even one song."""
    if composer.device.type != "cuda":
        return CPU_LIMITS
    song_bytes = composer.cache_bytes(composer.context) + composer.cache_bytes(MAX_NEW_TOKENS + 1)
    row_bytes = upsampler.cache_bytes(ROW_TOKENS)
    torch.cuda.empty_cache()  # what loading took and gave back is free too
    free_bytes = torch.cuda.mem_get_info(composer.device)[0] - RESERVED_BYTES
    songs = min(MOST.songs, free_bytes // (song_bytes + ROWS_A_SONG * row_bytes))
    songs = max(songs, 1)
    rows = min(MOST.rows, (free_bytes - songs * song_bytes) // row_bytes)
    if rows < 1:
        needed_gb = (song_bytes + row_bytes) / 1e9
        raise EngineError(f"the GPU has {free_bytes / 1e9:.1f} GB left for songs, one needs {needed_gb:.1f} GB")
    return Limits(songs, rows)


def _files(song_id: str, encoding: Future[dict[str, bytes]]) -> dict[str, bytes]:
    """What has been encoded. Raises YueError: whatever went wrong concerns no other song, and not the device."""
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
    return YueError(f"the song cannot be made, by a mistake of the server: {type(error).__name__}: {error}")
