"""Formats the warnings about lyrics: text that is interpreted differently than likely meant, or may not turn out well.

Independent of parsing: `lyrics.py` collects the notes.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from inference.text.lyrics import Kind, Lyrics, Section
from inference.vocabulary import TOKENS_PER_SECOND

_MESSAGES = {  # about one place, about several
    Kind.LINE_END: ("{} is read as a line end", "{} are read as line ends"),
    Kind.TAB: ("{} is read as a tab", "{} are read as tabs"),
    Kind.TIME_STAMP: ("the time stamp is left out", "time stamps are left out"),
    Kind.DIRECTION: (
        "{} is read as a stage direction and left out",
        "{} are read as stage directions and left out",
    ),
    Kind.WORDLESS: (
        "{} has no words and is not a section that YuE knows, so it is left out",
        "{} have no words and are not sections that YuE knows, so they are left out",
    ),
    Kind.UNTAGGED: (
        "{} is read as words; to start a section, write its name in brackets, as in [Chorus]",
        "{} are read as words; to start sections, write their names in brackets, as in [Chorus]",
    ),
    Kind.NOT_THE_END: (
        "{} does not end the song, because sections follow",
        "{} do not end the song, because sections follow",
    ),
}
_INTRO = re.compile(r"\s*intro", re.IGNORECASE)
_SCRIPTS = {
    "Han": re.compile("[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "kana": re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]"),
    "Hangul": re.compile("[\uac00-\ud7a3]"),
}
_MIN_CHARACTERS = 2  # one may be decoration
_KANA_FOR_HAN = 0.25  # Japanese has more kana than that, Chinese has none except as decoration
_TRAINED_FOR = re.compile(r"(?:.*-)?(en|zh|jp-kr)-(cot|icl)")
_FAMILIES = {"Chinese": "zh", "Japanese": "jp-kr", "Korean": "jp-kr"}
_MAX_PLACES = 8
_MAX_TEXT_LENGTH, _MAX_TEXTS = 40, 3


@dataclass(frozen=True)
class Caution:
    """A warning about a song, and the lines (from 1) of its lyrics that it is about, if it is about some."""

    text: str
    lines: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The warning with its lines: `lyrics (lines 3, 7–9): …`."""
        return (
            f"lyrics (line{'s'[: len(self.lines) > 1]} {_ranges(self.lines)}): {self.text}" if self.lines else self.text
        )


def warnings(lyrics: Lyrics, model: str, max_new_tokens: int, n_segments: int | None = None) -> tuple[str, ...]:
    """The warnings about the sections that `model` generates, the first `n_segments` (None: all)."""
    return tuple(map(str, cautions(lyrics, model, max_new_tokens, n_segments)))


def cautions(lyrics: Lyrics, model: str, max_new_tokens: int, n_segments: int | None = None) -> tuple[Caution, ...]:
    """The same warnings, each with its lines."""
    sections = lyrics.sections[:n_segments]
    return (
        *_from_notes(lyrics, len(sections)),
        *_about_sections(sections, max_new_tokens),
        *_about_languages(sections, model),
    )


def _from_notes(lyrics: Lyrics, n_sections: int) -> Iterator[Caution]:
    """Warnings from the notes of the parser."""
    for kind, (one, several) in _MESSAGES.items():
        notes = [note for note in lyrics.notes if note.kind is kind and note.section < n_sections]
        if notes:
            text = one if len(notes) == 1 else several
            yield _at((note.line for note in notes), text.format(_texts(note.text for note in notes)))


def _about_sections(sections: tuple[Section, ...], max_new_tokens: int) -> Iterator[Caution]:
    if _INTRO.match(sections[0].tag):
        text = f"{_tags(sections[:1])} comes first: songs that start with a verse or a chorus come out more reliably"
        yield _at([sections[0].line], text)
    if unusual := [section for section in sections if not section.usual]:
        what = "is not a section that YuE is known to understand; it is kept as one"
        several = "are not sections that YuE is known to understand; they are kept as such"
        yield _about(unusual, what, several)
    if any(section.body for section in sections) and (empty := [section for section in sections if not section.body]):
        yield _about(
            empty, *(f"{has} no words, but other sections do: YuE may make some up" for has in ("has", "have"))
        )
    budget_s = max_new_tokens / TOKENS_PER_SECOND
    if long := [section for section in sections if section.words_seconds > budget_s]:
        needed = sorted({math.ceil(section.words_seconds) for section in long})
        singing = f"about {'–'.join(map(str, dict.fromkeys((needed[0], needed[-1]))))} s of singing"
        one = f"needs {singing} and gets {budget_s:g} s; its end may be missing, so split it or raise max_new_tokens"
        several = (
            f"need {singing} and get {budget_s:g} s; split them or raise max_new_tokens, or their ends are missing"
        )
        yield _about(long, one, several)


def _about_languages(sections: tuple[Section, ...], model: str) -> Iterator[Caution]:
    """Warnings about sections in a language that only another model was trained on."""
    if not (trained := _TRAINED_FOR.fullmatch(model)):
        return
    song = _script_counts("".join(section.body for section in sections))
    languages = [_language(_script_counts(section.body), song) for section in sections]
    for language, family in _FAMILIES.items():
        concerned = [section for section, its in zip(sections, languages, strict=True) if its == language]
        if concerned and family != trained[1]:
            what = f"{language}, which {model} was not trained on; {family}-{trained[2]} was"
            yield _about(concerned, f"is {what}", f"are {what}")


def _script_counts(text: str) -> Counter[str]:
    """The numbers of Han, kana and Hangul characters."""
    normal = unicodedata.normalize("NFC", text)
    return Counter({name: len(script.findall(normal)) for name, script in _SCRIPTS.items()})


def _language(section: Counter[str], song: Counter[str]) -> str | None:
    """The language of a section by its script. Han characters count for the song's language."""
    if song.total() < _MIN_CHARACTERS or not section.total():
        return None
    if section["Hangul"] > section["Han"] + section["kana"]:
        return "Korean"
    if section["kana"] >= section["Han"] * _KANA_FOR_HAN:
        return "Japanese"
    if song["kana"] >= song["Han"] * _KANA_FOR_HAN:
        return "Japanese"
    return "Korean" if song["Hangul"] > song["Han"] else "Chinese"


def _about(sections: list[Section], one: str, several: str) -> Caution:
    text = one if len(sections) == 1 else several
    return _at((section.line for section in sections), f"{_tags(sections)} {text}")


def _at(lines: Iterable[int], text: str) -> Caution:
    return Caution(text, tuple(sorted(set(lines))))


def _ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers, as in `3, 7–9`; where there are many, only the first ones."""
    starts = [numbers[0], *(later for earlier, later in pairwise(numbers) if later > earlier + 1)]
    ends = [*(earlier for earlier, later in pairwise(numbers) if later > earlier + 1), numbers[-1]]
    places = [str(first) if first == last else f"{first}–{last}" for first, last in zip(starts, ends, strict=True)]
    more = ["…"] if len(places) > _MAX_PLACES else []
    return ", ".join([*places[:_MAX_PLACES], *more])


def _tags(sections: Iterable[Section]) -> str:
    return _texts(f"[{section.tag}]" for section in sections)


def _texts(texts: Iterable[str]) -> str:
    """The first few different texts, shortened."""
    short = [t if len(t) <= _MAX_TEXT_LENGTH else f"{t[: _MAX_TEXT_LENGTH - 1]}…" for t in dict.fromkeys(texts)]
    return ", ".join([*short[:_MAX_TEXTS], *(["…"] if len(short) > _MAX_TEXTS else [])])
