"""The header Accept says whether JSON comes or a song's bytes, and in which format a song is made that names none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from inference.song import MIME_TYPES
from server import close_app
from serving.http.accept import ALIASES, JSON_ANSWER, preferred
from tests.support.fakes import INSTANCE, Served, problem

FORMATS = list(MIME_TYPES)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("", JSON_ANSWER),
        ("*/*", JSON_ANSWER),
        ("application/json", JSON_ANSWER),
        ("application/*", JSON_ANSWER),
        ("application/problem+json", JSON_ANSWER),
        ("application/json; charset=utf-8", JSON_ANSWER),
        ("application/json, audio/wav", JSON_ANSWER),
        ("text/html, */*;q=0.1", JSON_ANSWER),
        ("audio/wav;q=0.2, */*;q=0.3", JSON_ANSWER),
        ("audio/wav, */*", "wav"),
        ("audio/wav, application/json;q=0.9", "wav"),
        ("AUDIO/WAV", "wav"),
        ("audio/wav; codecs=1", "wav"),
        ("audio/*", "mp3"),
        ("audio/*;q=0.5, audio/flac", "flac"),
        ("audio/*, audio/mpeg;q=0.1", "wav"),
        ("audio/*, audio/mp3;q=0", "wav"),
        ("audio/wav;q=0.5, audio/flac;q=0.7, audio/ogg;q=0.6", "flac"),
        ("audio/wav;q=0, */*;q=0.1", JSON_ANSWER),
        ("audio/wav;q=0", None),
        ("audio/opus", None),
        ("audio/aac, video/*", None),
        ("text/plain", None),
        *((alias, name) for name, aliases in ALIASES.items() for alias in aliases),
        *((mime_type, name) for name, mime_type in MIME_TYPES.items()),
    ],
)
def test_what_a_client_would_rather_have(header: str, answer: str | None) -> None:
    assert preferred(parse_accept_header(header, MIMEAccept), FORMATS) == answer


@pytest.mark.parametrize(
    ("accept", "mime_type"),
    [
        ("audio/wav", "audio/wav"),
        ("audio/x-wav", "audio/wav"),
        ("audio/mp3", "audio/mpeg"),
        ("application/ogg", "audio/ogg"),
        ("audio/*", "audio/mpeg"),
        ("audio/wav;q=0.5, audio/flac", "audio/flac"),
    ],
)
def test_a_song_that_names_no_format_is_made_in_an_accepted_one(served: Served, accept: str, mime_type: str) -> None:
    response = served.predict({**INSTANCE, "format": None}, headers={"Accept": accept})
    assert (response.status_code, response.mimetype) == (200, mime_type)
    job = served.client.get(f"/jobs/{response.headers['X-Job-Id']}").json
    assert job["mime_type"] == mime_type


def test_a_format_that_is_not_accepted_is_refused_wherever_it_stands(served: Served) -> None:
    before = len(served.client.get("/jobs").json["jobs"])
    wav = {"Accept": "audio/wav"}
    for answer in (
        served.predict({**INSTANCE, "format": "flac"}, headers=wav),
        served.predict(INSTANCE, parameters={"format": "mp3"}, headers=wav),
        served.predict(INSTANCE, INSTANCE, headers=wav),
        served.predict(INSTANCE, headers={"Accept": "audio/opus"}),
    ):
        assert problem(answer, 406)["type"] == "urn:yue:problem:not-acceptable"
    assert len(served.client.get("/jobs").json["jobs"]) == before


def test_a_refusal_names_what_can_be_had(served: Served) -> None:
    aac = {"Accept": "audio/aac"}
    assert problem(served.predict(INSTANCE, headers=aac), 406)["allowed"][2:] == list(MIME_TYPES.values())
    assert problem(served.predict({**INSTANCE, "format": "ogg"}, headers=aac), 406)["allowed"][2:] == ["audio/ogg"]
    assert problem(served.predict(INSTANCE, INSTANCE, headers=aac), 406)["allowed"][2:] == []


def test_the_format_of_a_finished_song_is_what_it_is(served: Served) -> None:
    job_id = served.one(format="wav")["job_id"]
    result = {"job_id": job_id, "operation": "result"}
    assert served.predict(result, headers={"Accept": "audio/vnd.wave"}).mimetype == "audio/wav"
    problem(served.predict(result, headers={"Accept": "audio/mpeg"}), 406)


def test_the_same_request_id_is_the_same_song_by_its_format(served: Served) -> None:
    song = {**INSTANCE, "request_id": "accepted"}
    first = served.predict(song, headers={"Accept": "audio/wav"}).headers["X-Job-Id"]
    assert served.one(request_id="accepted", format="wav")["job_id"] == first
    problem(served.predict(song), 409)  # that would be an MP3
    plain = served.one(request_id="plain")["job_id"]
    again = served.predict({**INSTANCE, "request_id": "plain"}, headers={"Accept": "audio/mp3"})
    assert again.headers["X-Job-Id"] == plain
