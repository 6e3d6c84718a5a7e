"""Cleans text: checks its characters, removes invisible ones, and splits it into lines.

It does not know sections or genres.
"""

from __future__ import annotations

import re

from inference.errors import InvalidField

OPEN_BRACKETS, CLOSE_BRACKETS = r"\[［【〔〖", r"\]］】〕〗"  # within a set of a regular expression
ALLOWED_CHARACTERS = "whole Unicode characters, no unpaired surrogates"

_LINE_END = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
# Line ends and tabs as other formats spell them out: programs and JSON, addresses, HTML.
_CARRIAGE_RETURN = r"\\{1,4}(?:r|x0[dD]|u000[dD])|%0[dD]|&#(?:0*13|[xX]0*[dD]);"
_LINE_FEED = r"\\{1,4}(?:[nN]|x0[aA]|u(?:000[aA]|0085|202[89]))|%0[aA]|&(?:#0*10|#[xX]0*[aA]|NewLine);"
_SPELLED = rf"(?:{_CARRIAGE_RETURN})?(?:{_LINE_FEED})|{_CARRIAGE_RETURN}|(?i:</?(?:br|p)\s*/?>)"
_LINE_END_AS_MEANT = re.compile(rf"(?:(?:{_SPELLED})[ \t]*)?(?:{_LINE_END.pattern})|({_SPELLED})")
_TAB = re.compile(r"\\{1,4}(?:t|x09|u0009)|%09|&(?:#0*9|#[xX]0*9|Tab|nbsp);")
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


def lines_as_meant(text: str) -> list[tuple[str, str]]:
    r"""The lines of a text in which a line end may be spelled out as `\n`, `%0A` or `<br>`.

    With each line comes how its end was spelled out; nothing where it is a real one, or a real one follows at once.
    """
    pieces = [*_LINE_END_AS_MEANT.split(text), ""]
    return [(line, end or "") for line, end in zip(pieces[::2], pieces[1::2], strict=True)]


def with_tabs(line: str) -> tuple[str, str]:
    r"""A line with a tab for each one that is spelled out, as in `\t`, and how the first one was spelled."""
    found = _TAB.search(line)
    return (_TAB.sub("\t", line), found[0]) if found else (line, "")


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
