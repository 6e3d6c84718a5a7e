"""Parses lyrics into sections, by the rules of docs/lyrics.md.

`lyric_lines.py` parses a line, `section_names.py` recognises the names of sections, `lyrics_warnings.py` formats the
warnings.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache

from inference.errors import InvalidField
from inference.song import MAX_SECTIONS
from inference.text import lyric_lines, section_names, time_stamps
from inference.text.characters import check_characters, lines_as_meant, visible, with_tabs
from inference.text.lyric_lines import SYLLABLE_CHARACTER, has_words, is_direction, is_name
from inference.text.section_names import Name

# Four syllables a second is a brisk pace. A Han, kana or Hangul character is one syllable; a word of any other script
# counts as 4/3.
CHARACTERS_PER_SECOND = 4
WORDS_PER_SECOND = 3
SECONDS_FOR_WORDS = 2.0  # of a section, for each second that its words last: there is music around them
SECONDS_AROUND, SHORTEST_SECONDS = 5.0, 15.0  # of music in a section with words; of a section without words

PARSED_AT_ONCE = 64  # cached results: the checks, warnings and estimates of a request share one
_BARE_END = re.compile(r"\W*end\W*(?:of\s+)?(?:the\s+)?(?:song|lyrics)?\W*", re.IGNORECASE)
ALLOWED_TEXT = "sections, each under a tag such as [verse] or [chorus], and no text before the first"


class Kind(Enum):
    """The kinds of notes about a place in the lyrics."""

    LINE_END = auto()  # escaped, as in \n
    TAB = auto()  # escaped, as in \t
    TIME_STAMP = auto()  # left out
    DIRECTION = auto()  # left out
    WORDLESS = auto()  # left out: a section with an unknown name and no words
    UNTAGGED = auto()  # kept as words, although it looks like a section's name
    NOT_THE_END = auto()  # an [end] with sections after it


@dataclass(frozen=True)
class Note:
    """A note for the user: the line (from 1), the text there, and the section (from 0)."""

    kind: Kind
    line: int
    text: str
    section: int


@dataclass(frozen=True)
class Section:
    """One section: its tag, the words under it, and the line (from 1) of its tag."""

    tag: str
    body: str
    line: int
    usual: bool = True  # YuE is known to understand the tag

    @property
    def text(self) -> str:
        """The section as YuE was trained to read it."""
        return f"[{self.tag}]\n{self.body.strip()}\n\n"

    @property
    def words_seconds(self) -> float:
        """The estimated duration of the words: rap is faster, a ballad slower."""
        rest, n_characters = SYLLABLE_CHARACTER.subn(" ", unicodedata.normalize("NFC", self.body))
        n_words = sum(map(has_words, rest.split()))
        return n_characters / CHARACTERS_PER_SECOND + n_words / WORDS_PER_SECOND

    @property
    def expected_seconds(self) -> float:
        """The expected duration of the section, if its budget allows it."""
        return expected_seconds(self.words_seconds)


@dataclass(frozen=True)
class Lyrics:
    """The sections in order, and the notes about them."""

    sections: tuple[Section, ...]
    notes: tuple[Note, ...]


def expected_seconds(words_seconds: float) -> float:
    """The expected duration of a section whose words last `words_seconds`."""
    return max(SHORTEST_SECONDS, SECONDS_FOR_WORDS * words_seconds + SECONDS_AROUND)


@lru_cache(PARSED_AT_ONCE)
def parse(text: str) -> Lyrics:
    """The sections of `text`. Raises InvalidField, which names the line."""
    check_characters("lyrics", text, name_line=True)
    written = lines_as_meant(visible(text))
    parser = _Parser(timed=any(time_stamps.starts_with_stamp(line) for line, _ in written))
    for number, (line, spelled_end) in enumerate(written, 1):
        line, spelled_tab = with_tabs(line)
        is_cue_number = line.strip().isdecimal() and number < len(written) and time_stamps.is_cue(written[number][0])
        parser.read(number, "" if is_cue_number else line)
        if spelled_end:
            parser.note(Kind.LINE_END, number, spelled_end)
        if spelled_tab:
            parser.note(Kind.TAB, number, spelled_tab)
    lyrics = parser.finish()
    if not lyrics.sections:
        raise InvalidField("lyrics", text, ALLOWED_TEXT, line=1)
    if len(lyrics.sections) > MAX_SECTIONS:
        allowed, excess = f"up to {MAX_SECTIONS} sections", lyrics.sections[MAX_SECTIONS]
        raise InvalidField("lyrics", f"{len(lyrics.sections)} sections", allowed, line=excess.line)
    return lyrics


@dataclass
class _Open:
    """A section that is being parsed. Without a name, its bracket may not be a tag."""

    tag: str
    line: int
    name: Name | None
    written: str  # the tag, with its bracket
    body: list[str] = field(default_factory=list)  # the first line is the rest of the tag's line

    @property
    def has_words(self) -> bool:
        return any(map(str.strip, self.body))

    @property
    def takes_directions(self) -> bool:
        """True if an unknown name here is a direction for this section: it directly follows the tag.

        After an empty line it may be a section of its own, if sections of this name often have no words.
        """
        return self.name is not None and not self.has_words and not (self.name.often_wordless and len(self.body) > 1)

    @property
    def is_section(self) -> bool:
        return self.has_words or (self.name is not None and self.name.meaning != section_names.END)

    @property
    def is_heading(self) -> bool:
        """True if this is only the number of a stanza, whose sections follow: `[1番][Aメロ]`."""
        return (
            len(self.body) <= 1
            and self.name is not None
            and self.name.meaning == section_names.STANZA
            and not self.has_words
        )

    def closed(self) -> Section:
        body = "\n".join(self.body).strip()
        bare = body.rstrip(";|/ \n")
        if body[len(bare) :][:1].isspace():  # `la ;` before a tag on the next line
            body = bare
        return Section(self.tag, body, self.line, self.name is not None and self.name.usual)


class _Parser:
    """Parses lyrics line by line."""

    def __init__(self, timed: bool) -> None:
        self._timed = timed  # lines start with time stamps
        self._open: list[_Open] = []
        self._notes: list[tuple[Kind, int, str, int]] = []  # the last item is the number of sections so far

    def note(self, kind: Kind, line: int, text: str = "") -> None:
        self._notes.append((kind, line, text, len(self._open)))

    def read(self, number: int, line: str) -> None:
        """Parse the next line. Numbers start at 1."""
        line, had_stamps = lyric_lines.plain(line, self._timed)
        if had_stamps:
            self.note(Kind.TIME_STAMP, number)
        tags = list(lyric_lines.tags(line))
        if not tags:
            self._read_words(number, line)
            return
        before = line[: tags[0].start]
        if has_words(lyric_lines.without_head(before)):
            self._add_words(number, lyric_lines.without_tail(before))
        line = lyric_lines.without_closing_emphasis(line, before)
        for tag, after in zip(tags, [*tags[1:], None], strict=True):
            self._begin(_Open(tag.name.tag, number, tag.name, line[tag.start : tag.end]))
            words = lyric_lines.without_head(line[tag.end : after.start if after else None])
            directions, words = lyric_lines.directions(words)
            for direction in directions:
                self.note(Kind.DIRECTION, number, _bracketed(direction))
            words = lyric_lines.without_tail(words) if after else words
            self._add_words(number, words if has_words(words) else "")

    def finish(self) -> Lyrics:
        """The parsed lyrics."""
        without_words = not any(section.is_section for section in self._open)  # then every name is kept
        kept: list[_Open] = []
        places = [0]  # number of sections so far -> index of the kept section
        for section in self._open:
            if without_words or section.is_section:
                kept.append(section)
            places.append(max(0, len(kept) - 1))
        for n_open, section in enumerate(self._open, 1):
            if without_words or section.is_section:
                continue
            if section.name is None:
                self._notes.append((Kind.WORDLESS, section.line, section.written, n_open))
            elif places[n_open] < len(kept) - 1:
                self._notes.append((Kind.NOT_THE_END, section.line, section.written, n_open))
            elif not _BARE_END.fullmatch(section.name.tag):
                self._notes.append((Kind.DIRECTION, section.line, section.written, n_open))
        notes = [Note(kind, line, text, places[n_open]) for kind, line, text, n_open in self._notes]
        return Lyrics(tuple(section.closed() for section in kept), tuple(sorted(notes, key=lambda note: note.line)))

    def _read_words(self, number: int, line: str) -> None:
        """Parse a line without tags: words, or only brackets."""
        contents = lyric_lines.brackets_alone(line)
        if not contents:
            if section_names.resembles(line):
                self.note(Kind.UNTAGGED, number, f"'{line.strip()}'")
            self._add_words(number, line)
            return
        left_out = [content for content in contents if self._is_left_out(content)]
        for content in left_out:
            self.note(Kind.DIRECTION, number, _bracketed(content))
        rest = [content for content in contents if not self._is_left_out(content)]
        if len(rest) == 1 and is_name(rest[0]):
            self._begin(_Open(rest[0], number, None, _bracketed(rest[0])))
        elif rest:
            self._add_words(number, " ".join(map(_bracketed, rest)) if left_out else line)

    def _is_left_out(self, content: str) -> bool:
        """True if a bracket by itself is a stage direction."""
        return is_direction(content) or (is_name(content) and bool(self._open) and self._open[-1].takes_directions)

    def _begin(self, section: _Open) -> None:
        if section.name and self._open and self._open[-1].is_heading:
            heading = self._open.pop()
            self.note(Kind.WORDLESS, heading.line, heading.written)
        self._open.append(section)

    def _add_words(self, number: int, words: str) -> None:
        if self._open:
            self._open[-1].body.append(words)
        elif words.strip():
            raise InvalidField("lyrics", words, ALLOWED_TEXT, line=number)


def _bracketed(content: str) -> str:
    return f"[{' '.join(content.split())}]"
