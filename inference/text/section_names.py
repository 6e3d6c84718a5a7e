"""Recognises the names of sections: those that YuE understands, and their equivalents in other languages.

Independent of brackets and lines.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache

END, STANZA = "end", "stanza"  # meanings of names that may not be sections: `[end]`, `[1절]`

_ENGLISH = (
    r"(?P<name>intro|verse|(?:pre|post)\s*[_‐‑‒–—-]?\s*(?:chorus|hook)|chorus|hook|refrain|bridge"
    r"|break(?:[\s_-]?down)?|interlude|inst(?:rumental)?|solo|drop|rap|outro|end)"
)
_EASTERN = {
    "intro": (
        "前奏|引子|序曲|序奏|[开開](?:头|頭|场|場|篇)|导言|導言|导奏|導奏|イントロ|オープニング|인트로|오프닝|전주|도입부?"
    ),
    "verse": "主歌|Aメロ|ヴァース|バース|벌스",
    "pre-chorus": "预副歌|預副歌|前副歌|导歌|導歌|Bメロ|サビ前|前サビ|プレ・?コーラス|プリ・?コーラス|프리[ -]?코러스",
    "chorus": "副歌|合唱|高潮|大サビ|頭サビ|冒頭サビ|サビ|コーラス|후렴구|후렴|합창|코러스|싸비|사비",
    "post-chorus": "后副歌|後副歌|ポスト・?コーラス|포스트[ -]?코러스",
    "hook": "钩子|鉤子|フック|훅",
    "bridge": "桥段|橋段|过桥|過橋|桥接|橋接|桥|橋|过渡|過渡|连接|連接|Cメロ|Dメロ|ブリッジ|브릿지|브리지",
    "refrain": "叠句|疊句|リフレイン|리프레인",
    "break": "ブレイク|브레이크",
    "drop": "ドロップ|드롭|드랍",
    "interlude": "间奏|間奏|过门|過門|插曲|インタールード|간주|인터루드",
    "instrumental": "纯音乐|純音樂|器乐|器樂|インスト|연주",
    "solo": "(?:吉他)?(?:独奏|獨奏)|(?:ギター)?ソロ|(?:기타 ?)?솔로",
    "rap": "说唱|說唱|饶舌|饒舌|ラップ|랩",
    "outro": (
        "尾奏|尾声|尾聲|结尾|結尾|收尾|后奏|後奏|终章|終章|终曲|終曲|结束语|結束語|结语|結語|終奏|アウトロ|エンディング"
        "|아웃트로|아우트로|후주|마무리|엔딩"
    ),
    "end": "结束|結束|終わり|끝",
}
_WESTERN = {
    "intro": "introducción|introdução|вступление|интро",
    "verse": "estrofa|verso|couplet|strophe|strofa|куплет",
    "pre-chorus": "pr[eé][ -]?(?:coro|estribillo|refrão|refrain|ritornello)|пред[ -]?припев",
    "chorus": "estribillo|coro|refrão|ritornello|припев",
    "bridge": "puente|ponte|pont|brücke|бридж",
    "interlude": "interludio|zwischenspiel|проигрыш",
    "outro": "аутро",
}
# Everyday words: within a line, `[bridge]` and `[Bridge 2]` are tags, `[bridge over it]` is not.
_EVERYDAY = {"bridge", "break", "drop", "end", "hook", "rap"}
_OFTEN_WORDLESS = {"intro", "breakdown", "break", "interlude", "inst", "instrumental", "solo", "drop", "outro"}

# A number may touch the name (`verse2`, `verse_2`); any other suffix is set off (`Verse 1: softly`, `chorus-b`).
# `_` sets off a number only, so that `[end_of_segment]` is no `[end]`.
_SUFFIX = r"(?:_?\d.*|[^\w].*)?"
_NUMBER = r"[\s_–-]*(?:\d+[a-z]?\b|[a-hivx]+\b|(?:one|two|three|four|five)\b|[x×]\s?\d+|\d+\s?[x×])"
_NUMBERED = rf"(?:{_NUMBER})*\s*(?:[^\w\s].*)?"
_TIMES = rf"(?:{_NUMBER}|[\s()\[\]])*"
# `Final Chorus`, `Extended Guitar Solo: loud`, but not what speaks of another section, such as `back to verse 1`.
_REFERRING = r"(?!(?:repeat|back|same|as|to|into|go|see|like|no|the|an?|this|that|my|our|your)\b)"
_QUALIFIER = rf"{_REFERRING}(?:[^\W_][\w'’&-]*\s+){{1,2}}"
_USUAL_QUALIFIER = (
    r"(?:(?:final|last|first|second|third|\d(?:st|nd|rd|th)|double|half|big|short|long|soft"
    r"|guitar|piano|sax|drum|bass|synth|violin)\s+)"
)
_FLAGS = re.IGNORECASE | re.DOTALL
_PLAIN = re.compile(rf"\s*{_ENGLISH}{_SUFFIX}", _FLAGS)
_STRICT = re.compile(rf"\s*{_ENGLISH}{_NUMBERED}", _FLAGS)
_QUALIFIED = re.compile(rf"\s*{_QUALIFIER}{_ENGLISH}{_NUMBERED}", _FLAGS)
_USUALLY_QUALIFIED = re.compile(rf"\s*{_USUAL_QUALIFIER}{_ENGLISH}{_NUMBERED}", _FLAGS)
_BARE_NAME = re.compile(rf"(?:repeat\s+|{_USUAL_QUALIFIER})?{_ENGLISH}{_TIMES}", _FLAGS)

_COUNT = r"(?:\d+|[一二三四五六七八九十]+)"
_COUNTED = rf"(?:第|제)?\s*(?P<before>{_COUNT})\s*"
# `1절`, `第一段`: a verse. 절 alone is one, too.
_STANZA = re.compile(rf"(?:{_COUNTED}(?:番|段|节|節|절)|절\s*(?P<after>{_COUNT})?)(?P<rest>[^\w].*)?", _FLAGS)
_LAST = r"(?:(?:最后|最後|最终|最終|全员|全員|ラスト|ラス|落ち|마지막)\s*[的の]?\s*)"
_EASTERN_NAME = re.compile(
    rf"(?:{_COUNTED}(?:番|段|节|節|절)?\s*[的の]?\s*)?{_LAST}?(?P<name>{'|'.join(_EASTERN.values())})(?:部分|段)?"
    rf"\s*(?P<after>{_COUNT}|[A-H]\b)?(?P<rest>\s*(?:[x×]\s?\d|重复|重複|反复|반복).*|[\W_].*)?",
    _FLAGS,
)
_WESTERN_NAME = re.compile(rf"(?P<name>{'|'.join(_WESTERN.values())})(?P<rest>{_SUFFIX})", _FLAGS)
_MAX_LENGTH, _MAX_BARE_LENGTH = 1_000, 60  # characters
_DIGITS = {character: str(number) for number, character in enumerate("一二三四五六七八九十", 1)}


class Place(Enum):
    """The position of a name: alone on its line, before words, or after some."""

    ALONE = auto()
    START = auto()
    WITHIN = auto()


@dataclass(frozen=True)
class Name:
    """A section's name: the tag for YuE, its meaning, and if YuE is known to understand it."""

    tag: str
    meaning: str
    usual: bool = True

    @property
    def often_wordless(self) -> bool:
        return self.meaning in _OFTEN_WORDLESS


@lru_cache(1_024)
def find(text: str, place: Place) -> Name | None:
    """The section's name in a bracket, if there is one: as written, or in YuE's own words."""
    if len(text) > _MAX_LENGTH:
        return None
    normal = unicodedata.normalize("NFKC", text).strip()  # full-width letters and half-width kana, too
    return _plain(text, place) or _plain(normal, place) or _foreign(normal, place) or _qualified(text, place)


def resembles(line: str) -> bool:
    """True if a line without brackets is nothing but a section's name, as in `### Chorus` or `Chorus (x2)`."""
    if len(line) > _MAX_BARE_LENGTH:
        return False
    normal = unicodedata.normalize("NFKC", line).strip()
    bare = re.sub(r"^[\W_]+|[^\w)]+$", "", normal)
    marked = bare != normal.rstrip(".,;!?…。，；！？ ")
    if match := _BARE_NAME.fullmatch(bare):
        return marked or _meaning(match) not in _EVERYDAY
    name = _foreign(bare, Place.WITHIN)
    return name is not None and (marked or name.meaning not in _EVERYDAY) and _is_count(name)


def _plain(text: str, place: Place) -> Name | None:
    match = _PLAIN.fullmatch(text)
    if not match or (place is Place.WITHIN and _meaning(match) in _EVERYDAY and not _STRICT.fullmatch(text)):
        return None
    return Name(text, _meaning(match))


def _qualified(text: str, place: Place) -> Name | None:
    match = (_USUALLY_QUALIFIED if place is Place.WITHIN else _QUALIFIED).fullmatch(text)
    if not match or (place is not Place.ALONE and _meaning(match) in _EVERYDAY):
        return None
    return Name(text, _meaning(match), usual=False)


def _foreign(text: str, place: Place) -> Name | None:
    if match := _EASTERN_NAME.fullmatch(text):
        return _translated(_means(match, _EASTERN), match["before"] or match["after"], match["rest"] or "")
    if match := _STANZA.fullmatch(text):
        return replace(_translated("verse", match["before"] or match["after"], match["rest"] or ""), meaning=STANZA)
    match = _WESTERN_NAME.fullmatch(text)
    if not match or (place is Place.WITHIN and not re.fullmatch(_NUMBERED, match["rest"], _FLAGS)):
        return None
    meaning = _means(match, _WESTERN)
    return Name(meaning + match["rest"], meaning)


def _means(match: re.Match[str], names: dict[str, str]) -> str:
    return next(meaning for meaning, either in names.items() if re.fullmatch(either, match["name"], _FLAGS))


def _translated(meaning: str, count: str | None, rest: str) -> Name:
    """YuE's name for a section. `副歌 Chorus 2` contains it."""
    if said := _plain(rest.strip(" ()[]/|:·-"), Place.START):
        return said
    number = f" {_DIGITS.get(count, count)}" if count else ""
    space = " " if rest[:1].isalnum() or rest[:1] == "×" else ""
    return Name(f"{meaning}{number}{space}{rest}".rstrip(), meaning)


def _is_count(name: Name) -> bool:
    meaning = "verse" if name.meaning == STANZA else name.meaning
    return re.fullmatch(_TIMES, name.tag.removeprefix(meaning), _FLAGS) is not None


def _meaning(match: re.Match[str]) -> str:
    return re.sub(r"[\W_]", "", match["name"]).lower()
