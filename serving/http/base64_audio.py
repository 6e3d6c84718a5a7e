"""Reads an audio file that a request holds as base64, in all the spellings that clients send.

Independent of what the file holds.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

from inference.errors import InvalidField

_PREFIX = re.compile(r"(?:data:[^,]{0,200};)?base64,", re.IGNORECASE)  # some clients send only its end
_ESCAPED_WHITE_SPACE = re.compile(r"\\{1,4}[nrt]")
_STANDARD_ALPHABET = str.maketrans("-_", "+/")  # from base64's other one, for addresses and file names


def decoded(field: str, text: str | None) -> bytes | None:
    """The file's bytes; None where there is no text. Raises InvalidField."""
    if text is None:
        return None
    encoded = _ESCAPED_WHITE_SPACE.sub("", unquote(text))  # addresses and forms percent-encode its signs
    encoded = "".join(encoded.split()).removeprefix("\ufeff")  # `base64 song.mp3` breaks its lines
    if prefix := _PREFIX.match(encoded):
        encoded = encoded[prefix.end() :]
    encoded = encoded.rstrip("=").translate(_STANDARD_ALPHABET)
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        allowed = f"a file as base64, or as a data: URL with ;base64; an address goes into {field}_uri"
        raise InvalidField(field, text, allowed) from error
