"""Verifies files by their checksums, once, and records the result with their sizes and times."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 4 << 20
NS_PER_S = 10**9
SHA256, GIT = "sha256", "git"  # the prefixes of a digest: "sha256:…", "git:…" (the id of a git blob)
GIT_LFS_POINTER = b"version https://git-lfs"  # the start of the stub for a file that was not fetched
POINTER_BYTES = 1024  # every pointer is smaller
IS_POINTER = "is a Git LFS pointer, not the file itself"


@dataclass(frozen=True)
class WantedFile:
    """A file as its source describes it. `digest` None: the source knows only the size."""

    path: str  # inside its repository
    size_bytes: int
    digest: str | None


@dataclass(frozen=True)
class VerifiedFile:
    """A verified file, and its modification time when it was verified."""

    file: WantedFile
    mtime_s: int  # whole seconds, because image layers keep no fractions


@dataclass(frozen=True)
class Record:
    """The record of a repository: the resolved commit, and its verified files."""

    revision: str
    files: tuple[VerifiedFile, ...]

    def holds(self, folder: Path) -> bool:
        """True if `folder` holds all files unchanged since they were verified."""
        return bool(self.files) and all(
            looks_verified(folder / verified.file.path, verified) for verified in self.files
        )


class Hash(Protocol):
    """A hash object of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Hash more data."""

    def hexdigest(self) -> str:
        """The digest of all data."""


def hasher(file: WantedFile) -> Hash:
    """A new hash for the file's kind of digest."""
    if file.digest is not None and file.digest.startswith(GIT):
        return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    return hashlib.sha256()


def agrees(file: WantedFile, digest: Hash) -> bool:
    """True if the hash of the content equals the file's digest."""
    return file.digest is None or digest.hexdigest() == file.digest.partition(":")[2]


def is_whole(path: Path, file: WantedFile) -> bool:
    """True if the file at `path` has the right size and content. Reads all of it."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    digest = hasher(file)
    if file.digest is not None:
        read_into(path, digest)
    return agrees(file, digest)


def is_pointer(path: Path) -> bool:
    """True if the file at `path` is a Git LFS pointer. Raises OSError."""
    if path.stat().st_size >= POINTER_BYTES:
        return False
    with path.open("rb") as content:
        return content.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER


def read_into(path: Path, digest: Hash, on_bytes: Callable[[int], None] = lambda count: None) -> None:
    """Hash the file at `path`."""
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))


def mark_verified(path: Path, file: WantedFile) -> VerifiedFile:
    """The record of a file that was just verified."""
    return VerifiedFile(file, path.stat().st_mtime_ns // NS_PER_S)


def looks_verified(path: Path, recorded: VerifiedFile) -> bool:
    """True if the file still has its recorded size and time, and is no pointer. Does not read the content."""
    try:
        status = path.stat()
        same = (status.st_size, status.st_mtime_ns // NS_PER_S) == (recorded.file.size_bytes, recorded.mtime_s)
        return same and not is_pointer(path)
    except OSError:
        return False


def read_record(path: Path) -> Record | None:
    """The record at `path`; None if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        files = (VerifiedFile(WantedFile(**entry["file"]), entry["mtime_s"]) for entry in content["files"])
        return Record(content["revision"], tuple(files))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # every file is then verified again


def write_record(path: Path, record: Record) -> None:
    """Write the record atomically. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
