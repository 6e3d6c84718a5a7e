"""What people are told of their lyrics: each kind once, with its lines, about the words that are kept."""

from __future__ import annotations

import pytest

from inference.text.lyrics import parse
from tests.support.lyrics_page import told


@pytest.mark.parametrize(
    "line",
    [
        *(
            "### Chorus",
            "(Chorus)",
            "Chorus:",
            "**Chorus**",
            "chorus",
            "Verse 2",
            "(Verse 2 x2)",
            "Chorus (x2)",
            "[chorus",
        ),
        *(
            "chorus]",
            "{chorus}",
            "<chorus>",
            "— Chorus —",
            "(Guitar Solo)",
            "Repeat chorus",
            "(Break)",
            "### Drop",
            "End:",
        ),
        *("副歌：", "（副歌）", "《副歌》", "サビ", "1절", "후렴:", "Припев:", "(Coro x2)"),
    ],
)
def test_a_name_without_a_bracket_is_kept_with_a_warning(line: str) -> None:
    text = f"[verse]\na\n{line}\nb"
    assert [section.body for section in parse(text).sections] == [f"a\n{line}\nb"]
    (warning,) = told(text)
    assert warning.startswith(f"lyrics (line 3): '{line}' is read as words")


@pytest.mark.parametrize(
    "line",
    ["End", "Drop!", "break", "hook me up", "And in the end", "Bridge over water", "Chorus of angels", "끝", "x2"],
)
def test_everyday_words_are_no_names(line: str) -> None:
    assert told(f"[verse]\na\n{line}\nb") == ()


@pytest.mark.parametrize("tag", ["intro", "Intro 1", "INTRO: soft", "前奏"])
def test_an_intro_is_warned_of_only_where_it_comes_first(tag: str) -> None:
    (warning,) = told(f"\n[{tag}]\na\n[verse]\nb")
    assert "line 2): [" in warning and "first" in warning
    assert told(f"[verse]\na\n[{tag}]\nb") == ()


def test_a_song_without_any_words_is_instrumental_and_no_mistake() -> None:
    lyrics = parse("[verse]\n\n[solo]\n[outro]")
    assert [section.text for section in lyrics.sections] == ["[verse]\n\n\n", "[solo]\n\n\n", "[outro]\n\n\n"]
    assert told("[verse]\n\n[solo]\n[outro]") == ()


@pytest.mark.parametrize(
    ("fits", "one_more"),
    [
        ("la " * 90, "la"),
        ("风" * 120, "吹"),
        ("か" * 60 + " " + "ラ" * 60, "た"),
        ("노래" * 60, "말"),
        ("\u1102\u1169" * 120, "\u1102\u1169"),
        ("la " * 45 + "风" * 60, "吹"),
        ("la - " * 90, "la"),
    ],
    ids=["words", "han", "kana", "hangul", "jamo", "mixed", "dashes are no words"],
)
def test_a_section_too_long_for_its_budget_is_warned_of(fits: str, one_more: str) -> None:
    assert told(f"[verse]\n{fits}") == ()
    (warning,) = told(f"[chorus]\nla\n[verse]\n{fits}{one_more}")
    assert "line 3): [verse] needs about 31 s of singing and gets 30 s" in warning


def test_a_budget_is_what_max_new_tokens_say() -> None:
    text = "[verse]\n" + "la " * 130
    assert told(text, max_new_tokens=6_000) == ()
    assert "needs about 44 s of singing and gets 30 s" in told(text)[0]
    assert "needs about 44 s of singing and gets 1 s" in told(text, max_new_tokens=100)[0]


def test_warnings_of_one_kind_are_one() -> None:
    text = "".join(f"[verse {n}]\n[a, {n}]\n" + "la " * (100 + n) + "\n" for n in range(20))
    directions, long = told(text)
    assert directions.startswith("lyrics (lines 2, 5, 8, 11, 14, 17, 20, 23, …): [a, 0], [a, 1], [a, 2], … are read as")
    assert "need about 34–40 s" in long
    assert all(len(warning) < 250 for warning in (directions, long))


@pytest.mark.parametrize("segments", [1, 2, 3, 9, None])
def test_warnings_speak_of_what_is_generated(segments: int | None) -> None:
    text = "[verse]\na\n[b, b]\n[Whisper]\nc\n[d, d]\n[chorus]\n" + "la " * 99 + "\n(Chorus)\n[silence]"
    lines = "".join(warning.partition(":")[0] for warning in told(text, segments=segments))
    spoken_of = {number for number in range(1, 11) if f"{number}" in lines.replace("10", "X").replace("X", "10")}
    assert (3 in spoken_of, 4 in spoken_of, 6 in spoken_of) == (True, segments != 1, segments != 1)
    assert (7 in spoken_of, 9 in spoken_of) == (segments not in (1, 2),) * 2


@pytest.mark.parametrize(
    ("words", "model", "named"),
    [
        ("山间的风 带我回家", "en-cot", "zh-cot"),
        ("山间的风 带我回家", "m-a-p/YuE-s1-7B-anneal-en-icl", "zh-icl"),
        ("山间的风 带我回家", "jp-kr-icl", "zh-icl"),
        ("空を見上げて", "zh-cot", "jp-kr-cot"),
        ("별이 빛나는 밤", "zh-icl", "jp-kr-icl"),
        ("\u1107\u1167\u11af\u110b\u1175", "en-cot", "jp-kr-cot"),
        ("I love you 사랑해요 baby", "en-cot", "jp-kr-cot"),
        ("山间的风 带我回家", "zh-cot", None),
        ("山间的风の带我回家 hello", "zh-cot", None),
        ("空を見上げて", "jp-kr-cot", None),
        ("별이 빛나는 밤 愛", "jp-kr-cot", None),
        ("only English", "zh-cot", None),
        ("smile ツ", "en-cot", None),
        ("山间的风 带我回家", "tiny", None),
        ("山间的风 带我回家", "someone/else", None),
    ],
)
def test_a_language_that_another_model_was_trained_on_is_warned_of(words: str, model: str, named: str | None) -> None:
    given = told(f"[verse]\nla\n[副歌]\n{words}", model)
    if named is None:
        assert given == ()
    else:
        assert len(given) == 1 and "line 3): [chorus] is" in given[0] and f"; {named} was" in given[0]
