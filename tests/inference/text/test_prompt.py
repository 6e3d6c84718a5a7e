"""The prompt ids of a song, against YuE's own numbers and by their rules.

`data/pieces.json` holds the real tokenizer's ids of just the texts that the recorded songs need.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.errors import InvalidField
from inference.text.lyrics import Section, parse
from inference.text.prompt import Encode, Prompt, build, tidy_genres
from inference.text.tokenizer import Tokenizer
from inference.vocabulary import EOA_ID, FIRST_CODE_ID, SOA_ID, XCODEC_ID
from tests.support.paths import DATA

CASES = ("two_verses", "mandarin", "untidy", "with_reference", "four_sections")
PIECES = DATA / "pieces.json"
SECTIONS = parse("[verse]\na\n[chorus]\nb\n[outro]\nc").sections


class SpellingEncoder:
    """One id for each character: what was encoded can be read back."""

    def __call__(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def spelled(ids: tuple[int, ...]) -> str:
    """The text again, with the control and code ids as ⟨names⟩."""
    names = {SOA_ID: "⟨SOA⟩", EOA_ID: "⟨EOA⟩", XCODEC_ID: "⟨xcodec⟩"}
    return "".join(names.get(i) or (f"⟨{i - FIRST_CODE_ID}⟩" if i >= FIRST_CODE_ID else chr(i)) for i in ids)


@pytest.fixture(scope="module")
def songs(parity_dir: Path) -> dict[str, dict[str, Any]]:
    return json.loads((parity_dir / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded() -> Encode:
    """The real tokenizer, for the recorded texts alone; any other text is a KeyError."""
    pieces: dict[str, list[int]] = json.loads(PIECES.read_text(encoding="utf-8"))
    return pieces.__getitem__


def check_parity(encode: Encode, song: dict[str, Any]) -> None:
    sections = parse(song["lyrics"]).sections
    prompt = build(encode, song["genres"], sections, reference_ids=song["reference_ids"] or ())
    assert [section.text for section in sections] == song["segments"]
    assert prompt.head == song["head"]
    assert [list(segment) for segment in prompt.segments] == song["segment_prompt_ids"]


def test_every_recorded_song_is_checked(songs: dict[str, dict[str, Any]]) -> None:
    assert set(CASES) == set(songs)


@pytest.mark.parametrize("case", CASES)
def test_prompt_ids_are_yues_own_by_the_recorded_pieces(
    case: str, songs: dict[str, dict[str, Any]], recorded: Encode
) -> None:
    check_parity(recorded, songs[case])


@pytest.mark.parametrize("case", CASES)
def test_prompt_ids_are_yues_own_by_the_real_tokenizer(
    case: str, songs: dict[str, dict[str, Any]], tokenizer_path: Path
) -> None:
    check_parity(Tokenizer(tokenizer_path).encode, songs[case])


def test_recorded_pieces_are_the_real_tokenizers(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    pieces = json.loads(PIECES.read_text(encoding="utf-8"))
    assert pieces == {text: tokenizer.encode(text) for text in pieces}


def test_a_prompt_reads_as_yue_was_trained() -> None:
    prompt = build(SpellingEncoder(), " pop ", SECTIONS[:2])
    head = "Generate music from the given lyrics segment by segment.\n[Genre]  pop \n[verse]\na\n\n\n[chorus]\nb\n\n"
    assert prompt.head == head
    assert [spelled(segment) for segment in prompt.segments] == [
        f"{head}[start_of_segment][verse]\na\n\n⟨SOA⟩⟨xcodec⟩",
        "[end_of_segment][start_of_segment][chorus]\nb\n\n⟨SOA⟩⟨xcodec⟩",
    ]


def test_a_reference_stands_between_the_head_and_the_first_segment() -> None:
    reference = [FIRST_CODE_ID, FIRST_CODE_ID + 1023]
    prompt = build(SpellingEncoder(), "pop", SECTIONS, reference_ids=reference)
    span = "[start_of_reference]⟨SOA⟩⟨xcodec⟩⟨0⟩⟨1023⟩⟨EOA⟩[end_of_reference]"
    assert spelled(prompt.segments[0]).startswith(f"{prompt.head}{span}[start_of_segment]")
    assert "reference" not in "".join(map(spelled, prompt.segments[1:]))


@pytest.mark.parametrize("reference", [[], [FIRST_CODE_ID] * 5])
def test_starts_point_at_the_start_of_segment_marker(reference: list[int]) -> None:
    prompt = build(SpellingEncoder(), "pop", SECTIONS, reference_ids=reference)
    for section, segment, start in zip(SECTIONS, prompt.segments, prompt.starts, strict=True):
        assert spelled(segment[start:]) == f"[start_of_segment]{section.text}⟨SOA⟩⟨xcodec⟩"


def test_last_section_is_generated() -> None:
    assert "[outro]\nc" in spelled(build(SpellingEncoder(), "pop", SECTIONS).segments[-1])


def test_fewer_segments_are_the_first_ones_and_the_head_keeps_all() -> None:
    whole = build(SpellingEncoder(), "pop", SECTIONS)
    for n in (1, 2, 3):
        assert build(SpellingEncoder(), "pop", SECTIONS, n) == Prompt(whole.head, whole.segments[:n], whole.starts[:n])


def test_markers_spelled_by_a_user_do_not_move_the_starts() -> None:
    sections = parse("[verse]\na [start_of_segment] b\n[chorus]\n[end_of_segment] c").sections
    prompt = build(SpellingEncoder(), "[start_of_segment]", sections)
    for section, segment, start in zip(sections, prompt.segments, prompt.starts, strict=True):
        assert spelled(segment[start:]) == f"[start_of_segment]{section.text}⟨SOA⟩⟨xcodec⟩"


def test_more_segments_than_there_are_is_all_of_them() -> None:
    assert build(SpellingEncoder(), "pop", SECTIONS, 4) == build(SpellingEncoder(), "pop", SECTIONS)


@pytest.mark.parametrize("n_segments", [-1, 0])
def test_a_number_of_segments_that_cannot_be_generated_is_refused(n_segments: int) -> None:
    with pytest.raises(InvalidField, match="from 1") as caught:
        build(SpellingEncoder(), "pop", SECTIONS, n_segments)
    assert (caught.value.field, caught.value.value) == ("segments", n_segments)


@pytest.mark.parametrize("genres", ["", " ", "\n\t", "\u3000", "pop \ud83d"])
def test_genres_that_cannot_be_read_are_refused(genres: str) -> None:
    with pytest.raises(InvalidField) as caught:
        build(SpellingEncoder(), genres, SECTIONS)
    assert (caught.value.field, caught.value.value) == ("genres", genres)


@pytest.mark.parametrize(
    ("genres", "tidy"),
    [
        ("folk\n", "folk"),
        (" folk \t", "folk"),
        ("folk\n[verse]\nfoo", "folk [verse] foo"),
        ("folk,\r\n\r\n  calm", "folk, calm"),
        ("folk\u2028calm\x85soft\x0b\x0cslow", "folk calm soft slow"),
        ("folk\\ncalm\\r\\n", "folk calm"),
        ("folk%0Acalm&#10;soft<br>slow\\tlow", "folk calm soft slow low"),
        ("\ufefffo\u200blk\x00", "folk"),
        ("folk  calm\tsoft", "folk  calm soft"),
        ("\u200b\n", ""),
    ],
)
def test_genres_are_one_line_of_what_can_be_seen(genres: str, tidy: str) -> None:
    assert tidy_genres(genres) == tidy


@pytest.mark.parametrize(
    "broken",
    [
        lambda: build(SpellingEncoder(), "pop", ()),
        lambda: build(SpellingEncoder(), "pop", [Section("verse", "a", 1)], reference_ids=[SOA_ID]),
    ],
    ids=["no sections", "no codes"],
)
def test_a_callers_mistake_is_an_assertion(broken: Callable[[], Prompt]) -> None:
    with pytest.raises(AssertionError):
        broken()
