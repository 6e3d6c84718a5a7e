"""The examples of docs/lyrics.md, as what is written in the cells of its tables; and what is told of lyrics."""

from __future__ import annotations

import re

from inference.text.lyrics import parse
from inference.text.lyrics_warnings import warnings
from tests.support.paths import PROJECT

PAGE = PROJECT / "docs" / "lyrics.md"
_ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)
_CODE = re.compile(r"`([^`]*)`")
_CHARACTER = re.compile(r"⟨U\+([0-9A-F]+)⟩")


def rows(header: str) -> list[list[list[str]]]:
    """The rows of all tables with that header: for each cell, what stands in it as code, or as it is."""
    found = []
    for block in PAGE.read_text(encoding="utf-8").split("\n\n"):
        lines = _ROW.findall(block)
        if lines and lines[0].strip() == header:
            found += [[_cell(cell) for cell in re.split(r"(?<!\\)\|", line)] for line in lines[2:]]
    return found


def _cell(text: str) -> list[str]:
    code = _CODE.findall(text)
    return [_plain(part) for part in code] if code else [text.strip()] if text.strip() else []


def _plain(code: str) -> str:
    text = code.replace("\\|", "|").replace("⏎", "\n")
    return _CHARACTER.sub(lambda match: chr(int(match[1], 16)), text)


def told(text: str, model: str = "tiny", max_new_tokens: int = 3_000, segments: int | None = None) -> tuple[str, ...]:
    return warnings(parse(text), model, max_new_tokens, segments)
