"""What is asked for and what comes back: the plain data that travels between the processes.

Independent of tensors and HTTP; the ranges that a request may take are in `serving/jobs/song_fields.py`.
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
MAX_SECTIONS = 100  # of one song, sung or not: all of them stand in the head of its prompt


@dataclass(frozen=True)
class Reference:
    """Audio whose style is continued: the bytes of one file (`mix`), or of two (`vocal` and `instrumental`).

    Any format that libsndfile reads; the part from `start_seconds` to `end_seconds` is used.
    """

    mix: bytes | None = None
    vocal: bytes | None = None
    instrumental: bytes | None = None
    start_seconds: float = 0.0
    end_seconds: float = REFERENCE_SECONDS


@dataclass(frozen=True)
class SongRequest:
    """One song to sing. The defaults are YuE's own.

    `segments` sings the first n sections (None: all), `max_new_tokens` is the budget of a section (100 a second),
    `temperature` 0 takes the likeliest token, `top_k` 0 and `top_p` 1 turn those off, `guidance_scale` holds
    one number for the first section and one for the later ones.
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
    """Where a song is. `stage` is one of `STAGES`; counts that a stage does not have are 0."""

    stage: str
    section: int = 0  # 1 … sections, while stage 1 runs
    sections: int = 0
    tokens: int = 0  # of stage 1 so far, all sections together
    rows: int = 0  # of stage 2, each up to 6 s of one track
    frames: int = 0  # of stage 2 so far, all rows together
    fraction: float = 0.0  # of the whole song, 0 … 1, never falling
    seconds_left: float | None = None  # None while nothing has been measured


STAGES = ("prompt", "stage1", "stage2", "decode", "encode")


@dataclass(frozen=True)
class SectionSpan:
    """Where a section stands in the song, in seconds."""

    tag: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Song:
    """A finished song: one encoded file for each track that was asked for."""

    audio: Mapping[str, bytes]  # track name -> the file's bytes, in the order asked for
    format: str
    sample_rate: int
    duration_seconds: float
    seed: int
    segments: tuple[SectionSpan, ...]
    timings: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    warnings: tuple[str, ...] = ()
