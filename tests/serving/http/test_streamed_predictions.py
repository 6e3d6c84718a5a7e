"""A song that is requested with `"stream": true` is answered with its sound while it is generated."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from werkzeug.test import TestResponse

from inference.errors import EngineError
from tests.serving.http.test_streams import send, whole
from tests.support.fakes import INSTANCE, SECONDS, Served, problem


class Request(threading.Thread):
    """One request for a song, in a thread of its own, until its answer begins."""

    def __init__(self, served: Served, accept: str = "audio/mpeg", **fields: object) -> None:
        super().__init__(daemon=True)
        self._served, self._accept, self._fields = served, accept, {**INSTANCE, "stream": True, **fields}
        self._before = len(served.models.engine.generated)
        self.start()

    def run(self) -> None:
        self._response = self._served.predict(self._fields, headers={"Accept": self._accept})

    @property
    def job_id(self) -> str:
        """The job, once it runs."""
        engine = self._served.models.engine
        engine.wait_until_begun(self._before + 1)
        return engine.generated[self._before]

    def response(self) -> TestResponse:
        self.join(SECONDS)
        assert not self.is_alive()
        return self._response


@pytest.mark.parametrize(("accept", "name"), [("audio/mpeg", "mix.mp3"), ("audio/ogg", "mix.ogg")])
def test_the_answer_is_the_stream_and_names_its_job(held: Served, accept: str, name: str) -> None:
    request = Request(held, accept, seed=7)
    send(held, request.job_id)
    response = request.response()
    assert (response.status_code, response.mimetype) == (200, accept)
    assert (response.headers["X-Job-Id"], response.headers["X-Seed"]) == (request.job_id, "7")
    heard = response.iter_encoded()
    first = next(heard)
    assert held.client.get(f"/jobs/{request.job_id}").get_json()["status"] == "running"
    held.models.engine.release()
    assert first + b"".join(heard) == whole(held, request.job_id, name)
    response.close()
    assert held.models.engine.listened == [request.job_id]
    assert held.waiters == 0


def test_the_format_of_the_stream_may_differ_from_that_of_the_song(held: Served) -> None:
    request = Request(held, "audio/wav", format="flac")
    send(held, request.job_id)
    response = request.response()
    assert response.mimetype == "audio/wav"
    held.models.engine.release()
    assert response.get_data().startswith(b"RIFF")
    response.close()
    assert held.client.get(f"/jobs/{request.job_id}").get_json()["format"] == "flac"


def test_a_stream_cannot_be_flac(held: Served) -> None:
    told = problem(held.predict({**INSTANCE, "stream": True}, headers={"Accept": "audio/flac"}), 406)
    assert "audio/flac" not in told["allowed"] and "audio/mpeg" in told["allowed"]


def test_as_json_it_is_an_ordinary_song_that_is_hurried(held: Served) -> None:
    job_id = held.one(wait_seconds=0, stream=True)["job_id"]
    held.models.engine.wait_until_begun(1)
    held.models.engine.release()
    held.wait_for(job_id)
    assert held.models.engine.listened == [job_id]


def test_a_stream_that_does_not_begin_in_time_is_answered_with_its_job(held: Served) -> None:
    response = held.predict({**INSTANCE, "stream": True, "wait_seconds": 0}, headers={"Accept": "audio/mpeg"})
    assert response.status_code == 202
    told: Any = response.json
    assert response.headers["Location"] == f"/jobs/{told['job_id']}"
    assert told["stream_url"] == f"/jobs/{told['job_id']}/stream/mix.mp3"


def test_a_song_that_fails_before_its_first_part_is_a_problem(held: Served) -> None:
    request = Request(held)
    job_id = request.job_id
    held.models.engine.error = EngineError("out of luck")
    held.models.engine.release()
    assert problem(request.response(), 503)["job_id"] == job_id
    assert held.waiters == 0


@pytest.mark.parametrize(("fields", "status"), [({}, "cancelled"), ({"request_id": "mine"}, "succeeded")])
def test_a_client_that_leaves_cancels_its_song_unless_it_can_come_back(
    held: Served, fields: dict[str, str], status: str
) -> None:
    request = Request(held, **fields)
    send(held, request.job_id)
    response = request.response()
    assert next(response.iter_encoded())
    response.close()
    held.models.engine.release()
    held.wait_for(request.job_id)
    assert held.client.get(f"/jobs/{request.job_id}").get_json()["status"] == status


def test_the_same_request_with_and_without_a_stream_is_one_song(held: Served) -> None:
    first = held.one(wait_seconds=0, request_id="mine")["job_id"]
    assert held.one(wait_seconds=0, request_id="mine", stream=True)["job_id"] == first
