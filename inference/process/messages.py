"""Defines the messages between the engine's process and its parent.

to the child      Load, then any number of Generate, Listen and Cancel
to the parent     Loading …, Ready (or Failed), then Recorded, Advanced, Decoded, Generated, Failed, at last Broken
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.catalog import ModelFiles
from inference.errors import YueError
from inference.options import EngineOptions
from inference.song import Progress, Song, SongPart, SongRequest


@dataclass(frozen=True)
class Load:
    """To the child, its first message: load these files."""

    files: ModelFiles
    options: EngineOptions


@dataclass(frozen=True)
class _AboutSong:
    song_id: str


@dataclass(frozen=True)
class Generate(_AboutSong):
    """To the child: generate this song, as soon as a slot is free."""

    request: SongRequest


@dataclass(frozen=True)
class Listen(_AboutSong):
    """To the child: somebody listens to this song while it is generated."""


@dataclass(frozen=True)
class Cancel(_AboutSong):
    """To the child: stop this song, or do not start it."""


@dataclass(frozen=True)
class Loading:
    """From the child: the part that it loads now."""

    part: str


@dataclass(frozen=True)
class Ready:
    """From the child: everything is loaded."""

    info: dict[str, object]


@dataclass(frozen=True)
class Recorded:
    """From the child: the steps that it has compiled and recorded, with the time for each."""

    recordings: dict[str, dict[str, object]]


@dataclass(frozen=True)
class Advanced(_AboutSong):
    """From the child: a song made progress."""

    progress: Progress


@dataclass(frozen=True)
class Decoded(_AboutSong):
    """From the child: the next part of a song is decoded. All of them come before Generated."""

    part: SongPart


@dataclass(frozen=True)
class Generated(_AboutSong):
    """From the child: a song is finished."""

    song: Song


@dataclass(frozen=True)
class Failed:
    """From the child: a song failed; without a song, the models could not be loaded."""

    song_id: str | None
    error: YueError


@dataclass(frozen=True)
class Broken:
    """From the child, its last message: the engine failed, and so did all its songs."""

    error: YueError
