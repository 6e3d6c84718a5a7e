"""What a song's fields may hold, and that a mistake is named with its field, value and what is allowed."""

from __future__ import annotations

import base64
import io
import json
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference import catalog
from inference.errors import UnknownModel
from inference.song import SongRequest
from serving.http import request_models, song_instances
from serving.http.predictions import expected_bytes
from serving.http.problems import Problem, problem_of
from serving.http.song_instances import SongInstance, read_song_instance
from tests.support.fakes import INSTANCE, LYRICS

TINY = catalog.find("tiny")


def order(parameters: dict[str, object] | None = None, **fields: object) -> SongInstance:
    return read_song_instance({**INSTANCE, **fields}, parameters or {}, TINY)


def refused(**fields: object) -> dict[str, Any]:
    """The problem that an instance with these fields is."""
    with pytest.raises(Exception) as caught:
        order(**fields)
    problem = problem_of(caught.value).as_dict()
    json.dumps(problem, allow_nan=False)
    assert problem["status"] == 400, problem
    return problem


def refused_parameters(**fields: object) -> dict[str, Any]:
    """The problem that a request with these defaults is."""
    with pytest.raises(Problem) as caught:
        request_models.read_body({"instances": [INSTANCE], "parameters": fields}, 1)
    return caught.value.as_dict()


def reference_audio(seconds: float = 2.0) -> str:
    file = io.BytesIO()
    tone = np.sin(np.arange(int(16_000 * seconds)) * 0.1) * 0.5
    soundfile.write(file, tone, 16_000, format="WAV")
    return base64.b64encode(file.getvalue()).decode()


def test_the_defaults_are_the_songs_own() -> None:
    request = order(seed=5).request
    assert request == SongRequest("pop", LYRICS, 5)


def test_every_field_reaches_the_song() -> None:
    fields = {
        "segments": 1,
        "seed": 2**53 - 1,
        "max_new_tokens": 100,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 0,
        "repetition_penalty": 1,
        "guidance_scale": [2, 1],
        "format": "wav",
        "tracks": ["vocal", "mix"],
    }
    request = order(**fields).request
    for name, value in fields.items():
        assert getattr(request, name) == (tuple(value) if isinstance(value, list) else value)


def test_one_guidance_scale_sets_both() -> None:
    assert order(guidance_scale=3).request.guidance_scale == (3, 3)


def test_a_whole_number_may_be_written_as_a_float() -> None:
    segments = order(segments=2.0).request.segments
    assert segments == 2 and isinstance(segments, int)


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    assert order({"top_k": 7}, top_k=None, seed=1, reference=None).request == SongRequest("pop", LYRICS, 1, top_k=7)


def test_a_seed_is_drawn_when_none_is_given() -> None:
    seeds = {order().request.seed for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < song_instances.DRAWN_SEEDS for seed in seeds)


@pytest.mark.parametrize("seed", [-1, -1.0])
def test_a_seed_of_minus_one_is_drawn_and_counts_as_none(seed: float) -> None:
    drawn, other = order(seed=seed), order(seed=seed)
    assert 0 <= drawn.request.seed < song_instances.DRAWN_SEEDS and drawn.request.seed != other.request.seed
    assert drawn.fingerprint == order().fingerprint == order({"seed": -1}).fingerprint
    assert order({"seed": 7}, seed=seed).request.seed != 7  # the instance says otherwise than its defaults


def test_parameters_are_the_defaults_of_an_instance() -> None:
    request = order({"genres": "rock", "top_k": 7, "seed": 1}, top_k=9).request
    assert (request.genres, request.top_k, request.seed) == ("pop", 9, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("genres", ""),
        ("genres", 3),
        ("genres", "x" * 1_001),
        ("genres", "half a pair \ud800"),
        ("lyrics", "[verse]\n" + "x" * 20_000),
        ("segments", 0),
        ("segments", "3"),
        ("segments", True),
        ("segments", 1.5),
        ("seed", -2),
        ("seed", -1.5),
        ("seed", 2**53),
        ("seed", float("inf")),
        ("max_new_tokens", 99),
        ("max_new_tokens", 6_001),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", 1_025),
        ("repetition_penalty", 0.9),
        ("guidance_scale", 0.5),
        ("guidance_scale", True),
        ("guidance_scale", "2"),
        ("guidance_scale", []),
        ("guidance_scale", [1, 2, 3]),
        ("guidance_scale", [1, 11]),
        ("format", "aac"),
        ("tracks", []),
        ("tracks", ["mix", "mix"]),
        ("tracks", ["drums"]),
        ("tracks", "mix"),
        ("wait_seconds", -1),
        ("wait_seconds", 3_601),
        ("request_id", ""),
        ("request_id", "has white space"),
        ("request_id", "x" * 129),
        ("reference", "audio"),
        ("model", 3),
        ("lyric", "a misspelt field"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: object) -> None:
    problem = refused(**{field: value})
    assert problem["field"] == field
    assert problem["allowed"]
    assert problem["detail"].startswith(f"{field}: got ")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
field_names = st.sampled_from([*request_models.Parameters.model_fields, "nonsense"])


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
@given(st.dictionaries(field_names, values))
def test_whatever_is_asked_is_an_order_or_a_problem_that_names_the_field(fields: dict[str, object]) -> None:
    try:
        order(**fields)
    except Exception as error:
        problem = problem_of(error).as_dict()
        assert problem["status"] == 400, problem
        json.dumps(problem, allow_nan=False)
        listed: Any = problem.get("errors", [problem])
        assert {error["field"].split(".")[0] for error in listed} <= fields.keys()


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Problem, match=r"lyrics: .*required"):
        read_song_instance({"genres": "pop"}, {}, TINY)


def test_every_wrong_field_is_listed() -> None:
    problem = refused(top_p=2, seed=-2, lyrics="no tag")
    assert {error["field"] for error in problem["errors"]} == {"top_p", "seed", "lyrics"}
    assert "3 fields are wrong" in problem["detail"]


def test_a_mistake_in_the_lyrics_names_its_line() -> None:
    problem = refused(lyrics="\nwords before any tag\n[verse]\nla")
    assert (problem["field"], problem["line"]) == ("lyrics", 2)


@pytest.mark.parametrize("text", ["[verse]\n\ud83d broken", "[verse]\r\nbroken \udc00", "[verse]\u2028\ud800"])
def test_half_a_character_in_the_lyrics_is_named_with_its_line(text: str) -> None:
    for problem in (refused(lyrics=text), refused_parameters(lyrics=text)):
        assert (problem["field"], problem["line"]) == ("lyrics", 2)
        assert "surrogate" in problem["allowed"]
        json.dumps(problem, ensure_ascii=False).encode()


@pytest.mark.parametrize("lyrics", ["[verse]" * 2_800, "[verse]\n" * 101, "[verse]\nla\n\n" * 500])
def test_more_sections_than_a_song_may_have_are_refused_however_they_come(lyrics: str) -> None:
    sections, line = lyrics.count("[verse]"), lyrics.split("[verse]", 101)[:101]
    for fields in ({"lyrics": lyrics}, {"lyrics": lyrics, "segments": 1}):
        problem = refused(**fields)
        assert (problem["field"], problem["value"]) == ("lyrics", f"{sections} sections")
        assert problem["line"] == 1 + "".join(line).count("\n") and "up to 100 sections" in problem["allowed"]
    assert order(lyrics="[verse]\nla\n" * 100).request.lyrics.count("[verse]") == 100


def test_half_a_character_in_the_genres_is_named() -> None:
    for problem in (refused(genres="folk \ud83d"), refused_parameters(genres="folk \ud83d")):
        assert problem["field"] == "genres" and "surrogate" in problem["allowed"]
        json.dumps(problem, ensure_ascii=False).encode()


def test_more_segments_than_sections_is_all_of_them() -> None:
    assert order({"segments": 9}).request.segments == 9
    assert expected_bytes(order(segments=9).request) == expected_bytes(order().request)


@pytest.mark.parametrize("genres", [" \n ", "\u200b", "\\n"])
def test_genres_without_a_word_are_refused(genres: str) -> None:
    assert refused(genres=genres)["field"] == "genres"


@pytest.mark.parametrize("genres", ["pop\n", " pop", "\ufeffpop\r\n\t"])
def test_white_space_around_genres_makes_no_other_song(genres: str) -> None:
    assert order(genres=genres, seed=1).request == order(seed=1).request
    assert order({"genres": genres}).fingerprint == order(genres=genres).fingerprint == order().fingerprint


def test_no_section_gets_into_the_genres() -> None:
    assert order(genres="folk\n[verse]\nfoo").request.genres == "folk [verse] foo"


def test_warnings_are_of_the_sections_that_are_generated() -> None:
    assert order(lyrics="[intro]\nla").warnings
    text = "[verse]\nla\n[Whisper]\nla"
    assert order(lyrics=text).warnings and not order({"segments": 1}, lyrics=text).warnings


def test_warnings_compare_the_words_with_the_budget() -> None:
    text = "[verse]\n" + "la " * 130
    assert "gets 30 s" in order(lyrics=text).warnings[0]
    assert "gets 10 s" in order({"max_new_tokens": 1_000}, lyrics=text).warnings[0]
    assert not order(lyrics=text, max_new_tokens=6_000).warnings


def test_a_language_of_another_model_is_warned_of() -> None:
    instance = {**INSTANCE, "lyrics": "[verse]\n山间的风"}
    assert "zh-cot" in read_song_instance(instance, {}, catalog.find("en-cot")).warnings[0]
    assert (
        not read_song_instance(instance, {}, catalog.find("zh-cot")).warnings
        + read_song_instance(instance, {}, TINY).warnings
    )


def test_reference_audio_is_read() -> None:
    audio = reference_audio()
    fields = order(reference={"audio": audio, "end_seconds": 1.5}).reference
    assert fields is not None
    reference = fields.as_reference()
    assert reference.mix == base64.b64decode(audio)
    assert (reference.start_seconds, reference.end_seconds) == (0.0, 1.5)


AUDIO = reference_audio(1.99997)  # of a length that takes padding, and with all characters


@pytest.mark.parametrize(
    "text",
    [
        AUDIO,
        "\n".join(AUDIO[start : start + 76] for start in range(0, len(AUDIO), 76)),
        AUDIO.rstrip("="),
        AUDIO.replace("+", "-").replace("/", "_"),
        AUDIO.replace("+", "-").replace("/", "_").rstrip("="),
        f"data:audio/mpeg;base64,{AUDIO}",
        f" DATA:audio/wav;codecs=1;Base64,\n{AUDIO}\n",
        f"data:;base64,{quote(AUDIO)}",
        f"base64,{AUDIO}",
        quote(AUDIO, safe=""),
        quote(f"data:audio/mpeg;base64,{AUDIO}\n", safe=""),
        f"\ufeff{AUDIO}",
        f"\ufeffdata:audio/mpeg;base64,{AUDIO}",
        *(
            end.join(AUDIO[start : start + 76] for start in range(0, len(AUDIO), 76))
            for end in ("\\n", "\\r\\n", "%0A")
        ),
    ],
)
def test_every_spelling_of_base64_is_taken(text: str) -> None:
    assert AUDIO.endswith("=") and "+" in AUDIO and "/" in AUDIO
    reference = order(reference={"audio": text}).reference
    assert reference is not None and reference.as_reference().mix == base64.b64decode(AUDIO)


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "A",
        "AAAAA",
        "AA=A",
        "AAAA,AAAA",
        "é",
        "data:audio/mpeg,AAAA",
        "AA%zzA",
        "%ff%fe",
        "\\x41AAA",
        "https://host/a.mp3",
        "a song.mp3",
    ],
)
def test_what_is_no_base64_is_refused_and_the_field_for_addresses_named(text: str) -> None:
    problem = refused(reference={"audio": text})
    assert problem["field"] == "reference.audio" and problem["value"] == text
    assert "base64" in problem["allowed"] and "reference.audio_uri" in problem["allowed"]


@pytest.mark.parametrize(
    ("head", "name"), [(b"\x00\x00\x00\x1cftypM4A \x00\x00\x02\x00", "M4A"), (b"\x1aE\xdf\xa3B\x82\x84webm", "WebM")]
)
def test_a_format_that_is_not_read_is_named_with_what_to_do(head: bytes, name: str) -> None:
    problem = refused(reference={"audio": base64.b64encode(head + bytes(100)).decode()})
    assert problem["field"] == "reference.audio" and name in problem["value"]
    assert "convert to WAV, FLAC or MP3" in problem["detail"]


@pytest.mark.parametrize(
    ("reference", "field"),
    [
        ({}, "reference.audio"),
        ({"audio": "*"}, "reference.audio"),
        ({"audio": "bm8gYXVkaW8="}, "reference.audio"),
        ({"vocal": reference_audio()}, "reference.instrumental"),
        ({"audio": reference_audio(), "start_seconds": -1}, "reference.start_seconds"),
        ({"audio": reference_audio(), "start_seconds": "1"}, "reference.start_seconds"),
        ({"audio": reference_audio(), "start_seconds": 9}, "reference.start_seconds"),
        ({"audio": 3}, "reference.audio"),
        ({"mix": ""}, "reference.mix"),
    ],
)
def test_a_wrong_reference_is_named(reference: dict[str, object], field: str) -> None:
    assert refused(reference=reference)["field"] == field


def test_a_reference_for_a_model_that_was_not_trained_for_it_is_a_warning() -> None:
    instance = {**INSTANCE, "reference": {"audio": reference_audio()}}
    assert "en-cot" in " ".join(read_song_instance(instance, {}, catalog.find("en-cot")).warnings)
    assert not read_song_instance(instance, {}, catalog.find("en-icl")).warnings


def test_the_model_must_be_the_one_that_is_here() -> None:
    assert order(model="tiny").model == "tiny"
    assert refused(model="en-cot")["field"] == "model"
    with pytest.raises(UnknownModel):
        order(model="nonsense")


def test_the_fingerprint_is_of_what_is_generated() -> None:
    assert order().fingerprint == order(wait_seconds=3, request_id="a").fingerprint
    assert order().fingerprint == order({"genres": "pop"}).fingerprint
    assert order().fingerprint != order(seed=1).fingerprint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lyrics", "[verse]\n" + "x" * 20_000),
        ("genres", "x" * 1_001),
        ("request_id", "x" * 129),
        ("reference", {"audio_uri": "https://audio.example.com/" + "x" * 4_096}),
    ],
)
def test_what_is_too_long_is_told_its_length_and_the_limit(field: str, value: Any) -> None:
    problem = refused(**{field: value})
    text = value["audio_uri"] if isinstance(value, dict) else value
    assert f"({len(text)} characters); allowed: " in problem["detail"]
    limit = {"lyrics": "20000", "genres": "1000", "request_id": "128", "reference": "4096"}[field]
    assert limit in problem["allowed"]
