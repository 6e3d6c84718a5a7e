"""The request for a song, its progress and its result: the plain data that travels between the processes.

Independent of tensors and HTTP. `serving/jobs/song_fields.py` checks the ranges of a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inference.options import (
    DEFAULT_GUIDANCE_SCALE,
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_REPETITION_PENALTY,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_K,
    DEFAULT_TOP_P,
)

MIX = "mix"
TRACK_NAMES = (MIX, "vocal", "instrumental")
MIME_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg"}
REFERENCE_SECONDS = 30.0
MAX_NEW_TOKENS = 6_000  # the largest budget of a section
MAX_SECTIONS = 100  # of one song, generated or not: the head of the prompt names them all


@dataclass(frozen=True)
class Reference:
    """Audio whose style the song continues: the bytes of one file (`mix`), or of two (`vocal` and `instrumental`).

    Any format that libsndfile reads. The part from `start_seconds` to `end_seconds` is used.
    """

    mix: bytes | None = None
    vocal: bytes | None = None
    instrumental: bytes | None = None
    start_seconds: float = 0.0
    end_seconds: float = REFERENCE_SECONDS


@dataclass(frozen=True)
class SongRequest:
    """A song to generate. The defaults are YuE's own.

    `segments` limits the song to its first n sections (None: all). `max_new_tokens` is the budget of a section (100 a
    second). `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 turn those filters off. `guidance_scale` holds one value
    for the first section and one for the later ones.
    """

    genres: str
    lyrics: str
    seed: int
    segments: int | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    top_k: int = DEFAULT_TOP_K
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY
    guidance_scale: tuple[float, float] = DEFAULT_GUIDANCE_SCALE
    format: str = "mp3"
    tracks: tuple[str, ...] = (MIX,)
    reference: Reference | None = None


@dataclass(frozen=True)
class Progress:
    """The progress of a song. `stage` is one of `STAGES`. Counts that do not apply to a stage are 0."""

    stage: str
    section: int = 0  # 1 … sections, while stage 1 runs
    sections: int = 0
    tokens: int = 0  # of stage 1 so far, in all sections
    rows: int = 0  # of stage 2 that are done, each up to 6 s of one track
    frames: int = 0  # of stage 2 so far, in all rows
    fraction: float = 0.0  # of the whole song, 0 … 1, never decreasing
    seconds_left: float | None = None  # None until enough has been measured
    playable_seconds: float = 0.0  # of the song that can be streamed already; the engine does not know it


STAGES = ("prompt", "stage1", "stage2", "decode", "encode")


@dataclass(frozen=True)
class SectionSpan:
    """Start and end of a section in the song."""

    tag: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class SongPart:
    """A part of a song, decoded while the rest is generated: a FLAC file for each requested track."""

    index: int  # 0 for the first
    end_seconds: float  # the part's end in the song
    audio: Mapping[str, bytes]  # track name -> the file's bytes
    sections: tuple[SectionSpan, ...] = ()  # of the song up to there


@dataclass(frozen=True)
class Song:
    """A finished song: one encoded file for each requested track."""

    audio: Mapping[str, bytes]  # track name -> the file's bytes, in the requested order
    format: str
    sample_rate: int
    duration_seconds: float
    seed: int
    segments: tuple[SectionSpan, ...]
    timings: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    warnings: tuple[str, ...] = ()
    parts: int = 0  # the number of its SongParts; once it is stored, 0 if some of them could not be stored
