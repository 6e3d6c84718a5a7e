"""What the engine's process and its parent say to each other.

It knows nothing of how a message travels, or of what is done about it.

    to the child      Load, then any number of Generate, Cancel
    to the parent     Loading …, Ready (or Failed), then Recorded, Advanced, Generated, Failed, at last Broken
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.catalog import ModelFiles
from inference.errors import YueError
from inference.options import EngineOptions
from inference.song import Progress, Song, SongRequest


@dataclass(frozen=True)
class Load:
    """To the child, first of all: load these files."""

    files: ModelFiles
    options: EngineOptions


@dataclass(frozen=True)
class Generate:
    """To the child: sing this song, together with others while there is room, after them where there is none."""

    song_id: str
    request: SongRequest


@dataclass(frozen=True)
class Cancel:
    """To the child: stop this song, or do not begin it."""

    song_id: str


@dataclass(frozen=True)
class Loading:
    """From the child: which part is being loaded."""

    part: str


@dataclass(frozen=True)
class Ready:
    """From the child: everything is loaded."""

    info: dict[str, object]


@dataclass(frozen=True)
class Recorded:
    """From the child: which steps are compiled and recorded by now, and how long that took."""

    recordings: dict[str, dict[str, object]]


@dataclass(frozen=True)
class Advanced:
    """From the child: a song has come further."""

    song_id: str
    progress: Progress


@dataclass(frozen=True)
class Generated:
    """From the child: a song is finished."""

    song_id: str
    song: Song


@dataclass(frozen=True)
class Failed:
    """From the child: a song could not be sung; without a song, the models could not be loaded."""

    song_id: str | None
    error: YueError


@dataclass(frozen=True)
class Broken:
    """From the child, its last word: the engine failed, and every song in it."""

    error: YueError
