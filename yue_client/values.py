"""Parses the values of options, and refuses wrong ones before a request is sent.

It is independent of which options exist.
"""

from __future__ import annotations

import base64
import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from yue_client import files
from yue_client.errors import Misused

TEXT_ENDINGS = (".txt", ".md", ".lrc")
STANDARD_INPUT = "-"
MAX_TEXT_BYTES = 1 << 20  # far more than the server takes


def text(words: str) -> str:
    """Words that were typed; a file's name in their place is refused."""
    place = words.strip()
    if not place:
        raise ArgumentTypeError("got nothing; allowed: words")
    if place == STANDARD_INPUT or _is_file_name(place):
        raise ArgumentTypeError(
            f"got {place!r}; allowed: the words themselves; for a file's: the option that ends in -file"
        )
    return words


def _is_file_name(words: str) -> bool:
    if len(words.splitlines()) > 1:
        return False
    if " " not in words and words.lower().endswith(TEXT_ENDINGS):
        return True
    try:
        return ("." in words or "/" in words) and Path(words).is_file()
    except (OSError, ValueError):  # longer than any name, or a NUL in it
        return False


def text_file(name: str) -> str:
    """The words in a file, or in the standard input."""
    try:
        with nullcontext(_standard_input()) if name == STANDARD_INPUT else Path(name).open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        if len(content) > MAX_TEXT_BYTES:
            raise ArgumentTypeError(
                f"got {name!r}, which is too long; allowed: a text file of up to {MAX_TEXT_BYTES} bytes"
            )
        words = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ArgumentTypeError(f"got {name!r}, which is not in UTF-8; allowed: a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArgumentTypeError(f"got {name!r}: {reason}; allowed: a text file, or - for the standard input") from error
    if not words.strip():
        raise ArgumentTypeError(f"got {name!r}, which is empty; allowed: a text file with words")
    return words


def _standard_input() -> BinaryIO:
    return sys.stdin.buffer if sys.stdin else BytesIO()


def is_address(value: object) -> bool:
    """True for an address of audio, which the server itself fetches."""
    return isinstance(value, str) and value.startswith(("https://", "gs://"))


def audio_file(name: str) -> str:
    """A file as base64; an address as it is, for the server to fetch from."""
    if is_address(name):
        return name
    allowed = "allowed: an audio file, or its address: https:// or gs://"
    try:
        content = Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"got {name!r}: {getattr(error, 'strerror', None) or error}; {allowed}") from error
    if not content:
        raise ArgumentTypeError(f"got {name!r}, which is empty; {allowed}")
    return base64.b64encode(content).decode()


def output(name: str) -> Path:
    """A file that can be written, checked before the song is generated."""
    if name == str(files.STANDARD_OUTPUT):
        if sys.stdout is None or sys.stdout.isatty():
            raise ArgumentTypeError(
                "got -, and the output is a terminal; allowed: - before > FILE or | PROGRAM, or a file"
            )
        return files.STANDARD_OUTPUT
    if not name or name.endswith("/"):
        raise ArgumentTypeError(f"got {name!r}; allowed: a file")
    path = Path(name)
    path = path.absolute() if path == files.STANDARD_OUTPUT else path  # ./- is a file
    files.check_place(path)
    return path


def api_key(key: str, name: str = "--api-key") -> str:
    """A key without surrounding white space, which files and consoles add. Raises Misused, without the key in it."""
    key = key.strip()
    wrong = next((character for character in key if not "!" <= character <= "~"), "")
    if wrong:
        raise Misused(f"{name}: got a key with {wrong!r} in it; allowed: visible ASCII characters")
    return key


def seconds(words: str) -> float:
    """A number of seconds."""
    found = _number(words)
    if not 0 <= found < math.inf:
        raise ArgumentTypeError(f"got {words!r}; allowed: a number of seconds from 0")
    return found


def number(words: str) -> float:
    """Any number."""
    if not math.isfinite(found := _number(words)):
        raise ArgumentTypeError(f"got {words!r}; allowed: a number")
    return found


def whole_number(words: str) -> int:
    """A whole number."""
    try:
        return int(words)
    except ValueError:
        raise ArgumentTypeError(f"got {words!r}; allowed: a whole number") from None


def one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    """A word among those."""

    def word(given: str) -> str:
        if given.lower() not in allowed:
            raise ArgumentTypeError(f"got {given!r}; allowed: {', '.join(allowed)}")
        return given.lower()

    return word


def _number(words: str) -> float:
    try:
        return float(words)
    except ValueError:
        return math.nan
