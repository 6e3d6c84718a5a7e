"""The end of a job as it is stored: without a word of HTTP, and readable where an earlier server wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.errors import EngineCrashed, InvalidField
from inference.song import SongRequest
from serving.http.problems import problem_of
from serving.jobs import records
from serving.jobs.errors import Interrupted, JobError, ReferenceLost
from serving.jobs.job import Job
from serving.jobs.layout import StoredAudio
from storage import Storage
from tests.support.fakes import LYRICS, new_folder


def stored_end(error: Exception) -> Any:
    """The end of a job with that error, as JSON."""
    return json.loads(records.packed(records.ended(a_job(), records.failed(error))))


def a_job() -> Job:
    return Job(SongRequest("pop", LYRICS, 1), "tiny")


def error_after(end: Any) -> JobError:
    """The error of a job whose end is read."""
    job = a_job()
    records.apply_to(job, records.read_end(end), StoredAudio(Storage.at(new_folder()), {}, {}))
    assert isinstance(job.error, JobError)
    return job.error


@pytest.mark.parametrize(
    "error",
    [
        InvalidField("lyrics", "[verse]", "something else", line=3),
        EngineCrashed(3, "it was ended by SIGKILL", 41.5),
        ReferenceLost(),
        Interrupted(),
        JobError("song-failed", "half \ud800 of a pair", {"value": ["\ud800"]}),
    ],
)
def test_an_error_is_answered_the_same_after_it_was_stored(error: Exception) -> None:
    before, after = problem_of(error), problem_of(error_after(stored_end(error)))
    assert after.as_dict() == before.as_dict()
    assert after.headers == before.headers


def test_a_stored_end_has_no_status_and_no_headers() -> None:
    error = stored_end(EngineCrashed(3, "it was ended by SIGKILL", 41.5))["error"]
    assert error.keys() == {"kind", "detail", "fields", "retry_seconds"}


def test_an_end_that_an_earlier_server_wrote_is_answered_as_it_was() -> None:
    end = stored_end(Interrupted())
    end["error"] = {
        "status": 503,
        "kind": "engine-failed",
        "detail": "the engine ended",
        "members": {"field": "x", "status": 1},
        "headers": {"Retry-After": "41"},
    }
    problem = problem_of(error_after(end))
    assert (problem.status, problem.kind, problem.headers) == (503, "engine-failed", {"Retry-After": "41"})
    assert problem.members == {"field": "x"}


@pytest.mark.parametrize("headers", [None, 7, [], {}, {"Retry-After": "soon"}, {"Retry-After": [1]}])
def test_headers_that_make_no_sense_do_not_cost_the_end(headers: object) -> None:
    end = stored_end(Interrupted())
    end["error"] = {"status": "x", "kind": "cancelled", "detail": "no", "members": {}, "headers": headers}
    assert problem_of(error_after(end)).headers == {}
