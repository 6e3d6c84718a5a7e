"""A song is checked before it is generated: what it will be, and what /predict would say of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server import close_app
from serving.http.check_models import SongCheck
from tests.support.fakes import INSTANCE, Served, problem

LYRICS = "[verse]\nla la la\n\nlu lu\n\n[solo]\n[chorus]\n" + "la " * 30


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served(model="tiny")
    yield served
    close_app(served.app)


def check(served: Served, **fields: object) -> Any:
    """The answer of the route, which is that of the operation too."""
    answer = served.client.post("/check", json=fields)
    assert answer.status_code == 200, answer.json
    SongCheck.model_validate(answer.json, extra="forbid")
    (prediction,) = served.predict({"operation": "check", **fields}).json["predictions"]
    assert prediction == answer.json
    return answer.json


@pytest.mark.parametrize("fields", [{f"f{i}": 1 for i in range(5_000)}, {"tracks": ["mix"] * 5_000}])
@pytest.mark.parametrize("route", ["/check", "/predict"])
def test_what_has_too_many_members_gets_a_short_answer(served: Served, route: str, fields: dict[str, object]) -> None:
    song = {**INSTANCE, **fields}
    answer = served.client.post(route, json=song if route == "/check" else {"instances": [song]})
    assert len(answer.data) < 3_000
    assert "allowed: up to 100" in answer.text and "50" in answer.text


def test_each_section_has_its_place_its_words_and_its_expected_length(served: Served) -> None:
    told = check(served, genres="pop", lyrics=LYRICS)
    verse, solo, chorus = told["sections"]
    assert verse == {
        **{"number": 1, "tag": "verse", "line": 1, "lines": ["la la la", "lu lu"]},
        **{"generated": True, "expected_seconds": 15.0},
    }
    assert (solo["line"], solo["lines"], solo["expected_seconds"]) == (6, [], 15.0)
    assert (chorus["line"], chorus["expected_seconds"]) == (7, 25.0)  # 30 words
    assert told["expected_seconds"] == 55.0
    assert (told["ok"], told["errors"]) == (True, [])


def test_a_budget_and_a_number_of_segments_shorten_the_song(served: Served) -> None:
    told = check(served, genres="pop", lyrics=LYRICS, segments=2, max_new_tokens=1_000)
    assert [each["generated"] for each in told["sections"]] == [True, True, False]
    assert [each["expected_seconds"] for each in told["sections"]] == [10.0, 10.0, 0.0]
    assert told["expected_seconds"] == 20.0


def test_warnings_are_those_of_the_song_with_their_lines(served: Served) -> None:
    lyrics = "[intro]\nla\n[wobble]\nla\n[verse]\n### Chorus\nla\n[shimmer]\nla"
    told = check(served, genres="pop", lyrics=lyrics)
    song = served.one(lyrics=lyrics)
    assert [each["detail"] for each in told["warnings"]] == song["warnings"]
    assert [(each["line"], each["lines"]) for each in told["warnings"]] == [(6, [6]), (1, [1]), (3, [3, 8])]


@pytest.mark.parametrize(
    ("fields", "errors"),
    [
        ({}, [("genres", None), ("lyrics", None)]),
        ({"lyrics": None, "genres": None}, [("genres", None), ("lyrics", None)]),
        ({"genres": "", "lyrics": ""}, [("genres", None), ("lyrics", 1)]),
        ({"genres": "pop", "lyrics": "no tag\n[verse]\nla"}, [("lyrics", 1)]),
        ({"genres": "pop", "lyrics": "\n\nla"}, [("lyrics", 3)]),
        ({"genres": "pop", "lyrics": "[verse]\nla\n" * 101}, [("lyrics", 201)]),
        ({"genres": "pop", "lyrics": "[verse]\n\ud800"}, [("lyrics", 2)]),
        ({"genres": "pop", "lyrics": ["[verse]"]}, [("lyrics", None)]),
    ],
)
def test_lyrics_from_which_no_song_could_be_made_are_an_answer(
    served: Served, fields: dict[str, object], errors: list[tuple[str, int | None]]
) -> None:
    told = check(served, **fields)
    assert [(error["field"], error["line"]) for error in told["errors"]] == errors
    assert (told["ok"], told["sections"], told["warnings"], told["expected_seconds"]) == (False, [], [], 0)
    refused = problem(served.predict(fields), 400)
    details = [error["detail"] for error in refused.get("errors", [refused])]
    assert [error["detail"] for error in told["errors"]] == details


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"genres": None}, ["genres"]),
        ({"genres": " "}, ["genres"]),
        ({"genres": "\udc00"}, ["genres"]),
        ({"top_p": 2, "tracks": ["drums"]}, ["top_p", "tracks"]),
        ({"segments": "two", "genres": ""}, ["genres", "segments"]),
        ({"sede": 1}, ["sede"]),
        ({"a.b": 1}, ["a.b"]),
        ({"reference": {"audio": "no base64!"}}, ["reference.audio"]),
        ({"model": "en-cot"}, ["model"]),
        ({"model": "no such model"}, ["model"]),
        ({"model": "en-cot", "top_k": -1}, ["top_k", "model"]),
    ],
)
def test_other_wrong_fields_do_not_hide_what_there_is_to_say_of_the_lyrics(
    served: Served, fields: dict[str, object], wrong: list[str]
) -> None:
    told = check(served, **{"genres": "pop", "lyrics": "[intro]\nla", **fields})
    assert [error["field"] for error in told["errors"]] == wrong
    assert all(error["detail"] for error in told["errors"])
    assert not told["ok"]
    assert [section["tag"] for section in told["sections"]] == ["intro"]
    assert len(told["warnings"]) == 1


def test_what_would_be_accepted_is_ok_and_what_is_ok_is_accepted(served: Served) -> None:
    assert check(served, **INSTANCE, wait_seconds=0, request_id="one", seed=-1)["ok"]
    assert served.predict(INSTANCE).status_code == 200


@pytest.mark.parametrize("body", ["[]", '"lyrics"', "1", "null"])
def test_a_body_that_is_no_object_is_a_problem(served: Served, body: str) -> None:
    answer = served.client.post("/check", data=body, content_type="application/json")
    assert problem(answer, 400)["type"] == "urn:yue:problem:invalid-request"


def test_a_check_takes_the_parameters_of_its_request_and_starts_nothing() -> None:
    served = Served()
    check_it = {"operation": "check", "lyrics": INSTANCE["lyrics"]}
    answer = served.predict(check_it, {"operation": "models/status"}, parameters={"genres": "pop", "segments": 1})
    told, models = answer.json["predictions"]
    assert told["ok"] and [section["generated"] for section in told["sections"]] == [True, False]
    assert models["status"] == "not_loaded"
    alone = served.client.post("/predict", json={**check_it, "parameters": {"genres": "pop"}})
    assert alone.json["predictions"][0]["ok"]
    assert served.client.get("/jobs").json["jobs"] == []
    close_app(served.app)
