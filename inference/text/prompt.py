"""Builds stage 1's prompt from genres and sections, segment by segment.

Independent of the tokenizer, which the caller passes as `encode`, and of the tokens between the segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference.errors import InvalidField
from inference.text.characters import check_characters, lines_as_meant, visible, with_tabs
from inference.text.lyrics import Section
from inference.vocabulary import (
    END_OF_REFERENCE,
    END_OF_SEGMENT,
    EOA_ID,
    SOA_ID,
    START_OF_REFERENCE,
    START_OF_SEGMENT,
    XCODEC_ID,
    code_ids,
)

Encode = Callable[[str], list[int]]

INSTRUCTION = "Generate music from the given lyrics segment by segment."


@dataclass(frozen=True)
class Prompt:
    """The prompt of every segment to be generated.

    `head` is the text that opens the first segment. `starts` are the positions of `[start_of_segment]` in each.
    """

    head: str
    segments: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]


def build(
    encode: Encode,
    genres: str,
    sections: Sequence[Section],
    n_segments: int | None = None,
    reference_ids: Sequence[int] = (),
) -> Prompt:
    """The prompt for the first `n_segments` sections (None: all). Its head names every section.

    `reference_ids` are the codebook-0 ids of the reference audio. Raises InvalidField.
    """
    assert sections, "the parser rejects lyrics without a section"
    assert set(reference_ids) <= set(code_ids(0)), "a reference holds codes of codebook 0 only"
    check_genres(genres)
    generated = sections[: sections_generated(n_segments, len(sections))]

    # first: head  [reference]  | [start_of_segment] section <SOA> <xcodec>
    # later:   [end_of_segment] | [start_of_segment] section <SOA> <xcodec>
    #                           ^ starts
    head = _head(genres, sections)
    lead_of_first = encode(head) + _reference(encode, reference_ids)
    lead_of_later = encode(END_OF_SEGMENT)
    leads = [lead_of_first] + [lead_of_later] * (len(generated) - 1)
    segments = tuple((*lead, *_segment(encode, section)) for lead, section in zip(leads, generated, strict=True))
    return Prompt(head, segments, tuple(len(lead) for lead in leads))


def check_genres(genres: str) -> None:
    """Raise InvalidField for genres that are empty or cannot be encoded."""
    if not genres.strip():
        raise InvalidField("genres", genres, "at least one tag, such as 'pop female bright vocal'")
    check_characters("genres", genres)


def tidy_genres(genres: str) -> str:
    r"""Genres on one line, because lyrics follow. Removes invisible characters and line ends, also escaped ones."""
    meant = [with_tabs(line)[0].replace("\t", " ").strip() for line, _ in lines_as_meant(visible(genres))]
    return " ".join(filter(None, meant))


def sections_generated(n_segments: int | None, n_sections: int) -> int:
    """The number of sections to generate: the first `n_segments` (None: all). Raises InvalidField."""
    if n_segments is not None and n_segments < 1:
        raise InvalidField("segments", n_segments, "a whole number from 1")
    return n_sections if n_segments is None else min(n_segments, n_sections)


def _head(genres: str, sections: Sequence[Section]) -> str:
    lyrics = "\n".join(section.text for section in sections)
    return f"{INSTRUCTION}\n[Genre] {genres}\n{lyrics}"


def _reference(encode: Encode, ids: Sequence[int]) -> list[int]:
    if not ids:
        return []
    return [*encode(START_OF_REFERENCE), SOA_ID, XCODEC_ID, *ids, EOA_ID, *encode(END_OF_REFERENCE)]


def _segment(encode: Encode, section: Section) -> list[int]:
    # Each text is encoded on its own: together, they would have other ids.
    return [*encode(START_OF_SEGMENT), *encode(section.text), SOA_ID, XCODEC_ID]
