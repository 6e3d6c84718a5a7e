"""The shape of a song for a page that draws it: the largest sample in each twentieth of a second.

Of a song that is not finished it covers the parts that are stored by now. Independent of routes.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import soundfile
from pydantic import BaseModel, Field

from inference.song import TRACK_NAMES, Song
from inference.vocabulary import VOCODER_RATE_HZ, exact_div
from serving.http.response_models import Number, Segment
from serving.jobs.job import Job, SizedAudio
from serving.jobs.service import Jobs
from storage import StorageError

PEAKS_PER_SECOND = 20
WINDOW_SAMPLES = exact_div(VOCODER_RATE_HZ, PEAKS_PER_SECOND)
BLOCK_SAMPLES = 200 * WINDOW_SAMPLES
MOST_TRACKS = 64  # whose peaks are kept


class Peaks(BaseModel):
    """The shape of a track, as far as it is generated."""

    track: str = Field(json_schema_extra={"enum": list(TRACK_NAMES)})
    seconds: Number = Field(description="of the track so far")
    per_second: int = Field(description="how many peaks a second has")
    complete: bool = Field(description="true once the song is finished")
    peaks: list[float] = Field(description="the largest absolute sample of each window, 0 to 1")
    sections: list[Segment] = Field(description="the sections, as far as the song is generated")


@dataclass
class _Shape:
    """The peaks of the samples so far. Whoever reads or changes it holds its lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    sources: list[str] = field(default_factory=list)  # which files the samples are from, in their versions
    peaks: list[float] = field(default_factory=list)  # of whole windows
    rest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # the samples after them
    n_samples: int = 0

    def clear(self) -> None:
        """Begin anew."""
        self.sources, self.peaks, self.rest, self.n_samples = [], [], np.zeros(0, np.float32), 0

    def add_file(self, source: str, file: io.BytesIO) -> None:
        """Go on with the samples of a file. Raises StorageError."""
        for samples in _blocks(source, file):
            self.add(samples)
        self.sources.append(source)

    def add(self, samples: np.ndarray) -> None:
        """Go on with these samples (n,)."""
        self.n_samples += len(samples)
        samples = np.abs(np.concatenate([self.rest, samples]))
        whole = len(samples) - len(samples) % WINDOW_SAMPLES
        self.peaks += _rounded(samples[:whole].reshape(-1, WINDOW_SAMPLES).max(axis=1))
        self.rest = samples[whole:]

    def all_peaks(self) -> list[float]:
        """The peaks, with that of the last window, which may be shorter."""
        return self.peaks + (_rounded(self.rest.max(keepdims=True)) if len(self.rest) else [])


class PeakFinder:
    """Computes peaks, each part of a track once while it is remembered. Any thread may call it."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._shapes: OrderedDict[tuple[str, str], _Shape] = OrderedDict()

    def peaks(self, job: Job, track: str) -> Peaks:
        """The peaks of a track that was asked for. Raises StorageError."""
        song = job.song  # read first: then all parts are there
        shape = self._remembered(job, track)
        with shape.lock:  # a song of minutes takes a second, and the result serves all
            try:
                if song and not song.parts:
                    _add_song(shape, song, track)
                else:
                    self._add_parts(shape, job, track)
            except BaseException:
                shape.clear()  # it may hold half of a part
                raise
            n_samples, peaks = shape.n_samples, shape.all_peaks()
        return Peaks(
            track=track,
            seconds=round(n_samples / VOCODER_RATE_HZ, 3),
            per_second=PEAKS_PER_SECOND,
            complete=song is not None,
            peaks=peaks,
            sections=[Segment.of(**asdict(span)) for span in (song.segments if song else job.sections)],
        )

    def _add_parts(self, shape: _Shape, job: Job, track: str) -> None:
        """Add the parts that are stored by now and not known yet."""
        files = self._jobs.parts(job, track)
        sources = [f"{file.path} {file.version}" for file in files]
        if shape.sources != sources[: len(shape.sources)]:
            shape.clear()
        for file, source in list(zip(files, sources, strict=True))[len(shape.sources) :]:
            shape.add_file(source, io.BytesIO(self._jobs.part(file.path)))

    def _remembered(self, job: Job, track: str) -> _Shape:
        """The shape of the track, as far as it is known."""
        with self._lock:
            shape = self._shapes.pop((job.id, track), None) or _Shape()
            self._shapes[job.id, track] = shape
            while len(self._shapes) > MOST_TRACKS:
                self._shapes.popitem(last=False)
            return shape


def _add_song(shape: _Shape, song: Song, track: str) -> None:
    """Add the whole track of a finished song, from its file, if it is not known yet."""
    if shape.sources == [track]:
        return
    shape.clear()
    audio = song.audio
    with audio.open(track) if isinstance(audio, SizedAudio) else io.BytesIO(audio[track]) as file:
        shape.add_file(track, io.BytesIO(file.read()))


def _blocks(source: str, file: io.BytesIO) -> Iterator[np.ndarray]:
    """The samples of a mono file, piece by piece. Raises StorageError if it is damaged."""
    try:
        with soundfile.SoundFile(file) as audio:
            if audio.channels != 1:
                raise StorageError(f"{source} is no track of a song: it has {audio.channels} channels", "invalid")
            yield from audio.blocks(BLOCK_SAMPLES, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise StorageError(f"{source} cannot be read: {error.error_string}", "invalid") from error


def _rounded(peaks: np.ndarray) -> list[float]:
    return [min(1.0, round(float(peak), 3)) for peak in np.nan_to_num(peaks, nan=0.0, posinf=1.0)]
