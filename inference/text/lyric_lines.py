"""Parses one line of lyrics: tags, stage directions, words, and the markup of other formats around them.

Independent of the lines before and after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from inference.text import section_names, time_stamps
from inference.text.characters import CLOSE_BRACKETS, OPEN_BRACKETS
from inference.text.section_names import Name, Place

# Han (with its extensions and 々), kana (with their half-width forms) and Hangul syllables.
SYLLABLE_CHARACTER = re.compile(
    "[\u3005\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff]"
)

_BRACKET = re.compile(rf"[{OPEN_BRACKETS}]([^{OPEN_BRACKETS}{CLOSE_BRACKETS}]*)[{CLOSE_BRACKETS}]")
_OUTER_BRACKET = re.compile(
    rf"[{OPEN_BRACKETS}]((?:[^{OPEN_BRACKETS}{CLOSE_BRACKETS}]|{_BRACKET.pattern})*)[{CLOSE_BRACKETS}]"
)  # `[ti: Song [live]]`
_QUOTED = re.compile(r"[「『]([^「」『』]*)[」』]")
_RULE = re.compile(
    r"\s*(?:([-*_=~#])\s*(?:\1\s*){2,}|`{3,}(?:text|txt|lyrics|markdown|md)?|[;|])\s*"
)  # `---`, a fence of code, a lone separator
_SEPARATORS = ";|/,:；｜／，、："
_EMPHASIS = "*_~`"
_MARKS = f"{_EMPHASIS}#>=–—-"
_HEAD = re.compile(
    rf"[{_EMPHASIS}{CLOSE_BRACKETS})}}）]*"  # closing marks directly after a tag
    rf"(?:[\s{_SEPARATORS}]|[{_MARKS}]+(?=[\s{_SEPARATORS}{OPEN_BRACKETS}「『]|$)|\d{{1,3}}[.)]\s)*"
)
_DIRECTION = re.compile(r"[,:;，：；、]|[.…。]\s*$")
_KEY = r"[A-G]\s?(?:[#b♯♭]|sharp|flat)?[\s-]?(?:major|minor|maj|min|dur|moll)"
_MUSIC = re.compile(  # `[90 BPM]`, `[Key of G]`, `[F# minor]`, `[6/8]`
    r"[~≈]?\d{1,3}(?:\.\d+)?(?:\s?[-–]\s?\d{1,3})?\s?bpm|[♩♪]\s?=\s?\d{1,3}|(?:bpm|tempo|key|capo)\b.*"
    rf"|(?:in\s)?{_KEY}|\d{{1,2}}/\d{{1,2}}(?:\s+time)?",
    re.IGNORECASE,
)
_NAME = re.compile(r"\s*[^\W\d_][^.,:;!?…。，：；！？、]*")
_REPEAT_MARK = re.compile(r"\s*(?:x\s*\d+\s*|(?:repeat|bis)\b.*)", re.IGNORECASE)
_MAX_NAME_WORDS = 3
_CHARACTERS_PER_WORD = 2  # in scripts without spaces


@dataclass(frozen=True)
class Tag:
    """A section's name, and where its bracket starts and ends in the line."""

    name: Name
    start: int
    end: int


def plain(line: str, timed: bool = False) -> tuple[str, bool]:
    """The line without closing tags, rules and time stamps, and True if it had time stamps.

    In `timed` lyrics lines start with a time stamp, also if it looks like the time of day.
    """
    line = line.replace("\\[", "[").replace("\\]", "]")
    untimed = time_stamps.without(line, timed)
    found = _BRACKET.sub(_unless_closing, untimed)
    if _RULE.fullmatch(found):
        found = ""
    return found if untimed == line else " ".join(found.split()), untimed != line


def tags(line: str) -> Iterator[Tag]:
    """The brackets that start a section."""
    quoted = _QUOTED.fullmatch(without_tail(without_head(line)))  # quotation marks, too
    if quoted and (name := section_names.find(_unmarked(quoted[1]), Place.WITHIN)):
        yield Tag(name, 0, len(line))
        return
    beside_brackets = _BRACKET.sub(lambda bracket: " " * len(bracket[0]), line)
    last_word = max((i for i, character in enumerate(beside_brackets) if character.isalnum()), default=-1)
    end = 0
    for bracket in _brackets(line):
        within = has_words(without_head(line[end : bracket.start()]))
        place = Place.WITHIN if within else Place.START if last_word > bracket.start() else Place.ALONE
        name = section_names.find(_unmarked(bracket[1]), place) if bracket.start() >= end else None
        # `[Instrumental] [Guitar Solo]` is one section.
        if name and not (end and not within and not name.usual and name.often_wordless):
            yield Tag(name, bracket.start(), bracket.end())
            end = bracket.end()


def brackets_alone(line: str) -> list[str]:
    """The contents of the brackets in a line that holds nothing else."""
    contents = []
    while line := without_head(line):
        if not (bracket := _OUTER_BRACKET.match(line)):
            return []
        contents.append(_unmarked(bracket[1]))
        line = line[bracket.end() :]
    return contents


def directions(words: str) -> tuple[list[str], str]:
    """The brackets at the start of the words after a tag, and the other words: `[soft] la`."""
    found = []
    while (bracket := _BRACKET.match(words)) and (is_direction(bracket[1]) or is_name(bracket[1])):
        found.append(bracket[1])
        words = without_head(words[bracket.end() :])
    return found, words


def is_direction(content: str) -> bool:
    """True if the bracket is a stage direction: too long for a name, or a tempo, key or metre."""
    if not has_words(content) or _REPEAT_MARK.fullmatch(content):
        return False
    if _MUSIC.fullmatch(content.strip()):
        return True
    rest, n_characters = SYLLABLE_CHARACTER.subn(" ", content)
    n_words = sum(map(has_words, rest.split())) + n_characters / _CHARACTERS_PER_WORD
    return n_words > _MAX_NAME_WORDS or _DIRECTION.search(content) is not None


def is_name(content: str) -> bool:
    """True if a bracket may hold an unknown section name."""
    return bool(_NAME.fullmatch(content)) and not _REPEAT_MARK.fullmatch(content) and not is_direction(content)


def has_words(text: str) -> bool:
    """True if the text has a letter or a digit."""
    return any(map(str.isalnum, text))


def without_head(text: str) -> str:
    """The text without leading Markdown and separators."""
    head = _HEAD.match(text)
    return text[head.end() :] if head else text


def without_tail(text: str) -> str:
    """The text before a tag, without trailing Markdown and separators."""
    text = text.rstrip(_EMPHASIS + "[［【〔〖({（")
    while True:
        text = text.rstrip().rstrip(_SEPARATORS).rstrip()
        bare = text.rstrip(_MARKS)
        if bare == text or not (bare[-1:].isspace() or bare == ""):
            return text
        text = bare


def without_closing_emphasis(line: str, before: str) -> str:
    """The line without the marks that close an emphasis opened before a tag: `**[chorus] la la**`."""
    marks = before[len(before.rstrip(_EMPHASIS)) :]
    return line.rstrip().removesuffix(marks) if marks else line


def _brackets(line: str) -> Iterator[re.Match[str]]:
    """Brackets, outer before inner ones."""
    for outer in _OUTER_BRACKET.finditer(line):
        yield outer
        yield from (inner for inner in _BRACKET.finditer(line, outer.start() + 1, outer.end()))


def _unless_closing(bracket: re.Match[str]) -> str:
    """The bracket; empty for a closing tag such as `[/verse]`."""
    slash, name = bracket[1].strip()[:1], bracket[1].strip()[1:]
    return "" if slash == "/" and section_names.find(name, Place.WITHIN) else bracket[0]


def _unmarked(content: str) -> str:
    """The content of a bracket, without marks and extra white space: `[ **Chorus** ]`."""
    inner = " ".join(content.split())
    for marks in ("**", "__", "~~", "*", "_", "`"):
        if len(inner) > 2 * len(marks) and inner.startswith(marks) and inner.endswith(marks):
            return inner.removeprefix(marks).removesuffix(marks).strip()
    return inner
