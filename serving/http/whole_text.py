"""Text of whole characters: JSON's escapes can spell half of a surrogate pair, which is none and cannot be encoded.

It knows nothing of schemas, and of fields nothing but their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from inference.errors import InvalidField

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
ALLOWED = r"of whole characters: half of a surrogate pair (\ud800 to \udfff alone) is none"


def whole(text: str) -> str:
    """The text with a replacement character for each that is none."""
    return text if text.isascii() else LONE_SURROGATE.sub("\ufffd", text)


def whole_value(value: object) -> object:
    """A value with the same done to all its text."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, Mapping):
        return {whole(str(name)): whole_value(each) for name, each in value.items()}
    return [whole_value(each) for each in value] if isinstance(value, list | tuple) else value


def broken_text(value: object, field: str = "") -> Iterator[InvalidField]:
    """A mistake for each text in a value, names included, that cannot be encoded."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            yield _broken(field, value, error.start)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            inside = f"{field}.{name}" if field else str(name)
            yield from broken_text(each, inside)
            if LONE_SURROGATE.search(str(name)):
                yield InvalidField(inside, name, f"names {ALLOWED}")
    elif isinstance(value, list):
        for each in value:
            yield from broken_text(each, field)


def _broken(field: str, text: str, at: int) -> InvalidField:
    """The mistake, with its line where a field has lines."""
    lines_before = len(f"{text[:at]}.".splitlines())
    line = text.splitlines()[lines_before - 1]
    return InvalidField(field, line, f"text {ALLOWED}", lines_before if field == "lyrics" else None)
