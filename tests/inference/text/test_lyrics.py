"""What lyrics become by the rules of docs/lyrics.md: sections and warnings."""

from __future__ import annotations

import pytest

from inference.text.lyrics import Section, parse
from tests.support.lyrics_page import told


def tags(text: str) -> list[str]:
    return [section.tag for section in parse(text).sections]


def bodies(text: str) -> list[str]:
    return [section.body for section in parse(text).sections]


def test_a_section_is_its_tag_and_its_stripped_words() -> None:
    (section,) = parse("\n[verse]\n\n  one \n\n two  \n\n").sections
    assert (section.tag, section.body, section.line) == ("verse", "one \n\n two", 2)
    assert section.text == "[verse]\none \n\n two\n\n"
    assert Section("verse", "\n one \n", 1).text == "[verse]\none\n\n"


def test_last_section_is_kept_without_a_final_newline() -> None:
    assert bodies("[verse]\na\n[outro]\nlast words") == ["a", "last words"]


KNOWN_TAGS = [
    *("intro", "verse", "pre-chorus", "chorus", "post-chorus", "pre-hook", "hook", "refrain", "bridge", "breakdown"),
    *(
        "break",
        "interlude",
        "instrumental",
        "inst",
        "solo",
        "drop",
        "rap",
        "outro",
        "end",
        "intro-short",
        "inst-medium",
    ),
    *("Verse 1", "VERSE", "verse2", "verse_2", "Verse A", "Verse One", "Chorus: softly", "chorus - B", "Chorus x2"),
    *(
        "Pre Chorus",
        "prechorus 2",
        "Pre\u2011Chorus",
        "Pre – Chorus",
        " verse ",
        "Verse 1: Ann & Bo, Cy",
        "Bridge (slow)",
    ),
]


@pytest.mark.parametrize("tag", KNOWN_TAGS)
@pytest.mark.parametrize("before", ["", "b ", "b", "[oh] ", "b\n"])
def test_a_known_tag_is_kept_as_written_wherever_it_stands(tag: str, before: str) -> None:
    lyrics = parse(f"[verse]\na\n{before}[{tag}] la la")
    assert [section.tag for section in lyrics.sections] == ["verse", tag.strip()]
    assert lyrics.sections[1].body == "la la"
    assert lyrics.sections[0].body == f"a\n{before}".strip()
    assert not lyrics.notes


@pytest.mark.parametrize("space", ["\t", "  ", "\u00a0", "\u3000", "\u2003 ", "\\t", "&nbsp;"])
@pytest.mark.parametrize("words", [["verse"], ["Verse", "1"], ["副歌"], ["my", "part"], ["**Chorus**"]])
def test_white_space_in_a_bracket_does_not_reach_the_tag(space: str, words: list[str]) -> None:
    tidy, (_, section) = (
        parse(f"[verse]\na\n[{' '.join(words)}]\nb"),
        parse(f"[verse]\na\n[{space}{space.join(words)}{space}]\nb").sections,
    )
    assert section == tidy.sections[1]


def test_tags_right_behind_each_other_are_sections_of_their_own() -> None:
    sections = parse("[verse]\na\n[bridge][outro] [rap] bye").sections
    assert [(s.tag, s.body, s.line) for s in sections] == [
        ("verse", "a", 1),
        ("bridge", "", 3),
        ("outro", "", 3),
        ("rap", "bye", 3),
    ]


REPEAT_MARKS = ["[x2]", "[X 3]", "[2x]", "[×2]", "[repeat]", "[Repeat x2]", "[bis]", "[Repeat Chorus]"]
OTHER_BRACKETS = ["[]", "[ ]", "[!]", "[...]", "[Hey!]", "[la] la", "[la][la]", "[G] [D]", "[verses] la", "<SOA>"]
WITHIN_WORDS = [
    *("la [laughs] la", "the [red] balloon", "my [heart, soul]", "we go [to the chorus]", "la [everyone sings chorus]"),
    *(
        "[end_of_segment] la",
        "(ooh) la",
        "we [break it down] now",
        "la [drop the beat]",
        "「サビ」と言った",
        "【啦】 la",
    ),
]


@pytest.mark.parametrize("line", [*REPEAT_MARKS, *OTHER_BRACKETS, *WITHIN_WORDS])
def test_any_other_bracket_is_kept(line: str) -> None:
    lyrics = parse(f"[verse]\na\n{line}\nb")
    assert [section.body for section in lyrics.sections] == [f"a\n{line}\nb"]
    assert told(f"[verse]\na\n{line}\nb") == ()


@pytest.mark.parametrize("mark", [mark for mark in REPEAT_MARKS if mark != "[Repeat Chorus]"])
def test_a_repeat_mark_after_a_tag_is_kept(mark: str) -> None:
    assert bodies(f"[chorus] {mark}\nla") == [f"{mark}\nla"]


@pytest.mark.parametrize(
    "tag",
    [
        *("whisper", "verses", "मुखड़ा", "l'envoi", "end_of_segment", "起", "男", "Part 1", "A"),
        *("Guitar Solo", "Extended Guitar Solo", "Final Chorus", "2nd Verse", "Half-Time Chorus", "Bass Drop"),
    ],
)
def test_an_unknown_name_alone_on_its_line_is_kept_with_a_warning(tag: str) -> None:
    text = f"[verse]\na\n  [{tag}] \nb"
    assert [(s.tag, s.body) for s in parse(text).sections] == [("verse", "a"), (tag, "b")]
    (warning,) = told(text)
    assert f"line 3): [{tag}]" in warning and "known to understand" in warning


@pytest.mark.parametrize("tag", ["Guitar Solo", "Instrumental Break", "Final Chorus", "Bass Drop"])
def test_a_known_name_with_words_in_front_needs_none_under_it(tag: str) -> None:
    assert tags(f"[verse]\na\n[{tag}]\n\n[outro]\nb") == ["verse", tag, "outro"]


def test_an_instrument_behind_an_instrumental_tag_makes_no_second_section() -> None:
    assert tags("[verse]\na\n[Instrumental] [Guitar Solo]\n[outro]\nb") == ["verse", "Instrumental", "outro"]


SPELLED_LINE_ENDS = [
    *("\\n", "\\r\\n", "\\\\n", "\\r", "\\N", "\\x0a", "\\u000a", "\\u000D\\u000A", "\\u2028", "%0A", "%0d%0a", "%0D"),
    *("&#10;", "&#13;", "&#xA;", "&#x0d;&#x0a;", "&NewLine;", "<br>", "<BR/>", "<br />", "<p>", "</p>"),
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", *SPELLED_LINE_ENDS])
def test_every_line_end_is_one(end: str) -> None:
    lyrics = parse(end.join(["[verse]", "a", "", "b", "[chorus]", "c", ""]))
    assert [(s.tag, s.body, s.line) for s in lyrics.sections] == [("verse", "a\n\nb", 1), ("chorus", "c", 5)]


@pytest.mark.parametrize("end", SPELLED_LINE_ENDS)
def test_a_line_end_that_is_spelled_out_is_one_beside_real_ones_too(end: str) -> None:
    text = f"[verse]\na {end} b{end}[chorus]\nc"
    assert [(s.tag, s.body.split()) for s in parse(text).sections] == [("verse", ["a", "b"]), ("chorus", ["c"])]
    (warning,) = told(text)
    assert warning == f"lyrics (lines 2–3): {end} are read as line ends"
    assert told(f"[verse]\na{end}b") == (f"lyrics (line 2): {end} is read as a line end",)


@pytest.mark.parametrize("end", SPELLED_LINE_ENDS)
def test_a_line_end_that_is_spelled_out_in_front_of_a_real_one_is_the_same_one(end: str) -> None:
    lyrics = parse(f"[verse]{end}\na{end} \nb{end}\n")
    assert [(s.tag, s.body, s.line) for s in lyrics.sections] == [("verse", "a\nb", 1)]
    assert not lyrics.notes


@pytest.mark.parametrize("tab", ["\\t", "\\\\t", "\\u0009", "%09", "&#9;", "&Tab;", "&nbsp;"])
def test_a_tab_that_is_spelled_out_is_one(tab: str) -> None:
    assert bodies(f"[verse]\na{tab}b") == ["a\tb"]
    assert told(f"[verse]\na{tab}b") == (f"lyrics (line 2): {tab} is read as a tab",)


@pytest.mark.parametrize(
    "words", ["100% sure", "50%off", "a & b", "me &you; 10", "AC\\DC", "¯\\_(ツ)_/¯", "5 < 6 > 4", "a/n"]
)
def test_percent_signs_and_backslashes_are_no_line_ends(words: str) -> None:
    assert bodies(f"[verse]\n{words}") == [words]
    assert told(f"[verse]\n{words}") == ()


INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202a\u202c\u2066\x00\x1b"


@pytest.mark.parametrize("character", INVISIBLE)
def test_invisible_characters_hide_no_tag(character: str) -> None:
    c = character
    text = f"{c}[{c}ver{c}se{c}]{c}\na{c}\n{c}[chorus{c}]\nb\n【副{c}歌】\nc"
    assert [(s.tag, s.body) for s in parse(text).sections] == [("verse", "a"), ("chorus", "b"), ("chorus", "c")]


@pytest.mark.parametrize("word", ["می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧", "❤\ufe0f\u200d🔥"])
def test_joiners_that_are_needed_stay(word: str) -> None:
    assert bodies(f"[verse]\n{word}") == [word]


@pytest.mark.parametrize(
    "line",
    [
        *(
            "**[Chorus]**",
            "### [Chorus]",
            "## **[Chorus]**",
            "_[Chorus]_",
            "`[Chorus]`",
            "> [Chorus]",
            "> **[Chorus]**",
        ),
        *("- [Chorus]", "* [Chorus]", "2. [Chorus]", "[**Chorus**]", "[_Chorus_]", "~~[Chorus]~~", "([Chorus])"),
        *(
            "[[Chorus]]",
            "♪ [Chorus] ♪",
            "=== [Chorus] ===",
            "[Chorus]:",
            "**[Chorus]:**",
            "\\[Chorus\\]",
            "[Chorus]<br>",
        ),
        *("---\n[Chorus]", "[Chorus] ;", ";\n[Chorus]", "|\n[Chorus]", "```\n[Chorus]\n```"),
    ],
)
def test_marks_around_a_tag_are_dropped(line: str) -> None:
    for first in ("[verse]\na\n", ""):
        lyrics = parse(f"{first}{line}\nb")
        assert lyrics.sections[-1].tag == "Chorus" and lyrics.sections[-1].body == "b"
        assert [section.body for section in lyrics.sections[:-1]] == (["a"] if first else [])
        assert not lyrics.notes


@pytest.mark.parametrize("line", ["- I said", "*la*", "_la_ la", "> la", "1. la", "la;", "-", "…", "♪", "*I* [x2]"])
def test_marks_elsewhere_are_kept(line: str) -> None:
    assert bodies(f"[verse]\na\n{line}\nb") == [f"a\n{line}\nb"]


@pytest.mark.parametrize("words", ["(ooh) la", "'la'", "*la* la", "-la", "…la", "[x2] la", '"la"', "la (oh)!"])
def test_words_behind_a_tag_keep_their_marks(words: str) -> None:
    assert bodies(f"[verse] {words}") == [words]


@pytest.mark.parametrize(
    "direction",
    [
        *("[Soft harmonica, warm guitar]", "[Mood: sad]", "[the crowd is cheering]", "[Soft; slow]", "[Fade out...]"),
        *(
            "[轻柔的钢琴，温暖]",
            "【作词：方】",
            "[轻柔的钢琴声慢慢响起来]",
            "[oh, no]",
            "**[Mood: sad]**",
        ),
        *(
            "[ti: Song [live]]",
            "[Soft, slow] [warm, low]",
            "[key: C]",
            "[90 BPM]",
            "[~120bpm]",
            "[Tempo 90]",
            "[bpm 90]",
        ),
        *("[Key: Am]", "[key of G]", "[F# minor]", "[4/4]", "[6/8 time]", "[capo 2]", "[80-95 BPM]"),
    ],
)
def test_a_stage_direction_is_left_out_wherever_it_stands(direction: str) -> None:
    text = f"{direction}\n[verse]\na\n{direction}\nb\n[chorus]\n{direction}\nc\n{direction}"
    assert bodies(text) == ["a\nb", "c"]
    (warning,) = told(text)
    assert warning.startswith("lyrics (lines 1, 4, 7, 9): ") and "left out" in warning


def test_directions_beside_a_name_leave_the_name() -> None:
    assert tags("[verse]\na\n[Loud, big] [Whisper]\nb") == ["verse", "Whisper"]


@pytest.mark.parametrize("line", ["[Male Vocal]", "[Male Vocal] [Soft]", "\n[Male Vocal]\n", "[G] [D]\n[Em] [C]"])
def test_names_directly_behind_a_tag_belong_to_it(line: str) -> None:
    assert [(s.tag, s.body) for s in parse(f"[Verse 1]\n{line}\na").sections] == [("Verse 1", "a")]
    assert "left out" in "".join(told(f"[Verse 1] {line}\na"))


@pytest.mark.parametrize("tag", ["solo", "Instrumental Break", "intro", "间奏"])
def test_behind_an_empty_line_a_name_is_not_of_a_section_that_needs_no_words(tag: str) -> None:
    assert bodies(f"[verse]\na\n[{tag}]\n\n[Spoken]\nb") == ["a", "", "b"]
    assert bodies(f"[verse]\na\n[{tag}]\n[Spoken]\nb") == ["a", "b"]


@pytest.mark.parametrize("name", ["[Guitar melody]", "[abrupt silence]", "[The End]", "[Fade Out]", "[Produced by X]"])
def test_a_name_without_words_is_no_section(name: str) -> None:
    assert bodies(f"{name}\n\n[verse]\na\n\n{name}\n[chorus]\nb\n{name}\n\n") == ["a", "b"]


def test_names_are_sections_where_there_is_nothing_else() -> None:
    assert tags("[piano melody]\n\n[strings swell]") == ["piano melody", "strings swell"]
    assert tags("[end]") == ["end"]


@pytest.mark.parametrize("end", ["[end]", "[End]", "[END.]", "[结束]", "**[end]**", "[End of song]"])
def test_an_end_without_words_is_no_section(end: str) -> None:
    assert bodies(f"[verse]\na\n\n{end}\n") == ["a"]
    assert told(f"[verse]\na\n\n{end}\n") == ()
    assert bodies(f"[verse]\na\n{end}\nb") == ["a", "b"]


@pytest.mark.parametrize(
    "stamp",
    [
        *("[00:12.34]", "[00:12]", "[1:02.345]", "[00:12.00][01:15.00]", "[00:12:34]", "<00:12.34>", "[00:01:02.5]"),
        *(
            "[00:12,34]",
            "【00:12】",
            "［00：12］",
            "[0:12 - 0:20]",
            "[00:00-00:15]",
            "[ 00:01:02,500 --> 00:01:05,000 ]",
        ),
    ],
)
def test_time_stamps_are_left_out_and_their_words_are_kept(stamp: str) -> None:
    assert bodies(f"{stamp}[verse]\n{stamp}la {stamp}la\n{stamp} lo\n{stamp}\nlu") == ["la la\nlo\n\nlu"]
    (warning,) = told(f"[verse]\n{stamp}la\n{stamp} la")
    assert warning == "lyrics (lines 2–3): time stamps are left out"


@pytest.mark.parametrize(
    "stamp",
    [
        *(
            "00:14",
            "0:14",
            "1:02.5",
            "00:01:02",
            "00:14 -",
            "00:14 |",
            "00:14:",
            "0:14)",
            "(00:12)",
            "(0:12 - 0:20)",
            "{00:12}",
            "（00：12）",
        ),
        *("0:12-0:20", "00:00:12,500 --> 00:00:15,000"),
    ],
)
def test_a_time_stamp_in_front_of_a_line_needs_no_bracket(stamp: str) -> None:
    assert bodies(f"{stamp} [verse]\n {stamp} la la\n{stamp}\nlu") == ["la la\n\nlu"]
    assert bodies(f"[verse] {stamp} la") == ["la"]
    assert bodies("[verse]\nla (0:14) lo (00:16)") == ["la lo"]
    (warning,) = told(f"[verse]\n{stamp} la\n{stamp}\n")
    assert warning == "lyrics (lines 2–3): time stamps are left out"


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        *(("[Verse 1 - 0:15]", "Verse 1"), ("[chorus 00:12]", "chorus"), ("[Chorus @ 1:05]", "Chorus")),
        *(("[00:12 verse]", "verse"), ("[Verse 1 (0:12 - 0:40)]", "Verse 1"), ("[0:12 - 0:40: Bridge]", "Bridge")),
        *(("【副歌 1:05】", "chorus"), ("[Verse 1]", "Verse 1"), ("[Chorus x2]", "Chorus x2")),
    ],
)
def test_a_time_stamp_in_a_tag_is_left_out(written: str, tag: str) -> None:
    assert [(s.tag, s.body) for s in parse(f"[verse]\na\n{written}\nb").sections] == [("verse", "a"), (tag, "b")]


@pytest.mark.parametrize("words", ["10:15 on the clock", "at 0:12 we go", "24/7", "la (1:02)", "3:16", "7-11", "1:1"])
def test_a_time_of_day_is_generated_where_no_line_begins_with_a_time_stamp(words: str) -> None:
    assert bodies(f"[verse]\n{words} la") == [f"{words} la"]
    assert told(f"[verse]\n{words} la") == ()
    assert bodies("[verse]\n0:58 la\n1:02 lo\n10:15 lu") == ["la\nlo\nlu"]


def test_a_word_after_a_fence_is_kept() -> None:
    assert bodies("```lyrics\n[verse]\nA\n```hello\n```") == ["A\n```hello"]
