"""Finds time stamps in lyrics, as in subtitles, LRC files and notes: `[00:12.34]`, `0:14 la`, `(1:05)`.

Independent of the lines before and after.
"""

from __future__ import annotations

import re

from inference.text import section_names
from inference.text.characters import CLOSE_BRACKETS, OPEN_BRACKETS
from inference.text.section_names import Place

_TIME = r"\d{1,3}[:：]\d{1,2}(?:[:：]\d{1,2})?(?:[.,:：]\d{1,3})?"
_SPAN = rf"{_TIME}(?:\s*(?:--?>|[-–—~→]|to)\s*{_TIME})?"
_ROUND = rf"[({{（]\s*({_SPAN})\s*[)}}）]"
_IN_BRACKETS = re.compile(rf"[{OPEN_BRACKETS}]\s*{_SPAN}\s*[{CLOSE_BRACKETS}]|<{_SPAN}>")
_BARE = re.compile(  # at the start of a line or after a tag; in round brackets, anywhere
    rf"(?:^|(?<=[{CLOSE_BRACKETS}]))\s*({_SPAN})\s*(?:(?=[{OPEN_BRACKETS}])|[-–—|:.)]?(?:\s+|$))|{_ROUND}\s*[-–—|:]?"
)
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
# What cannot be a time of day: `0:14`, a span, hours and seconds, parts of a second.
_SURE = re.compile(rf"0\d{{0,2}}[:：]\d\d|{_TIME}\D+{_TIME}|\d+[:：]\d\d[:：]\d\d|\d+[:：]\d\d[.,]\d+")
_IN_TAG = re.compile(
    rf"([{OPEN_BRACKETS}])\s{{0,9}}(?:(?:{_SPAN}|{_ROUND})[\s:|–—-]{{1,5}}(?P<after>\D[^{CLOSE_BRACKETS}]{{0,80}})"
    rf"|(?P<before>[^{OPEN_BRACKETS}{CLOSE_BRACKETS}]{{1,80}}?)[\s:|@–—-]{{0,5}}(?:{_SPAN}|{_ROUND})\s*)([{CLOSE_BRACKETS}])"
)


def starts_with_stamp(line: str) -> bool:
    """True if a line starts with what can only be a time stamp: `0:14 la`, but not `10:15 on the clock`."""
    stamp = _BARE.match(line)
    return stamp is not None and _is_sure(stamp)


def is_cue(line: str) -> bool:
    """True for the time span above a subtitle: `00:00:01,000 --> 00:00:03,500`. The line above it is its number."""
    return _CUE.fullmatch(line) is not None


def without(line: str, timed: bool) -> str:
    """The line without its time stamps.

    A stamp outside square and angle brackets that looks like the time of day is removed only if it is the whole line,
    or in `timed` lyrics, whose lines start with time stamps.
    """

    def kept(stamp: re.Match[str]) -> str:
        is_alone = stamp.end() == len(line) and stamp.start() == 0
        return " " if timed or is_alone or _is_sure(stamp) else stamp[0]

    line = _IN_TAG.sub(_tag_alone, _IN_BRACKETS.sub("", line))
    return _BARE.sub(kept, line)


def _is_sure(stamp: re.Match[str]) -> bool:
    return _SURE.match(stamp[1] or stamp[2]) is not None


def _tag_alone(bracket: re.Match[str]) -> str:
    """`[Verse 1]` for `[Verse 1 - 0:15]`; a bracket without a section's name stays as it is."""
    name = bracket["after"] or bracket["before"] or ""
    opening, closing = bracket[0][0], bracket[0][-1]
    return f"{opening}{name.strip()}{closing}" if section_names.find(name, Place.WITHIN) else bracket[0]
