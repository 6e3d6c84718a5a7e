"""Lyrics as a user writes them, parsed into the sections that are sung one by one.

It does not know how a section becomes token ids, nor how many of the sections will be sung.

Lyrics are read line by line. A section's tag is a bracket at the start of a line, or right behind another tag, that
names a known section (`[Verse 1]`, `[pre-chorus]`), or any other name that stands alone on its line. Every other
bracket, such as `[x2]` or `[00:12]`, is sung. Nothing but the tags and the white space around a body is taken out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from inference.errors import InvalidField
from inference.song import MAX_SECTIONS

SECTION_SECONDS = 30  # what YuE's usual budget of 3,000 tokens holds
# Four syllables a second is brisk singing. A Han, kana or Hangul character is one syllable; a word of any other script
# counts as 4/3.
CHARACTERS_PER_SECOND = 4
WORDS_PER_SECOND = 3

ALLOWED_TEXT = (
    "sections, each under a tag such as [verse] or [chorus] at the start of a line, and no text before the first"
)

_BRACKET = re.compile(r"\s*\[([^\[\]]*)\]")
# A number may touch the name (`verse2`, `verse_2`); any other suffix is set off (`Verse 1: softly`, `chorus-b`).
# `_` sets off a number only, so that `[end_of_segment]` is no `[end]`.
_KNOWN_NAME = re.compile(
    r"\s*(?:intro|verse|(?:pre|post)[ _-]?chorus|chorus|hook|refrain|bridge|break(?:[ _-]?down)?|interlude"
    r"|inst(?:rumental)?|solo|drop|rap|outro|end)"
    r"(?:_?\d.*|[^\w].*)?",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_NAME = re.compile(r"\s*[^\W\d_][^.,:;!?…。，：；！？]*")
_REPEAT_MARK = re.compile(r"\s*(?:x\s*\d+\s*|(?:repeat|bis)\b.*)", re.IGNORECASE)
_INTRO = re.compile(r"\s*intro", re.IGNORECASE)
# Han (with its extensions and 々), kana (with their half-width forms) and Hangul syllables.
_SYLLABLE_CHARACTER = re.compile(
    "[\u3005\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Section:
    """One section: its tag as written, the words under it, and the line (from 1) that its tag stands on."""

    tag: str
    body: str
    line: int

    @property
    def text(self) -> str:
        """The section as YuE was trained to read it."""
        return f"[{self.tag}]\n{self.body.strip()}\n\n"

    @property
    def singing_seconds(self) -> float:
        """About how long the words take to sing; 0 where there are none."""
        return _singing_seconds(self.body)


@dataclass(frozen=True)
class Lyrics:
    """The sections in their order, and what the user should know about them."""

    sections: tuple[Section, ...]
    warnings: tuple[str, ...]


def parse(text: str) -> Lyrics:
    """The sections of `text`. Raises InvalidField, naming the line."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    _check_characters(lines)
    sections = _sections(lines)
    if not sections:
        raise InvalidField("lyrics", text, ALLOWED_TEXT, line=1)
    if len(sections) > MAX_SECTIONS:
        allowed = f"up to {MAX_SECTIONS} sections"
        raise InvalidField("lyrics", f"{len(sections)} sections", allowed, line=sections[MAX_SECTIONS].line)
    return Lyrics(sections, tuple(_warnings(sections)))


def _check_characters(lines: list[str]) -> None:
    """Half a surrogate pair, which JSON can spell, is no character and has no bytes to be tokenised."""
    for number, line in enumerate(lines, 1):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            allowed = "whole Unicode characters, no unpaired surrogates"
            raise InvalidField("lyrics", line, allowed, line=number) from error


def _sections(lines: list[str]) -> tuple[Section, ...]:
    found: list[tuple[str, int, list[str]]] = []  # tag, line of the tag, lines of the body
    for number, line in enumerate(lines, 1):
        tags, words = _split_line(line)
        found += [(tag, number, []) for tag in tags]
        if found:
            found[-1][2].append(words)
        elif words.strip():
            raise InvalidField("lyrics", line, ALLOWED_TEXT, line=number)
    return tuple(Section(tag, "\n".join(body).strip(), number) for tag, number, body in found)


def _split_line(line: str) -> tuple[list[str], str]:
    """The tags at the start of a line, and the words behind them."""
    tags: list[str] = []
    end = 0
    while (bracket := _BRACKET.match(line, end)) and _KNOWN_NAME.fullmatch(bracket[1]):
        tags.append(bracket[1])
        end = bracket.end()
    alone = _BRACKET.fullmatch(line.rstrip())
    if not tags and alone and _OTHER_NAME.fullmatch(alone[1]) and not _REPEAT_MARK.fullmatch(alone[1]):
        return [alone[1]], ""
    return tags, line[end:]


def _warnings(sections: tuple[Section, ...]) -> Iterator[str]:
    if _INTRO.match(sections[0].tag):
        yield f"{_place(sections[0])} comes first: songs that begin with a verse or a chorus come out more reliably"
    all_instrumental = not any(section.body for section in sections)
    for section in sections:
        if not _is_known(section):
            yield f"{_place(section)} is no section that YuE is known to understand; it is kept as one"
        if not section.body and not all_instrumental:
            yield f"{_place(section)} has no words, but other sections do: YuE may make some up"
        seconds = _singing_seconds(section.body)
        if seconds > SECTION_SECONDS:
            yield (
                f"{_place(section)} needs about {seconds:.0f} s of singing and gets {SECTION_SECONDS} s;"
                " its end may be missing, so split it into two sections"
            )


def _is_known(section: Section) -> bool:
    return _KNOWN_NAME.fullmatch(section.tag) is not None


def _place(section: Section) -> str:
    return f"lyrics (line {section.line}): [{section.tag}]"


def _singing_seconds(body: str) -> float:
    """An estimate, for a warning only: a rapper is faster, a ballad slower."""
    rest, n_characters = _SYLLABLE_CHARACTER.subn(" ", body)
    n_words = sum(any(map(str.isalnum, word)) for word in rest.split())
    return n_characters / CHARACTERS_PER_SECOND + n_words / WORDS_PER_SECOND
