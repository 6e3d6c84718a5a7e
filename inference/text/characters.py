"""Cleans text: checks its characters, removes invisible ones, and splits it into lines.

JSON can contain half of a surrogate pair, which is no character and cannot be encoded. Only this module checks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from inference.errors import InvalidField

OPEN_BRACKETS, CLOSE_BRACKETS = r"\[［【〔〖", r"\]］】〕〗"  # within a set of a regular expression
ALLOWED_CHARACTERS = r"of whole characters, without halves of surrogate pairs (\ud800 to \udfff alone)"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
# Line ends and tabs as they are escaped in other formats: programs and JSON, addresses, HTML.
_CARRIAGE_RETURN = r"\\{1,4}(?:r|x0[dD]|u000[dD])|%0[dD]|&#(?:0*13|[xX]0*[dD]);"
_LINE_FEED = r"\\{1,4}(?:[nN]|x0[aA]|u(?:000[aA]|0085|202[89]))|%0[aA]|&(?:#0*10|#[xX]0*[aA]|NewLine);"
_SPELLED = rf"(?:{_CARRIAGE_RETURN})?(?:{_LINE_FEED})|{_CARRIAGE_RETURN}|(?i:</?(?:br|p)\s*/?>)"
_LINE_END_AS_MEANT = re.compile(rf"(?:(?:{_SPELLED})[ \t]*)?(?:{_LINE_END.pattern})|({_SPELLED})")
_TAB = re.compile(r"\\{1,4}(?:t|x09|u0009)|%09|&(?:#0*9|#[xX]0*9|Tab|nbsp);")
# Control characters, soft hyphens, fillers, direction marks, and spaces and joiners of no width.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
    # Joiners, except after what they can join: a letter of the scripts from Arabic to Khmer, or an emoji.
    "|(?<![\u0600-\u10ff\u1780-\u18af\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]"
)


def lines(text: str) -> list[str]:
    """The lines of a text, with any kind of line end."""
    return _LINE_END.split(text)


def lines_as_meant(text: str) -> list[tuple[str, str]]:
    r"""The lines of a text in which a line end may be escaped as `\n`, `%0A` or `<br>`, each with its escaped line end.

    That is empty for a real line end, and for an escaped one directly before a real one.
    """
    parts = [*_LINE_END_AS_MEANT.split(text), ""]
    return [(line, end or "") for line, end in zip(parts[::2], parts[1::2], strict=True)]


def with_tabs(line: str) -> tuple[str, str]:
    r"""A line with a tab for each escaped one, as in `\t`, and the first escaped one."""
    found = _TAB.search(line)
    return (_TAB.sub("\t", line), found[0]) if found else (line, "")


def visible(text: str) -> str:
    """The text without invisible characters."""
    return _INVISIBLE.sub("", text)


def whole(text: str) -> str:
    """The text with a replacement character for each half of a surrogate pair."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def whole_value(value: object) -> object:
    """A value with `whole` applied to all its text."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, Mapping):
        return {whole(str(name)): whole_value(each) for name, each in value.items()}
    return [whole_value(each) for each in value] if isinstance(value, list | tuple) else value


def check_characters(field: str, text: str, name_line: bool = False) -> None:
    """Raise InvalidField for half of a surrogate pair. With `name_line` the error names the line."""
    found = _LONE_SURROGATE.search(text)
    if found:
        number = len(lines(text[: found.start()]))
        line = number if name_line else None
        raise InvalidField(field, lines(text)[number - 1], f"text {ALLOWED_CHARACTERS}", line)


def broken_text(value: object, field: str = "") -> Iterator[InvalidField]:
    """An error for each text in a value, names included, that cannot be encoded. Errors in lyrics name the line."""
    if isinstance(value, str):
        try:
            check_characters(field, value, name_line=field == "lyrics")
        except InvalidField as error:
            yield error
    elif isinstance(value, Mapping):
        for name, each in value.items():
            inside = f"{field}.{name}" if field else str(name)
            yield from broken_text(each, inside)
            if _LONE_SURROGATE.search(str(name)):
                yield InvalidField(inside, name, f"names {ALLOWED_CHARACTERS}")
    elif isinstance(value, list):
        for each in value:
            yield from broken_text(each, field)
