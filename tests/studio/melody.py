"""A light engine whose songs are real audio that comes part by part, and a whole server over it.

Independent of the studio. A song takes a tenth of the time that it lasts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import lru_cache

import numpy as np
from flask import Flask

from inference import catalog
from inference.audio.encoding import encode
from inference.catalog import ModelFiles
from inference.errors import Cancelled
from inference.song import TRACK_NAMES, Progress, SectionSpan, Song, SongPart, SongRequest
from inference.text import lyrics, prompt
from inference.vocabulary import TOKENS_PER_SECOND, VOCODER_RATE_HZ
from model_manager import ModelManager
from server import create_app
from tests.support.fakes import FakeModels

PART_SECONDS = 3.0
SPEED = 10.0  # seconds of audio in a second


class MelodyEngine:
    """Each song in a thread of its own."""

    alive, ending = True, "was closed"

    def __init__(self) -> None:
        self._cancelled: dict[str, threading.Event] = {}

    def generate(
        self,
        song_id: str,
        request: SongRequest,
        on_progress: Callable[[Progress], None],
        on_part: Callable[[SongPart], None],
    ) -> Future[Song]:
        future: Future[Song] = Future()
        cancelled = self._cancelled[song_id] = threading.Event()

        def run() -> None:
            for progress, part in parts_of(request):
                if cancelled.wait(PART_SECONDS / SPEED):
                    future.set_exception(Cancelled("the song was cancelled"))
                    return
                on_part(part)
                on_progress(progress)
            future.set_result(song_of(request))

        threading.Thread(target=run, daemon=True).start()
        return future

    def listen(self, song_id: str) -> None:
        pass

    def cancel(self, song_id: str) -> None:
        if song_id in self._cancelled:
            self._cancelled[song_id].set()

    def info(self) -> dict[str, object]:
        return {"device": "cpu", "dtype": "float32", "memory_bytes": None, "max_songs": 4}

    def close(self) -> None:
        for cancelled in self._cancelled.values():
            cancelled.set()


def melody_app() -> Flask:
    """A whole server but for its networks; its settings come from the environment."""

    def start_engine(files: ModelFiles, on_loading: Callable[[str], None]) -> MelodyEngine:
        return MelodyEngine()

    return create_app(manager=ModelManager(catalog.find("tiny"), FakeModels().fetch, start_engine))


def spans_of(request: SongRequest) -> tuple[SectionSpan, ...]:
    """The sections of a song: each is as long as it may be."""
    sections = lyrics.parse(request.lyrics).sections
    seconds = request.max_new_tokens / TOKENS_PER_SECOND
    generated = sections[: prompt.sections_generated(request.segments, len(sections))]
    return tuple(SectionSpan(each.tag, seconds * n, seconds * (n + 1)) for n, each in enumerate(generated))


def parts_of(request: SongRequest) -> Iterator[tuple[Progress, SongPart]]:
    """The parts of a song, each with the progress that it brings."""
    spans = spans_of(request)
    waves = {track: melody(request.seed, track, spans[-1].end_seconds) for track in request.tracks}
    for index, end in enumerate(part_ends(spans[-1].end_seconds)):
        begin = index * PART_SECONDS
        section = next(n for n, span in enumerate(spans, 1) if end <= span.end_seconds)
        audio = {
            track: encode(wave[_samples(begin) : _samples(end)], VOCODER_RATE_HZ, "flac", {})
            for track, wave in waves.items()
        }
        fraction = end / spans[-1].end_seconds
        left = (spans[-1].end_seconds - end) / SPEED
        yield Progress("stage1", section, len(spans), 1, 0, 0, fraction, left), SongPart(index, end, audio)


def song_of(request: SongRequest) -> Song:
    """The finished song."""
    spans = spans_of(request)
    waves = {track: melody(request.seed, track, spans[-1].end_seconds) for track in request.tracks}
    files = {track: encode(wave, VOCODER_RATE_HZ, request.format, {}) for track, wave in waves.items()}
    n_parts = len(part_ends(spans[-1].end_seconds))
    return Song(files, request.format, VOCODER_RATE_HZ, spans[-1].end_seconds, request.seed, spans, parts=n_parts)


def part_ends(seconds: float) -> list[float]:
    """Where the parts of so long a song end."""
    return [*np.arange(PART_SECONDS, seconds, PART_SECONDS).tolist(), seconds]


@lru_cache(maxsize=12)
def melody(seed: int, track: str, seconds: float) -> np.ndarray:
    """Notes that swell and fade, other ones for each seed and track (samples,)."""
    times = np.arange(_samples(seconds)) / VOCODER_RATE_HZ
    notes = np.random.default_rng([seed, TRACK_NAMES.index(track)]).integers(4, 12, 1 + int(seconds * 4))
    pitch_hz = 50.0 * notes[(times * 4).astype(int)]
    swell = 0.4 + 0.3 * np.sin(times) * np.exp(-4 * (times % 0.25))
    wave: np.ndarray = swell * np.sin(2 * np.pi * pitch_hz * times)
    return wave


def _samples(seconds: float) -> int:
    return round(seconds * VOCODER_RATE_HZ)
