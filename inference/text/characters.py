"""Cleans text: checks its characters, removes invisible ones, and splits it into lines.

It does not know sections or genres.
"""

from __future__ import annotations

import re

from inference.errors import InvalidField

ALLOWED_CHARACTERS = "whole Unicode characters, no unpaired surrogates"

_LINE_END = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
# Control characters, soft hyphens, fillers, direction marks, and spaces and joiners of no width.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
    # Joiners, unless behind what they can join: a letter of the scripts from Arabic to Khmer, or an emoji.
    "|(?<![\u0600-\u10ff\u1780-\u18af\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]"
)


def lines(text: str) -> list[str]:
    """The lines of a text, whatever ends them."""
    return _LINE_END.split(text)


def visible(text: str) -> str:
    """The text without invisible characters."""
    return _INVISIBLE.sub("", text)


def check_characters(field: str, text: str, name_line: bool = False) -> None:
    """Raise InvalidField for half a surrogate pair. With `name_line`, the error names the line.

    JSON can express it, but it is not a character and cannot be encoded.
    """
    for number, line in enumerate(lines(text), 1):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            shown = line.encode("utf-8", "backslashreplace").decode()
            raise InvalidField(field, shown, ALLOWED_CHARACTERS, line=number if name_line else None) from error
