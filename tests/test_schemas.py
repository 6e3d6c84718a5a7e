"""What a request may hold, and that a mistake is named with its field, value and what is allowed."""

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
from serving import orders, schemas
from serving.orders import Order, read_order
from serving.problems import Problem, problem_of
from serving.schemas import Download, JobOperation
from tests.fakes import INSTANCE, LYRICS

TINY = catalog.find("tiny")


def order(parameters: dict[str, object] | None = None, **fields: object) -> Order:
    return read_order({**INSTANCE, **fields}, parameters or {}, TINY)


def refused(**fields: object) -> dict[str, Any]:
    """The problem that an instance with these fields is."""
    with pytest.raises(Exception) as caught:
        order(**fields)
    problem = problem_of(caught.value).as_dict()
    json.dumps(problem, allow_nan=False)
    assert problem["status"] == 400, problem
    return problem


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
    assert all(0 <= seed < orders.DRAWN_SEEDS for seed in seeds)


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
        ("seed", -1),
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
field_names = st.sampled_from([*schemas.Parameters.model_fields, "nonsense"])


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
        read_order({"genres": "pop"}, {}, TINY)


def test_every_wrong_field_is_listed() -> None:
    problem = refused(top_p=2, seed=-1, lyrics="no tag")
    assert {error["field"] for error in problem["errors"]} == {"top_p", "seed", "lyrics"}
    assert "3 fields are wrong" in problem["detail"]


def test_a_mistake_in_the_lyrics_names_its_line() -> None:
    problem = refused(lyrics="\nwords before any tag\n[verse]\nla")
    assert (problem["field"], problem["line"]) == ("lyrics", 2)


def test_more_segments_than_sections_is_refused_with_their_number() -> None:
    problem = refused(segments=9)
    assert (problem["field"], problem["allowed"]) == ("segments", "1 to 2, the number of sections in the lyrics")
    assert order(segments=2).request.segments == 2


def test_genres_without_a_word_are_refused() -> None:
    assert refused(genres=" \n ")["field"] == "genres"


def test_warnings_about_the_lyrics_are_passed_on() -> None:
    assert order(lyrics="[intro]\nla").warnings


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
    ],
)
def test_every_spelling_of_base64_is_taken(text: str) -> None:
    assert AUDIO.endswith("=") and "+" in AUDIO and "/" in AUDIO
    reference = order(reference={"audio": text}).reference
    assert reference is not None and reference.as_reference().mix == base64.b64decode(AUDIO)


@pytest.mark.parametrize(
    "text", ["*", "A", "AAAAA", "AA=A", "AAAA,AAAA", "é", "data:audio/mpeg,AAAA", "https://host/a.mp3", "a song.mp3"]
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
    assert "en-cot" in " ".join(read_order(instance, {}, catalog.find("en-cot")).warnings)
    assert not read_order(instance, {}, catalog.find("en-icl")).warnings


def test_the_model_must_be_the_one_that_is_here() -> None:
    assert order(model="tiny").model == "tiny"
    assert refused(model="en-cot")["field"] == "model"
    with pytest.raises(UnknownModel):
        order(model="nonsense")


def test_the_fingerprint_is_of_what_is_sung() -> None:
    assert order().fingerprint == order(wait_seconds=3, request_id="a").fingerprint
    assert order().fingerprint == order({"genres": "pop"}).fingerprint
    assert order().fingerprint != order(seed=1).fingerprint


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], "got a list; allowed: a JSON object"),
        (None, "got null; allowed: a JSON object"),
        (True, "got true or false; allowed: a JSON object"),
        (1.5, "got a number; allowed: a JSON object"),
        ({}, "instances: got nothing; allowed: a list of 1 to 2 instances"),
        ({"instances": []}, "a list of 1 to 2 instances"),
        ({"instances": {}}, "a list of 1 to 2 instances"),
        ({"instances": [1, 2, 3]}, "got '3 instances'"),
        ({"instances": [1], "parameter": {}}, "instances, parameters"),
        ({"instances": [1], "parameters": []}, "parameters: got []; allowed: a JSON object"),
        ({"instances": [1], "parameters": {"top_p": 2}}, "top_p: got 2"),
        ({"instances": [1], "parameters": {"nonsense": 2}}, "nonsense: got 2"),
    ],
)
def test_a_wrong_body_is_named(body: object, named: str) -> None:
    with pytest.raises(Problem) as caught:
        schemas.read_body(body, max_instances=2)
    assert caught.value.status == 400
    assert named in caught.value.detail


def test_operations_are_read_strictly() -> None:
    assert schemas.read(JobOperation, {"job_id": "1", "operation": "cancel"}).operation == "cancel"
    with pytest.raises(Problem, match="operation: got 'stop'; allowed: status, result, cancel"):
        schemas.read(JobOperation, {"job_id": "1", "operation": "stop"})
    assert schemas.read(Download, {"force": None}) == Download()
    with pytest.raises(Problem, match="wait: got 'no'"):
        schemas.read(Download, {"wait": "no"})
