"""Lyrics that are refused, with the line that is wrong; of all others every word is kept or warned of."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.errors import InvalidField
from inference.text.lyrics import Kind, parse


def refusal(text: str) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        parse(text)
    assert caught.value.field == "lyrics"
    return caught.value


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\ufeff", "\u3000\n", "\u200b", "\\n", "[Soft, slow]"])
def test_lyrics_of_nothing_are_refused(text: str) -> None:
    assert refusal(text).line == 1


def test_lyrics_without_any_tag_are_refused_at_their_first_words() -> None:
    error = refusal("\n\nla la\nla")
    assert (error.line, error.value) == (3, "la la")
    assert "[verse]" in str(error)


def test_text_before_the_first_tag_is_refused_where_it_stands() -> None:
    error = refusal("\nTitle\n[verse]\na")
    assert (error.line, error.value) == (2, "Title")
    assert "line 2" in str(error) and "before the first" in str(error)
    assert refusal("[Soft, slow]\nla [verse] a").line == 2


def test_half_a_surrogate_pair_is_refused_where_it_stands() -> None:
    error = refusal("[verse]\r\na \ud83d b")
    assert (error.line, error.value) == (2, "a \ud83d b")
    assert "surrogate" in str(error)


KNOWN = st.sampled_from(["verse", "Chorus 2", "pre-chorus", "OUTRO", "bridge: slow"])
UNKNOWN = st.sampled_from(["whisper", "my part", "起"])
# No mark of any kind in front and none inside that says something: whatever else a user may type is a line of words.
VISIBLE = st.characters(
    exclude_categories=["Cs", "Cc", "Cf"],
    exclude_characters="\\\u2028\u2029\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0[]［］【】〔〕〖〗<",
)
WORDS = st.text(VISIBLE, min_size=1).map("la".__add__)
BLANK = st.sampled_from(["", " ", "\t"])
# The same examples on every run, and none of them fails for being slow on a busy machine.
STEADY = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@STEADY
@given(
    st.lists(
        st.tuples(
            st.one_of(KNOWN, UNKNOWN),
            st.lists(st.one_of(WORDS, BLANK, st.sampled_from(["[x2]", "la [oh] la", "[la] la"])), min_size=1).filter(
                lambda lines: lines[0].startswith("la")
            ),
        ),
        min_size=1,
    )
)
def test_every_line_of_words_stands_in_exactly_its_section(song: list[tuple[str, list[str]]]) -> None:
    text = "\n".join(f"[{tag}]\n" + "\n".join(lines) for tag, lines in song)
    sections = parse(text + "\n").sections
    assert [section.tag for section in sections] == [tag for tag, _ in song]
    for section, (_, lines) in zip(sections, song, strict=True):
        kept = [line.strip() for line in section.body.split("\n")]
        assert [line for line in kept if line] == [line.strip() for line in lines if line.strip()]


PIECES = st.one_of(
    st.sampled_from(
        [
            *("[", "]", "\n", "\r\n", " ", "verse", "[verse]", "[Chorus 2]", "[x2]", "[other]", "\n[bridge]", "la"),
            *("[a, b]", "[00:12]", "**", "### ", ";", "副歌", "【副歌】", "(Chorus)\n", "[end]", "\\n", "\u200b"),
        ]
    ),
    st.characters(),
)
SPOKEN_OF = (Kind.DIRECTION, Kind.WORDLESS, Kind.NOT_THE_END)


@STEADY
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_is_refused_or_its_words_are_kept_or_warned_of(text: str) -> None:
    try:
        lyrics = parse(text)
    except InvalidField as error:
        assert error.field == "lyrics" and error.line is not None
        return
    spoken_of = [note.text for note in lyrics.notes if note.kind in SPOKEN_OF]
    kept = "".join([*(f"[{section.tag}]{section.body}" for section in lyrics.sections), *spoken_of])
    for word in "la", "other", "(Chorus)", "[x2]":
        assert kept.count(word) == text.count(word)
