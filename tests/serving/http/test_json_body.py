"""Whatever bytes a body has, the answer is JSON that can be encoded and says what is wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from server import close_app
from serving.http import request_models
from serving.http.json_body import DEEPEST
from tests.support.fakes import INSTANCE, Served, problem

LYRICS = r"[verse]\nla"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


def post(served: Served, body: bytes | str, path: str = "/predict", **headers: str) -> TestResponse:
    data = body if isinstance(body, bytes) else body.encode()
    return served.client.post(path, data=data, content_type="application/json", headers=headers)


def refused(served: Served, body: bytes | str, path: str = "/predict") -> Any:
    """The problem that the body is; its text is whole characters, which any reader of JSON takes."""
    response = post(served, body, path)
    json.dumps(response.json, ensure_ascii=False, allow_nan=False).encode()
    return problem(response, 400)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (r'{"instances": [{"\ud800": 1}]}', "�"),
        (r'{"instances": [{"\udfff": null}]}', "�"),
        (r'{"instances": [{"genres": "half \ud83d of it", "lyrics": "[verse]\nla"}]}', "genres"),
        (r'{"instances": [{"genres": "the wrong \ude00\ud83d way round", "lyrics": "[verse]\nla"}]}', "genres"),
        (r'{"instances": [{"genres": "pop", "lyrics": "[verse]\nla", "tracks": ["mix", "\ud800"]}]}', "tracks"),
        (r'{"instances": [{"genres": "pop", "lyrics": "[verse]\nla", "reference": {"\ud800": "x"}}]}', "reference.�"),
        (r'{"instances": [{"genres": "pop", "lyrics": "[verse]\nla", "reference": {"audio": "\ud800"}}]}', None),
        (r'{"instances": [{"genres": "pop", "lyrics": "[verse]\nla", "seed": {"a": ["\udc00"]}}]}', "seed.a"),
        (r'{"instances": [{"genres": "pop", "lyrics": "[verse]\nla", "request_id": "\ud800"}]}', "request_id"),
        (r'{"instances": [{"genres": "pop", "lyrics": "[verse]\nla", "model": "\ud800"}]}', "model"),
        (r'{"instances": [{"job_id": "\ud800", "operation": "status"}]}', "job_id"),
        (r'{"instances": [{"operation": "\ud800"}]}', "operation"),
        (r'{"instances": ["\ud800"]}', None),
        (r'{"instances": "\ud800"}', "instances"),
        (r'{"instances": [], "parameters": {"\ud800": 1}}', "instances"),
        (r'{"instances": [{}], "parameters": {"\ud800": 1}}', "�"),
        (r'{"instances": [{}], "parameters": {"genres": "\ud800"}}', "genres"),
        (r'{"instances": [{}], "parameters": "\ud800"}', "parameters"),
        (r'{"\ud800": 1}', "�"),
        (r'{"genres": "\ud800", "lyrics": "[verse]\nla"}', "genres"),
        (r'{"\ud800": 1, "\ud800": 2}', "�"),
        (r'"\ud800"', None),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_in_whole_characters(served: Served, body: str, field: str | None) -> None:
    answer = refused(served, body)
    assert field is None or answer["field"] == field


@pytest.mark.parametrize("body", [r'{"\ud800": 1}', r'{"model": "\ud800"}', r'{"model": "a/b", "revision": "\ud800"}'])
def test_the_models_route_refuses_it_too(served: Served, body: str) -> None:
    refused(served, body, "/download-models")


def test_half_of_a_pair_in_lyrics_is_named_with_its_line(served: Served) -> None:
    answer = refused(
        served, r'{"instances": [{"genres": "pop", "lyrics": "[verse]\r\nla\u2028la\n\ud83d broken\nla"}]}'
    )
    assert (answer["field"], answer["line"], answer["value"]) == ("lyrics", 4, "� broken")
    assert "surrogate" in answer["allowed"]


def test_a_bad_text_does_not_stop_a_good_instance(served: Served) -> None:
    answer = post(served, r'{"instances": [{"\ud800": 1}, {"genres": "pop", "lyrics": "[verse]\nla"}]}').json
    assert [prediction.get("status") for prediction in answer["predictions"]] == [None, "succeeded"]


def test_a_whole_pair_is_one_character(served: Served) -> None:
    job = post(served, r'{"genres": "pop \ud83d\ude00", "lyrics": "[verse]\n\ud83c\udfb5"}').json["predictions"][0]
    assert job["status"] == "succeeded"


@pytest.mark.parametrize(
    ("number", "shown"),
    [("1e400", "inf"), ("-1e400", "-inf"), ("NaN", "nan"), ("Infinity", "inf"), ("9" * 5_000, "inf"), ("-2", -2)],
)
@pytest.mark.parametrize("field", ["seed", "top_p", "segments", "deadline_seconds", "guidance_scale"])
def test_a_number_that_is_none_is_refused_by_its_field(served: Served, field: str, number: str, shown: object) -> None:
    answer = refused(served, f'{{"genres": "pop", "lyrics": "{LYRICS}", "{field}": {number}}}')
    assert (answer["field"], answer["value"]) == (field, shown)


def test_beside_a_number_without_end_the_others_are_what_they_were(served: Served) -> None:
    song = f'{{"genres": "pop", "lyrics": "{LYRICS}", "seed": '
    predictions = post(served, f'{{"instances": [{song}{"9" * 5_000}}}, {song}7}}]}}').json["predictions"]
    assert (predictions[0]["error"]["field"], predictions[1]["seed"]) == ("seed", 7)
    assert "not JSON" in refused(served, f'{{"instances": [{song}{"9" * 5_000}')["detail"]


@pytest.mark.parametrize("open_and_close", [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [DEEPEST + 1, 500, 900, 1_000, 5_000, 50_000])
def test_what_is_nested_very_deep_is_refused(served: Served, depth: int, open_and_close: tuple[str, str]) -> None:
    before, after = open_and_close
    deep = before * depth + "1" + after * depth
    for body in (deep, f'{{"genres": "pop", "lyrics": "{LYRICS}", "seed": {deep}}}', before * depth):
        assert refused(served, body)["type"] == "urn:yue:problem:invalid-json"


def test_a_name_that_stands_twice_is_refused_for_only_one_could_count(served: Served) -> None:
    for body in (
        f'{{"genres": "pop", "genres": "rock", "lyrics": "{LYRICS}"}}',
        f'{{"instances": [{{"lyrics": "{LYRICS}", "genres": "pop", "genres": "pop"}}]}}',
    ):
        answer = refused(served, body)
        assert (answer["type"], answer["field"]) == ("urn:yue:problem:invalid-json", "genres")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(served: Served, encoding: str) -> None:
    body = json.dumps({**INSTANCE, "genres": "Käse"}, ensure_ascii=False).encode(encoding)
    assert post(served, body).json["predictions"][0]["status"] == "succeeded"


def test_bytes_that_are_no_utf_8_are_named(served: Served) -> None:
    assert "0xed" in refused(served, b'{"genres": "\xed\xa0\x80", "lyrics": "[verse]"}')["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "GZIP", "identity, gzip", "x-own"])
@pytest.mark.parametrize("path", ["/predict", "/download-models"])
def test_a_compressed_body_is_refused_by_its_header(served: Served, path: str, encoding: str) -> None:
    body = gzip.compress(json.dumps({"instances": [INSTANCE]}).encode())
    response = post(served, body, path, **{"Content-Encoding": encoding})
    answer = problem(response, 415)
    assert (answer["field"], answer["allowed"]) == ("Content-Encoding", "identity")
    assert "Content-Encoding: got" in answer["detail"] and "identity" in answer["detail"]
    assert response.headers["Accept-Encoding"] == "identity"


def test_a_body_that_says_it_is_not_compressed_is_read(served: Served) -> None:
    for encoding in ("identity", ""):
        assert post(served, json.dumps(INSTANCE), **{"Content-Encoding": encoding}).status_code == 200


characters = st.text(st.characters(codec=None, categories=("Cs", "L", "N", "P")), max_size=4)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | characters
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(characters, inner), max_leaves=6)
names = characters | st.sampled_from([*request_models.INSTANCE_FIELDS, "instances", "parameters"])
anything = values | st.dictionaries(names, values | st.lists(st.dictionaries(names, values), max_size=2), max_size=4)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(anything, st.sampled_from(["/predict", "/download-models"]))
def test_nothing_that_json_can_spell_is_answered_with_anything_but_whole_json(
    served: Served, value: object, path: str
) -> None:
    response = post(served, json.dumps(value), path)
    assert response.status_code < 500, response.json
    json.dumps(response.json, ensure_ascii=False, allow_nan=False).encode()
