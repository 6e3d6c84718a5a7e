"""Schedules many songs on one device: which songs run stage 1, which pieces run stage 2, what is decoded next.

The steps of a song are defined in `inference/engine/pipeline.py`. This module decides when each step runs, and batches
as many songs as fit into every forward pass.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from inference.engine.cuda_graphs import GraphRecorder
from inference.engine.pipeline import Pipeline, SongInProgress
from inference.engine.stage1_batch import RecordedStage1Step, Stage1Batch
from inference.engine.stage2 import ROW_TOKENS
from inference.engine.stage2_batch import RecordedStage2Step, Stage2Batch
from inference.errors import Cancelled, EngineError, YueError
from inference.log_relay import JOB
from inference.models.llama import Llama
from inference.options import EngineOptions
from inference.song import MAX_NEW_TOKENS, Progress, Song, SongPart, SongRequest

log = logging.getLogger(__name__)

TOKENS_PER_STEP = 16  # of stage 1; a cancelled song leaves after at most one step
FRAMES_PER_STEP = 4  # of stage 2
ENCODING_WAIT_S = 0.05  # in a step, if all songs are being encoded


@dataclass(frozen=True)
class Limits:
    """The batch sizes: songs in stage 1, rows (pieces) in stage 2."""

    songs: int
    rows: int


CPU_LIMITS = Limits(songs=8, rows=32)
MAX_LIMITS = Limits(songs=32, rows=128)  # a larger batch gains nothing on the fastest GPUs
ROWS_PER_SONG = 3  # the rows that keep pace with one song in stage 1
RESERVED_BYTES = 4 << 30  # GPU memory for activations, recorded steps and the codec


@dataclass(frozen=True)
class EndedSong:
    """How a song ended."""

    song_id: str
    result: Song | YueError


class Scheduler:
    """Generates songs that join and leave at any time. `step` advances all of them. Only one thread may call it.

    A second thread encodes, so that the device keeps working.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None, recorder: GraphRecorder | None = None) -> None:
        self.limits = limits or measured_limits(pipeline.stage1, pipeline.stage2)
        self._pipeline = pipeline
        self._stage1 = Stage1Batch(pipeline.stage1, self.limits.songs, recorder)
        self._stage2 = Stage2Batch(pipeline.stage2, self.limits.rows, recorder)
        self._songs: dict[str, SongInProgress] = {}  # every unfinished song, in order of arrival
        self._waiting: deque[str] = deque()  # for a slot in stage 1
        self._in_stage1: set[str] = set()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._encodings: dict[str, Future[dict[str, bytes]]] = {}
        self._ended: list[EndedSong] = []

    @property
    def idle(self) -> bool:
        """True while there is no song, and no result to return."""
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
        """Record one more step, the smallest batch size first, while the engine is idle. False if all are recorded.

        A batch size that is needed earlier is recorded on demand, and the songs wait for it.
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

    def add(
        self,
        song_id: str,
        request: SongRequest,
        observe: Callable[[Progress], None],
        on_part: Callable[[SongPart], None] | None = None,
    ) -> None:
        """Add a song. It starts when a slot is free. An invalid request fails at the next step.

        `on_part` is called with each decoded part, in order, by the thread that encodes.
        """
        assert song_id not in self._songs, f"song {song_id} is being generated"
        with self._end_song_on_error(song_id):
            self._songs[song_id] = SongInProgress(self._pipeline, request, observe, on_part)
            self._waiting.append(song_id)

    def listen(self, song_id: str) -> None:
        """Hurry the song, because somebody listens to it. Does nothing if it is unknown or has ended."""
        if song_id in self._songs:
            self._songs[song_id].listened = True

    def cancel(self, song_id: str) -> None:
        """End a song now. Does nothing if it is unknown or has ended."""
        if song_id in self._songs:
            self._end_song(song_id, Cancelled("the song was cancelled"))

    def step(self) -> list[EndedSong]:
        """Compute up to 16 tokens of stage 1, 4 frames of stage 2 and one part of audio. Returns the songs that ended.

        An error of one song ends only that song. An exception affects all songs and leaves them in an unknown state:
        the engine must not be used again.
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
            with self._end_song_on_error(song_id):
                self._stage1.join(self._songs[song_id].composition)
                self._in_stage1.add(song_id)

    def _run_stage1(self) -> None:
        taken = 0
        while taken < TOKENS_PER_STEP:
            try:
                taken += self._stage1.step()
            except torch.OutOfMemoryError as error:
                self._end_song_to_free_memory(self._in_stage1, error)
            except Exception as error:
                prefilling = self._prefilling_song()
                if prefilling is None or not self._affects_one_song(error):
                    raise
                self._end_song(prefilling, _as_yue_error(prefilling, error))

    def _prefilling_song(self) -> str | None:
        """The song in prefill, also after its prefill failed."""
        return next((name for name, song in self._songs.items() if song.composition is self._stage1.prefilling), None)

    def _hand_over(self) -> None:
        """Add the pieces that stage 1 has completed to stage 2."""
        for song_id in sorted(self._in_stage1):
            song = self._songs[song_id]
            with self._end_song_on_error(song_id):
                for piece in song.new_pieces():
                    self._stage2.join(piece)
                if song.composition.finished:
                    self._in_stage1.discard(song_id)
                    song.progress.enter("stage2")

    def _stage_1_may_pause(self) -> bool:
        """True while every song in stage 1 waits for its first piece, so that the pause delays no other song."""
        return bool(self._in_stage1) and all(self._songs[song_id].awaits_first_piece for song_id in self._in_stage1)

    def _waiting_pieces_may_start(self) -> bool:
        """True if all rows can be filled, or if a song needs its pieces now.

        A forward pass takes the same time for few rows as for many, so it waits for many, unless somebody listens to a
        song of which no piece runs, or a song has finished stage 1. Every song does, so no piece waits forever.
        """
        if self._stage2.n_waiting >= self.n_free_rows:
            return True
        waiting = (song for song in self._songs.values() if song.waits_for_stage_2)
        return any(song.composition.finished or song.runs_dry for song in waiting)

    def _run_stage2(self) -> None:
        start_waiting, taken = self._waiting_pieces_may_start(), 0
        while taken < FRAMES_PER_STEP:
            try:
                taken += self._stage2.step(start_waiting)
            except torch.OutOfMemoryError as error:
                self._end_song_to_free_memory(
                    {song_id for song_id, song in self._songs.items() if song.in_stage_2}, error
                )

    def _decode_one_part(self) -> None:
        for song_id, song in list(self._songs.items()):
            if not song.can_decode:
                continue
            with self._end_song_on_error(song_id):
                song.decode_part()
                self._encoder.submit(song.send_part, song.n_parts - 1, song.fully_decoded)
                if song.fully_decoded:
                    song.progress.enter("encode")
                    self._encodings[song_id] = self._encoder.submit(song.encode)
            return

    def _collect_encoded(self) -> None:
        """End the songs whose files are encoded. If nothing else is left to do, wait briefly for one."""
        if self._encodings and len(self._encodings) == len(self._songs) and not self._ended:
            wait(self._encodings.values(), ENCODING_WAIT_S, FIRST_COMPLETED)
        for song_id in [song_id for song_id, encoding in self._encodings.items() if encoding.done()]:
            with self._end_song_on_error(song_id):
                self._end_song(song_id, self._songs[song_id].result(_files(song_id, self._encodings[song_id])))

    def _report_progress(self) -> None:
        for song_id, song in list(self._songs.items()):
            with self._end_song_on_error(song_id):
                song.report_progress()

    @contextmanager
    def _end_song_on_error(self, song_id: str) -> Iterator[None]:
        """End this song if an error within affects it alone. Raises errors that affect all songs."""
        try:
            yield
        except Exception as error:
            if not self._affects_one_song(error):
                raise
            if song_id in self._songs:
                self._end_song(song_id, _as_yue_error(song_id, error))
            else:
                self._ended.append(EndedSong(song_id, _as_yue_error(song_id, error)))

    def _affects_one_song(self, error: Exception) -> bool:
        """True if the other songs can continue. A broken device raises RuntimeErrors permanently, or computes NaN."""
        if isinstance(error, YueError | torch.OutOfMemoryError):
            return True
        return not isinstance(error, FloatingPointError) and (
            not isinstance(error, RuntimeError) or self._device_works()
        )

    def _device_works(self) -> bool:
        """True if the device still computes."""
        try:
            return torch.ones(1, device=self._pipeline.stage1.device).item() == 1
        except RuntimeError:
            return False

    def _end_song_to_free_memory(self, song_ids: set[str], error: torch.OutOfMemoryError) -> None:
        """End one of the songs, so that the others can continue: the one in prefill, or else the newest.

        Raises `error` if there is no song.
        """
        candidates = [song_id for song_id in self._songs if song_id in song_ids]
        if not candidates:
            raise error
        prefilling = self._prefilling_song()
        chosen = prefilling if prefilling in candidates else candidates[-1]
        self._end_song(chosen, _as_yue_error(chosen, error))

    def _end_song(self, song_id: str, result: Song | YueError) -> None:
        """Remove the song from every stage, and return its result from the current step."""
        song = self._songs.pop(song_id)
        if song_id in self._waiting:
            self._waiting.remove(song_id)
        if song_id in self._in_stage1:
            self._in_stage1.discard(song_id)
            self._stage1.leave(song.composition)
        if encoding := self._encodings.pop(song_id, None):
            encoding.cancel()  # one that is running continues; its result is discarded
        for pieces in song.pieces.values():
            for piece in pieces:
                self._stage2.leave(piece)
        self._ended.append(EndedSong(song_id, result))


def make_engine(pipeline: Pipeline, options: EngineOptions) -> Scheduler:
    """The engine for the options. Raises EngineError if the device has not enough memory for one song."""
    limits = chosen_limits(pipeline, options.max_songs)
    device = pipeline.stage1.device
    if device.type != "cuda" or not options.compile:
        return Scheduler(pipeline, limits)
    for llama in (pipeline.stage1, pipeline.stage2):
        llama.compile()
    return Scheduler(pipeline, limits, GraphRecorder.on(device, options.deterministic))


def chosen_limits(pipeline: Pipeline, max_songs: int | None) -> Limits:
    """The measured limits, with at most `max_songs` songs. Raises EngineError."""
    limits = measured_limits(pipeline.stage1, pipeline.stage2)
    return limits if max_songs is None else Limits(min(max_songs, limits.songs), limits.rows)


def measured_limits(stage1: Llama, stage2: Llama) -> Limits:
    """The batch sizes that fit into the device's free memory. Raises EngineError if not even one song fits."""
    if stage1.device.type != "cuda":
        return CPU_LIMITS
    song_bytes = stage1.cache_bytes(stage1.context) + stage1.cache_bytes(MAX_NEW_TOKENS + 1)
    row_bytes = stage2.cache_bytes(ROW_TOKENS)
    torch.cuda.empty_cache()  # so that memory that loading no longer uses counts as free
    free_bytes = torch.cuda.mem_get_info(stage1.device)[0]
    usable_bytes = free_bytes - RESERVED_BYTES
    songs = min(MAX_LIMITS.songs, usable_bytes // (song_bytes + ROWS_PER_SONG * row_bytes))
    songs = max(songs, 1)
    rows = min(MAX_LIMITS.rows, (usable_bytes - songs * song_bytes) // row_bytes)
    if rows < 1:
        needed_bytes = song_bytes + row_bytes
        raise EngineError(
            f"not enough GPU memory for one song: {free_bytes / 1e9:.1f} GB are free, of which "
            f"{RESERVED_BYTES / 1e9:.1f} GB are reserved for activations; a song needs {needed_bytes / 1e9:.1f} GB"
        )
    return Limits(songs, rows)


def _files(song_id: str, encoding: Future[dict[str, bytes]]) -> dict[str, bytes]:
    """The encoded files. Raises YueError: an encoding error affects neither other songs nor the device."""
    try:
        return encoding.result()
    except YueError:
        raise
    except Exception as error:
        log.error("song %s could not be encoded", song_id, exc_info=error, extra={JOB: song_id})
        raise EngineError(f"the song could not be encoded ({type(error).__name__}: {error})") from error


def _as_yue_error(song_id: str, error: Exception) -> YueError:
    if isinstance(error, YueError):
        return error
    log.error("song %s was ended", song_id, exc_info=error, extra={JOB: song_id})
    if isinstance(error, torch.OutOfMemoryError):
        return EngineError("out of GPU memory; this song was ended so that the others can continue")
    return YueError(f"the song cannot be generated because of a bug in the server: {type(error).__name__}: {error}")
