"""Which names in brackets open a section, in which language, and what YuE is given for them."""

from __future__ import annotations

import pytest

from inference.text.lyrics import parse
from tests.support.lyrics_page import told


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        *(
            ("主歌", "verse"),
            ("主歌一", "verse 1"),
            ("主歌A", "verse A"),
            ("第二节", "verse 2"),
            ("第一段主歌", "verse 1"),
        ),
        *(("前奏", "intro"), ("预副歌", "pre-chorus"), ("导歌", "pre-chorus"), ("副歌 x2", "chorus x2")),
        *(("副歌x2", "chorus x2"), ("最后副歌", "chorus"), ("后副歌", "post-chorus"), ("间奏", "interlude")),
        *(("間奏", "interlude"), ("過門", "interlude"), ("桥段", "bridge"), ("橋段", "bridge"), ("尾声", "outro")),
        *(
            ("结尾", "outro"),
            ("说唱", "rap"),
            ("吉他独奏", "solo"),
            ("主歌1：周", "verse 1:周"),
            ("主歌1/2", "verse 1/2"),
        ),
        *(("副歌（Chorus 2）", "Chorus 2"), ("Verse 1 主歌", "Verse 1 主歌"), ("Chorus（副歌）", "Chorus（副歌）")),
        *(
            ("Aメロ", "verse"),
            ("Ａメロ２", "verse 2"),
            ("Bメロ", "pre-chorus"),
            ("Cメロ", "bridge"),
            ("サビ", "chorus"),
        ),
        *(("ｻﾋﾞ", "chorus"), ("大サビ", "chorus"), ("ラスサビ", "chorus"), ("1番サビ", "chorus 1"), ("2番", "verse 2")),
        *(("イントロ", "intro"), ("アウトロ", "outro"), ("ギターソロ", "solo"), ("ラップ", "rap"), ("後奏", "outro")),
        *(
            ("1절", "verse 1"),
            ("제 2절", "verse 2"),
            ("2절 후렴", "chorus 2"),
            ("후렴", "chorus"),
            ("후렴구", "chorus"),
        ),
        *(("\u1112\u116e\u1105\u1167\u11b7", "chorus"), ("마지막 후렴", "chorus"), ("벌스 1", "verse 1")),
        *(("프리 코러스", "pre-chorus"), ("프리-코러스", "pre-chorus"), ("브릿지", "bridge"), ("간주", "interlude")),
        *(("인트로", "intro"), ("아웃트로", "outro"), ("훅", "hook"), ("랩", "rap"), ("Ｃｈｏｒｕｓ　２", "Chorus 2")),
        *(("合唱", "chorus"), ("高潮", "chorus"), ("过渡", "bridge"), ("過渡段", "bridge"), ("结束语", "outro")),
        *(("开头", "intro"), ("前サビ", "pre-chorus"), ("リフレイン", "refrain"), ("オープニング", "intro")),
        *(("절", "verse"), ("절 2", "verse 2"), ("합창", "chorus"), ("도입", "intro"), ("마무리", "outro")),
        *(("Coro", "chorus"), ("Verso 1: Ana", "verse 1: Ana"), ("Pré-refrão", "pre-chorus"), ("Strophe 2", "verse 2")),
        *(("Pont", "bridge"), ("Куплет 1", "verse 1"), ("Предприпев", "pre-chorus"), ("Ritornello", "chorus")),
    ],
)
def test_a_name_in_another_language_is_yues_own(written: str, tag: str) -> None:
    for line in (f"[{written}]", f"【{written}】", f"［{written}］", f"**[{written}]**", f"la [{written}] la"):
        lyrics = parse(f"[verse]\na\n{line}\nb")
        assert [section.tag for section in lyrics.sections] == ["verse", tag], line
        assert told(f"[verse]\na\n{line}\nb") == ()


@pytest.mark.parametrize("name", ["副歌响起来", "サビの歌", "후렴처럼", "我们的副歌"])
def test_words_that_begin_with_a_name_are_none(name: str) -> None:
    assert [section.tag for section in parse(f"[verse]\na [{name}] b").sections] == ["verse"]
