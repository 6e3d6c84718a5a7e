"""What a line of lyrics holds: tags, stage directions, words, and the marks of other formats around them.

It knows nothing of the lines before and after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from inference.text import section_names
from inference.text.section_names import Name, Place

# Han (with its extensions and 々), kana (with their half-width forms) and Hangul syllables.
SYLLABLE_CHARACTER = re.compile(
    "[\u3005\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff]"
)

_OPEN, _CLOSE = r"\[［【〔〖", r"\]］】〕〗"
_BRACKET = re.compile(rf"[{_OPEN}]([^{_OPEN}{_CLOSE}]*)[{_CLOSE}]")
_OUTER_BRACKET = re.compile(rf"[{_OPEN}]((?:[^{_OPEN}{_CLOSE}]|{_BRACKET.pattern})*)[{_CLOSE}]")  # `[ti: Song [live]]`
_QUOTED = re.compile(r"[「『]([^「」『』]*)[」』]")
_TIME = r"\d{1,3}[:：]\d{1,2}(?:[:：]\d{1,2})?(?:[.,:：]\d{1,3})?"
_SPAN = rf"{_TIME}(?:\s*(?:--?>|[-–—~→]|to)\s*{_TIME})?"
_TIME_STAMP = re.compile(rf"[{_OPEN}]\s*{_SPAN}\s*[{_CLOSE}]|<{_SPAN}>")
_BARE_TIME_STAMP = re.compile(  # in front of a line or behind a tag, by itself or in other brackets: `(0:12) la`
    rf"(?:^|(?<=[{_CLOSE}]))\s*(?:({_SPAN})|[({{（]\s*({_SPAN})\s*[)}}）])\s*(?:(?=[{_OPEN}])|[-–—|]?(?:\s+|$))"
)
_SURELY_A_TIME_STAMP = re.compile(rf"0\d{{0,2}}[:：]\d\d|{_TIME}\D+{_TIME}|\d+[:：]\d\d[:：]\d\d|\d+[:：]\d\d[.,]\d+")
_RULE = re.compile(r"\s*(?:([-*_=~#])\s*(?:\1\s*){2,}|`{3,}\w*|[;|])\s*")  # `---`, a fence of code, a lone separator
_SEPARATORS = ";|/,:；｜／，、："
_EMPHASIS = "*_~`"
_MARKS = f"{_EMPHASIS}#>=–—-"
_HEAD = re.compile(
    rf"[{_EMPHASIS}{_CLOSE})}}）]*"  # what is closed right behind a tag
    rf"(?:[\s{_SEPARATORS}]|[{_MARKS}]+(?=[\s{_SEPARATORS}{_OPEN}「『]|$)|\d{{1,3}}[.)]\s)*"
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
_MOST_WORDS = 3  # of a name
_CHARACTERS_OF_A_WORD = 2  # in scripts without spaces


@dataclass(frozen=True)
class Tag:
    """A section's name, and from where to where its bracket stands in the line."""

    name: Name
    start: int
    end: int


def has_time_stamp(line: str) -> bool:
    """Whether the line begins with what can only be a time stamp: `0:14 la`, but not `10:15 on the clock`."""
    stamp = _BARE_TIME_STAMP.match(line)
    return stamp is not None and _SURELY_A_TIME_STAMP.match(stamp[1] or stamp[2]) is not None


def plain(line: str, timed: bool = False) -> tuple[str, bool]:
    """The line without marks that say nothing of its words, and whether there were time stamps among them.

    `timed` lyrics have a time stamp in front of lines, even where one reads like the time of day.
    """

    def kept(stamp: re.Match[str]) -> str:
        alone = stamp.end() == len(line) and (stamp.start() == 0 or stamp[2] is not None)
        return "" if timed or alone or _SURELY_A_TIME_STAMP.match(stamp[1] or stamp[2]) else stamp[0]

    line = line.replace("\\[", "[").replace("\\]", "]")
    length = len(line)
    line = _TIME_STAMP.sub("", line)
    line = _BARE_TIME_STAMP.sub(kept, line)
    had_stamps = len(line) < length
    line = _BRACKET.sub(_unless_closing, line)
    if _RULE.fullmatch(line):
        line = ""
    return " ".join(line.split()) if had_stamps else line, had_stamps


def tags(line: str) -> Iterator[Tag]:
    """The brackets that open a section."""
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
    """What the brackets hold of a line that has nothing else."""
    contents = []
    while line := without_head(line):
        if not (bracket := _OUTER_BRACKET.match(line)):
            return []
        contents.append(_unmarked(bracket[1]))
        line = line[bracket.end() :]
    return contents


def directions(words: str) -> tuple[list[str], str]:
    """The brackets that the words behind a tag begin with, and the words: `[soft] la`."""
    found = []
    while (bracket := _BRACKET.match(words)) and (is_direction(bracket[1]) or is_name(bracket[1])):
        found.append(bracket[1])
        words = without_head(words[bracket.end() :])
    return found, words


def is_direction(content: str) -> bool:
    """Whether a bracket says too much for a name, or speaks of tempo, key or metre."""
    if not has_words(content) or _REPEAT_MARK.fullmatch(content):
        return False
    if _MUSIC.fullmatch(content.strip()):
        return True
    rest, n_characters = SYLLABLE_CHARACTER.subn(" ", content)
    n_words = sum(map(has_words, rest.split())) + n_characters / _CHARACTERS_OF_A_WORD
    return n_words > _MOST_WORDS or _DIRECTION.search(content) is not None


def is_name(content: str) -> bool:
    """Whether a bracket may hold the name of a section that nobody knows."""
    return bool(_NAME.fullmatch(content)) and not _REPEAT_MARK.fullmatch(content) and not is_direction(content)


def has_words(text: str) -> bool:
    """Whether there is anything to sing."""
    return any(map(str.isalnum, text))


def without_head(text: str) -> str:
    """A text without the Markdown and the separators that it begins with."""
    head = _HEAD.match(text)
    return text[head.end() :] if head else text


def without_tail(text: str) -> str:
    """A text that a tag follows, without the Markdown and the separators that it ends with."""
    text = text.rstrip(_EMPHASIS + "[［【〔〖({（")
    while True:
        text = text.rstrip().rstrip(_SEPARATORS).rstrip()
        bare = text.rstrip(_MARKS)
        if bare == text or not (bare[-1:].isspace() or bare == ""):
            return text
        text = bare


def without_closing_emphasis(line: str, before: str) -> str:
    """A line whose emphasis begins in front of a tag, without the marks that end it: `**[chorus] la la**`."""
    marks = before[len(before.rstrip(_EMPHASIS)) :]
    return line.rstrip().removesuffix(marks) if marks else line


def _brackets(line: str) -> Iterator[re.Match[str]]:
    """Brackets, outer before inner ones."""
    for outer in _OUTER_BRACKET.finditer(line):
        yield outer
        yield from (inner for inner in _BRACKET.finditer(line, outer.start() + 1, outer.end()))


def _unless_closing(bracket: re.Match[str]) -> str:
    """Nothing for `[/verse]`: what it ends ends by itself."""
    slash, name = bracket[1].strip()[:1], bracket[1].strip()[1:]
    return "" if slash == "/" and section_names.find(name, Place.WITHIN) else bracket[0]


def _unmarked(content: str) -> str:
    """What a bracket holds, without marks or needless white space: `[ **Chorus** ]`."""
    inner = " ".join(content.split())
    for marks in ("**", "__", "~~", "*", "_", "`"):
        if len(inner) > 2 * len(marks) and inner.startswith(marks) and inner.endswith(marks):
            return inner.removeprefix(marks).removesuffix(marks).strip()
    return inner
