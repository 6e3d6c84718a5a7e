"""Writes songs: names tracks, writes files whole or not at all, and overwrites none unasked.

It is independent of servers.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from yue_client.errors import Failed, Misused

FORMATS = ("mp3", "wav", "flac", "ogg")
STANDARD_OUTPUT = Path("-")
LONGEST_STEM = 40  # characters of a name that its unfinished file has too


def ending(path: Path) -> str:
    """The format that a file's name ends in."""
    return path.name.rpartition(".")[2].lower() if "." in path.name else ""


def check_place(path: Path) -> None:
    """Check, before a song is generated, that it can be written there. Raises Misused."""
    folder = path.parent
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no file"
            raise Misused(f"--out: got {path}, which is {what}; allowed: a file, or - for the standard output")
        if not folder.is_dir():
            raise Misused(
                f"--out: got {path}, but there is no folder {folder}; allowed: a file in a folder that exists"
            )
    except OSError as error:  # a name that is too long
        raise Misused(f"--out: got {path}: {error.strerror}; allowed: a file that can be written") from error
    try:
        tempfile.NamedTemporaryFile(dir=folder.absolute()).close()
    except OSError as error:
        reason = f"{folder.absolute()} cannot be written to ({error.strerror})"
        raise Misused(f"--out: got {path}, but {reason}; allowed: a file in another folder") from error
    if ending(path) not in ("", *FORMATS):
        raise Misused(f"--out: got {path}; allowed: a name that ends in one of {', '.join(FORMATS)}")


def check_ending(path: Path, audio_format: str, why: str) -> None:
    """Check that the name does not end in another format. Raises Misused."""
    if path != STANDARD_OUTPUT and ending(path) not in ("", audio_format):
        fitting = path.with_suffix(f".{audio_format}")
        raise Misused(f"--out: got {path}, but {why} {audio_format}; allowed: a name such as {fitting}")


def track_path(path: Path, index: int, track: str) -> Path:
    """The first track gets the song's name, the others append theirs: song.mp3, song-vocal.mp3."""
    return path if index == 0 else path.with_name(f"{path.stem}-{track}{path.suffix}")


def check_free(path: Path, tracks: Sequence[str]) -> None:
    """Check, before a song is generated, that nothing would be overwritten. Raises Misused."""
    for index, track in enumerate(tracks):
        if (there := track_path(path, index, track)).exists():
            raise Misused(f"--out: {there} exists already; allowed: a file that does not, or --force")


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, gone at the end unless it was `placed`. Raises Failed where it cannot be written."""
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:LONGEST_STEM]}.", suffix=".part", dir=path.absolute().parent
        )
    except OSError as error:
        raise Failed(f"{path}: {error}") from error
    try:
        os.close(handle)
        with open(name, "r+b") as file:
            yield file
    finally:
        Path(name).unlink(missing_ok=True)


def to_standard_output(file: BinaryIO) -> None:
    """Copy a whole file to the standard output. Raises BrokenPipeError, and Failed where that cannot be written."""
    file.seek(0)
    try:
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failed(f"the song cannot be written to the standard output: {error.strerror}") from error


def placed(file: BinaryIO, path: Path, overwrite: bool) -> Path:
    """Move a complete file to its path, or to the next free name: song-2.mp3. Return the path used."""
    try:
        file.flush()
        name = file.name
        os.chmod(name, 0o666 & ~_umask())
        if overwrite:
            os.replace(name, path)
            return path
        for free in _names(path):
            try:
                _create(name, free)
            except FileExistsError:
                continue
            return free
    except OSError as error:
        raise Failed(f"{path}: {error}") from error
    raise AssertionError("names never end")


def _create(name: str, path: Path) -> None:
    """Give the file that name unless it exists, atomically where the file system can."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        with path.open("xb") as target, open(name, "rb") as source:
            shutil.copyfileobj(source, target)


def _names(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
