"""The examples of docs/lyrics.md are true."""

from __future__ import annotations

import pytest

from inference.text.lyrics import Kind, parse
from tests.support.lyrics_page import rows, told

EXAMPLES = rows("Lyrics | Sections | Left out | Warning")
WARNED = rows("Lyrics | `model` | `max_new_tokens` | Warning")


def check_warnings(given: tuple[str, ...], expected: list[str]) -> None:
    assert len(given) == len(expected), given
    for part in expected:
        assert any(part in warning for warning in given), (part, given)


@pytest.mark.parametrize("row", EXAMPLES, ids=lambda row: row[0][0])
def test_an_example_of_the_page_is_true(row: list[list[str]]) -> None:
    (text,), sections, left_out, expected = row
    lyrics = parse(text)
    assert [f"{s.tag}: {' '.join(s.body.split())}".strip() for s in lyrics.sections] == sections
    assert [note.text for note in lyrics.notes if note.kind in (Kind.DIRECTION, Kind.WORDLESS)] == left_out
    check_warnings(told(text), expected)


@pytest.mark.parametrize("row", WARNED, ids=lambda row: f"{row[0][0]} {row[1][0]} {row[2][0]}")
def test_a_warning_of_the_page_is_given(row: list[list[str]]) -> None:
    (text,), (model,), (max_new_tokens,), expected = row
    check_warnings(told(text, model, int(max_new_tokens)), expected)


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) > 30 and len(WARNED) > 8
