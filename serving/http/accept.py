"""Content negotiation: the answer that the header Accept prefers, JSON or a song's bytes in one of its formats.

Independent of the request's body.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from werkzeug.datastructures import MIMEAccept

from inference.song import MIME_TYPES

JSON_ANSWER = "json"  # beside the names of formats
JSON_TYPES = ("application/json", "application/problem+json")
ALIASES = {
    "mp3": ("audio/mp3", "audio/mpeg3", "audio/mpg", "audio/x-mp3", "audio/x-mpeg", "audio/x-mpeg-3", "audio/x-mpg"),
    "wav": ("audio/x-wav", "audio/wave", "audio/x-wave", "audio/vnd.wave", "audio/x-pn-wav"),
    "flac": ("audio/x-flac", "application/flac", "application/x-flac"),
    "ogg": ("application/ogg", "audio/x-ogg", "application/x-ogg", "audio/vorbis"),
}
NAMED, TYPE, ANYTHING = 2, 1, 0  # how specific a part of Accept is: audio/wav, audio/*, */*


def preferred(accept: MIMEAccept, formats: Sequence[str]) -> str | None:
    """The preferred answer: JSON or one of the formats. Of equal ones the earlier wins.

    JSON without an Accept header; None if none of them is accepted.
    """
    if not accept:
        return JSON_ANSWER
    answers = (JSON_ANSWER, *formats)
    ranked = [(*_rank(accept, _types(answer)), -index, answer) for index, answer in enumerate(answers)]
    quality, *_, answer = max(ranked)
    return answer if quality > 0 else None


def offered(formats: Iterable[str]) -> list[str]:
    """The media types of all answers, for the error of a refused request."""
    return [*JSON_TYPES, *(MIME_TYPES[each] for each in formats)]


def _types(answer: str) -> tuple[str, ...]:
    return JSON_TYPES if answer == JSON_ANSWER else (MIME_TYPES[answer], *ALIASES[answer])


def _rank(accept: MIMEAccept, types: Sequence[str]) -> tuple[float, int]:
    """The quality of these types, by the most specific part of Accept that names them, and how specific it is."""
    found = [(closeness, quality) for item, quality in accept if (closeness := _closeness(item, types)) is not None]
    closeness, quality = max(found, default=(ANYTHING, 0.0))
    return quality, closeness


def _closeness(item: str, types: Sequence[str]) -> int | None:
    """How specifically one part of Accept names these types, if at all; parameters such as a charset are ignored."""
    name = item.partition(";")[0].strip().lower()
    if name in types:
        return NAMED
    if name == f"{types[0].partition('/')[0]}/*":
        return TYPE
    return ANYTHING if name == "*/*" else None
