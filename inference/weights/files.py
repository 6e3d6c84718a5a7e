"""Reads files of weights, and names what is wrong with one: missing, empty, a Git LFS pointer, not JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.errors import CheckpointError, first_line
from inference.weights.checksums import GIT_LFS_POINTER, IS_POINTER


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file. Raises CheckpointError if there is no file, or a Git LFS pointer in its place."""
    if path.is_dir():
        raise CheckpointError(path, "is a folder, not a file")
    try:
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS_POINTER))
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error
    if not start:
        raise CheckpointError(path, "is empty")
    if start == GIT_LFS_POINTER:
        raise CheckpointError(path, f"{IS_POINTER}; run `git lfs pull` in its repository or download it again")
    return start


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises CheckpointError."""
    first_bytes(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    try:
        content = json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f"holds a {type(content).__name__}, not a JSON object")
    return content
