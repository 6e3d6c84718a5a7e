"""How a job is shown: all that a client needs, and each track's audio once."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError

from inference.errors import UnknownModel
from inference.song import SectionSpan, Song, SongRequest
from serving.http import job_views
from serving.http.response_models import Health, JobListView
from serving.jobs.job import CANCELLED, SUCCEEDED, Job
from tests.support.fakes import LYRICS


def song_of(job: Job, **audio: bytes) -> Song:
    return Song(audio, "mp3", 44_100, 1.5, job.request.seed, (SectionSpan("verse", 0.0, 1.5),), {"stage1": 0.1}, ("b",))


def test_a_prediction_holds_the_audio_of_every_track_once() -> None:
    job = Job(SongRequest("pop", LYRICS, 3), "tiny", ("a", "b"))
    job.song, job.state = song_of(job, mix=b"both", vocal=b"voice"), SUCCEEDED
    prediction: Any = job_views.prediction(job)
    assert base64.b64decode(prediction["audio"]) == b"both"
    assert "audio" not in prediction["tracks"]["mix"]
    assert base64.b64decode(prediction["tracks"]["vocal"]["audio"]) == b"voice"
    assert prediction["tracks"]["vocal"]["url"] == f"/jobs/{job.id}/audio/vocal.mp3"
    assert prediction["tracks"]["vocal"]["bytes"] == 5
    assert prediction["segments"] == [{"tag": "verse", "start_seconds": 0.0, "end_seconds": 1.5}]
    assert prediction["warnings"] == ["a", "b"]
    assert (prediction["mime_type"], prediction["sample_rate"], prediction["seed"]) == ("audio/mpeg", 44_100, 3)
    assert "audio" not in json.dumps(job_views.job_view(job)["warnings"])
    assert "audio" not in job_views.job_view(job)


def test_a_job_that_is_not_done_shows_where_it_is() -> None:
    view = job_views.prediction(Job(SongRequest("pop", LYRICS, 1), "tiny"))
    assert view["status"] == "queued"
    assert "audio" not in view


def test_a_cancelled_job_shows_its_error() -> None:
    job = Job(SongRequest("pop", LYRICS, 1), "tiny", state=CANCELLED, error=UnknownModel("x", "y"))
    error: Any = job_views.job_view(job)["error"]
    assert error["status"] == 400


def test_an_answer_with_a_member_that_the_contract_lacks_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="more"):
        JobListView.of(jobs=[], next=None, more=1)
    with pytest.raises(AssertionError):
        Health.unchecked(state="healthy")


def test_long_lyrics_are_shortened_in_a_list_alone() -> None:
    job = Job(SongRequest("pop", "[verse]\n" + "la " * 200, 1), "tiny")
    page: Any = job_views.list_view([(job, None)], None)
    (listed,) = page["jobs"]
    shown: Any = job_views.job_view(job)
    assert len(listed["request"]["lyrics"]) == 200 and listed["request"]["lyrics"].endswith("…")
    assert shown["request"]["lyrics"] == job.request.lyrics
