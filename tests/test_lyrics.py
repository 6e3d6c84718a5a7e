"""What a user's lyrics become: sections, warnings, or an error that names the line."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.errors import InvalidField
from inference.lyrics import Section, parse


def tags(text: str) -> list[str]:
    return [section.tag for section in parse(text).sections]


def bodies(text: str) -> list[str]:
    return [section.body for section in parse(text).sections]


def refusal(text: str) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        parse(text)
    assert caught.value.field == "lyrics"
    return caught.value


def test_a_section_is_its_tag_and_its_stripped_words() -> None:
    (section,) = parse("\n[verse]\n\n  one \n\n two  \n\n").sections
    assert (section.tag, section.body, section.line) == ("verse", "one \n\n two", 2)
    assert section.text == "[verse]\none \n\n two\n\n"
    assert Section("verse", "\n one \n", 1).text == "[verse]\none\n\n"


def test_last_section_is_kept_without_a_final_newline() -> None:
    assert bodies("[verse]\na\n[outro]\nlast words") == ["a", "last words"]


@pytest.mark.parametrize(
    "tag",
    [
        *(
            "intro",
            "verse",
            "pre-chorus",
            "chorus",
            "post-chorus",
            "hook",
            "refrain",
            "bridge",
            "breakdown",
            "interlude",
        ),
        *("instrumental", "inst", "solo", "drop", "rap", "outro", "end"),
        *(
            "Verse 1",
            "VERSE",
            "verse2",
            "verse_2",
            "Chorus: softly",
            "chorus - B",
            "Pre Chorus",
            "prechorus 2",
            " verse ",
        ),
    ],
)
def test_a_known_tag_is_kept_as_written_and_text_may_follow_it(tag: str) -> None:
    lyrics = parse(f"[verse]\na\n[{tag}] la la")
    assert [(s.tag, s.body) for s in lyrics.sections] == [("verse", "a"), (tag, "la la")]
    assert lyrics.warnings == ()


def test_pre_chorus_does_not_swallow_its_lines() -> None:
    assert bodies("[Verse 1]\na\n[pre-chorus]\nb\n[chorus]\nc") == ["a", "b", "c"]


def test_tags_right_behind_each_other_are_sections_of_their_own() -> None:
    sections = parse("[verse]\na\n[bridge][outro] [end] bye").sections
    assert [(s.tag, s.body, s.line) for s in sections] == [
        ("verse", "a", 1),
        ("bridge", "", 3),
        ("outro", "", 3),
        ("end", "bye", 3),
    ]


@pytest.mark.parametrize(
    "line",
    [
        *(
            "[x2]",
            "[X 3]",
            "[2x]",
            "[×2]",
            "[repeat]",
            "[Repeat x2]",
            "[bis]",
            "[00:12.34]",
            "[00:12] la",
            "[]",
            "[ ]",
            "[!]",
        ),
        *(
            "[oh, no]",
            "[ar:someone]",
            "[la] la",
            "[la][la]",
            "la [chorus]",
            "[la] [chorus]",
            "[chorus",
            "chorus]",
            "[[chorus]]",
        ),
        *("[verses] la", "[end_of_segment] la", "(chorus)", "{chorus}", "【chorus】", "<SOA>"),
    ],
)
def test_any_other_bracket_is_sung(line: str) -> None:
    lyrics = parse(f"[verse]\na\n{line}\nb")
    assert [section.body for section in lyrics.sections] == [f"a\n{line}\nb"]
    assert lyrics.warnings == ()


def test_a_repeat_mark_behind_a_tag_is_sung() -> None:
    assert bodies("[chorus] [x2]\nla") == ["[x2]\nla"]


@pytest.mark.parametrize("tag", ["whisper", "Guitar Solo", "verses", "副歌", "मुखड़ा", "l'envoi", "end_of_segment"])
def test_an_unknown_name_alone_on_its_line_is_kept_with_a_warning(tag: str) -> None:
    lyrics = parse(f"[verse]\na\n  [{tag}] \nb")
    assert [(s.tag, s.body) for s in lyrics.sections] == [("verse", "a"), (tag, "b")]
    (warning,) = lyrics.warnings
    assert f"line 3): [{tag}]" in warning


def test_line_ends_of_every_system_are_one_line_end() -> None:
    expected = parse("[verse]\na\n\nb\n[chorus]\nc\n")
    assert parse("[verse]\r\na\r\n\r\nb\r\n[chorus]\r\nc\r\n") == expected
    assert parse("[verse]\ra\r\rb\r[chorus]\rc\r") == expected


def test_a_byte_order_mark_does_not_hide_the_first_tag() -> None:
    assert tags("\ufeff[verse]\na") == ["verse"]


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\ufeff", "\u3000\n"])
def test_lyrics_of_white_space_are_refused(text: str) -> None:
    assert refusal(text).line == 1


def test_lyrics_without_any_tag_are_refused_at_their_first_words() -> None:
    error = refusal("\n\nla la\nla")
    assert (error.line, error.value) == (3, "la la")
    assert "[verse]" in str(error)


def test_text_before_the_first_tag_is_refused_where_it_stands() -> None:
    error = refusal("\nTitle\n[verse]\na")
    assert (error.line, error.value) == (2, "Title")
    assert "line 2" in str(error) and "before the first" in str(error)


def test_half_a_surrogate_pair_is_refused_where_it_stands() -> None:
    assert refusal("[verse]\na \ud83d b").line == 2


@pytest.mark.parametrize("tag", ["intro", "Intro 1", "INTRO: soft"])
def test_an_intro_is_warned_of_only_where_it_comes_first(tag: str) -> None:
    (warning,) = parse(f"\n[{tag}]\na\n[verse]\nb").warnings
    assert f"line 2): [{tag}]" in warning and "first" in warning
    assert parse(f"[verse]\na\n[{tag}]\nb").warnings == ()


def test_an_empty_section_among_words_is_warned_of() -> None:
    (warning,) = parse("[verse]\na\n[solo]\n\n[outro]\nb").warnings
    assert "line 3): [solo] has no words" in warning


def test_a_song_without_any_words_is_instrumental_and_no_mistake() -> None:
    lyrics = parse("[verse]\n\n[solo]\n[outro]")
    assert [section.text for section in lyrics.sections] == ["[verse]\n\n\n", "[solo]\n\n\n", "[outro]\n\n\n"]
    assert lyrics.warnings == ()


@pytest.mark.parametrize(
    ("fits", "one_more"),
    [
        ("la " * 90, "la"),
        ("风" * 120, "吹"),
        ("か" * 60 + " " + "ラ" * 60, "た"),
        ("노래" * 60, "말"),
        ("la " * 45 + "风" * 60, "吹"),
        ("la - " * 90, "la"),
    ],
    ids=["words", "han", "kana", "hangul", "mixed", "dashes are no words"],
)
def test_a_section_too_long_for_thirty_seconds_is_warned_of(fits: str, one_more: str) -> None:
    assert parse(f"[verse]\n{fits}").warnings == ()
    (warning,) = parse(f"[chorus]\nla\n[verse]\n{fits}{one_more}").warnings
    assert "line 3): [verse]" in warning and "30 s" in warning


KNOWN = st.sampled_from(["verse", "Chorus 2", "pre-chorus", "OUTRO", "bridge: slow"])
UNKNOWN = st.sampled_from(["whisper", "my part", "副歌"])
# No bracket in front and no line end inside: whatever else a user may type is a line of words.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), min_size=1).map("la".__add__)
BLANK = st.sampled_from(["", " ", "\t"])
# The same examples on every run, and none of them fails for being slow on a busy machine.
STEADY = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@STEADY
@given(
    st.lists(
        st.tuples(
            st.one_of(KNOWN, UNKNOWN),
            st.lists(st.one_of(WORDS, BLANK, st.sampled_from(["[x2]", "[00:01] la", "la [verse]", "[ah, ah]"]))),
        ),
        min_size=1,
    )
)
def test_every_line_of_words_stands_in_exactly_its_section(song: list[tuple[str, list[str]]]) -> None:
    text = "\n".join(f"[{tag}]\n" + "\n".join(lines) for tag, lines in song)
    sections = parse(text).sections
    assert [section.tag for section in sections] == [tag for tag, _ in song]
    for section, (_, lines) in zip(sections, song, strict=True):
        sung = [line.strip() for line in section.body.split("\n")]
        assert [line for line in sung if line] == [line.strip() for line in lines if line.strip()]


PIECES = st.one_of(
    st.sampled_from(
        ["[", "]", "\n", "\r\n", " ", "verse", "[verse]", "[Chorus 2]", "[x2]", "[other]", "\n[bridge]", "la"]
    ),
    st.characters(),
)


@STEADY
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_is_refused_or_kept_to_the_last_character(text: str) -> None:
    try:
        sections = parse(text).sections
    except InvalidField as error:
        assert error.field == "lyrics" and error.line is not None
        return
    kept = "".join(f"[{section.tag}]{section.body}" for section in sections)
    assert "".join(kept.split()) == "".join(text.removeprefix("\ufeff").split())
