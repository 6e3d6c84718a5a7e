"""How a job is shown: a job in, one of the answers of `serving/http/response_models.py` out.

Independent of routes and requests.

A prediction (`prediction`) of a finished song:

    job_id, status: "succeeded", seed, model, warnings, progress, cancel_requested, request_id, created_at, started_at,
                        finished_at
    request             what was asked for, with what was drawn or taken by default; of reference audio, names and sizes
    audio               the first track asked for, base64
    mime_type, format, sample_rate, duration_seconds
    tracks              track -> {"mime_type", "bytes", "url", "audio"}, in the order asked for;
                        the first has no "audio" of its own: it is the prediction's
    segments            [{"tag", "start_seconds", "end_seconds"}, …]
    timings             stage -> seconds

    stream_url          where the first track is streamed, unless some of its parts could not be stored

A song that is not finished has the first entry and `stream_url`, with `status` "queued" or "running"; a queued one has
`position` and `expected_seconds` too, null where its server cannot tell. One that failed, was cancelled or was
interrupted has `error` too, a problem. The job's own view (`job_view`) is the same without any base64.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from inference.audio.stream_encoding import STREAM_FORMATS
from inference.song import MIME_TYPES, Song
from serving.http.problems import problem_of
from serving.http.response_models import (
    AnyJob,
    JobListView,
    JobWithoutSong,
    ProblemView,
    SongPrediction,
    SongTooLarge,
    SucceededJob,
    UnfinishedJob,
)
from serving.jobs.job import FINISHED, QUEUED, SUCCEEDED, Job
from serving.jobs.wait_estimates import WaitEstimate

LISTED_LYRICS = 200  # characters
Json = dict[str, object]


def job_view(job: Job, wait_estimate: WaitEstimate | None = None, deleted: bool | None = None) -> Json:
    """A job as it is now, without its audio; while it is queued, with what it can expect, as far as that is known."""
    return _answer(job, wait_estimate, {} if deleted is None else {"deleted": deleted}).as_json()


def list_view(jobs: list[tuple[Job, WaitEstimate | None]], following: str | None) -> Json:
    """A page of jobs; of long lyrics only how they begin."""
    answers = [_answer(job, estimate, {"request": _request(job, LISTED_LYRICS)}) for job, estimate in jobs]
    return JobListView.of(jobs=answers, next=following).as_json()


def prediction(job: Job) -> Json:
    """A job as it is now, with the audio if it is done."""
    if job.state != SUCCEEDED or not job.song:
        return job_view(job)
    encoded = {name: base64.b64encode(audio).decode("ascii") for name, audio in job.song.audio.items()}
    first, *others = encoded
    song = _song(job, job.song)
    tracks = {**song["tracks"], **{name: {**song["tracks"][name], "audio": encoded[name]} for name in others}}
    return SongPrediction.of(**{**_common(job, SUCCEEDED), **song, "tracks": tracks, "audio": encoded[first]}).as_json()


def prediction_elsewhere(job: Job, omitted: str, places: Mapping[str, str]) -> Json:
    """A finished job whose audio is too large for the answer; `places` says where the first track can be read."""
    assert job.song, "no song"
    members = {**_common(job, SUCCEEDED), **_song(job, job.song), **places, "audio_omitted": omitted}
    return SongTooLarge.of(**members).as_json()


def audio_path(job_id: str, track: str, audio_format: str) -> str:
    """Where one track of a job is served."""
    return f"/jobs/{job_id}/audio/{track}.{audio_format}"


def stream_path(job: Job) -> str:
    """Where the first track of a job is streamed, in the song's format if a stream can have it."""
    audio_format = job.request.format if job.request.format in STREAM_FORMATS else STREAM_FORMATS[0]
    return f"/jobs/{job.id}/stream/{job.request.tracks[0]}.{audio_format}"


def _answer(job: Job, wait_estimate: WaitEstimate | None, more: Mapping[str, object]) -> AnyJob:
    state = job.state  # read first: what it promises was set before it
    common = {**_common(job, state), **more}
    if state == SUCCEEDED and job.song:
        return SucceededJob.of(**common, **_song(job, job.song))
    if state in FINISHED and job.error:
        return JobWithoutSong.of(**common, error=ProblemView.unchecked(**problem_of(job.error).as_dict()))
    if state == QUEUED:
        expected = wait_estimate.expected_seconds if wait_estimate else None
        seconds = None if expected is None else round(expected, 1)
        position = wait_estimate.position if wait_estimate else None
        common = {**common, "position": position, "expected_seconds": seconds}
    return UnfinishedJob.of(**common, stream_url=stream_path(job))


def _common(job: Job, state: str) -> Json:
    return {
        "job_id": job.id,
        "status": state,
        "request_id": job.request_id,
        "model": job.model,
        "seed": job.request.seed,
        "warnings": list(dict.fromkeys((*job.warnings, *(job.song.warnings if job.song else ())))),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "progress": asdict(job.progress) if job.progress else None,
        "cancel_requested": job.cancel_requested,
        "request": _request(job),
    }


def _request(job: Job, longest_lyrics: int | None = None) -> Json | None:
    """What was asked for, without reference audio; None where that cannot be read any more."""
    if not job.request.genres:
        return None
    asked = {each.name: getattr(job.request, each.name) for each in fields(job.request)}
    if longest_lyrics and len(job.request.lyrics) > longest_lyrics:
        asked["lyrics"] = f"{job.request.lyrics[: longest_lyrics - 1]}…"
    return {
        **asked,
        "model": job.wanted_model,
        "deadline_seconds": job.deadline_seconds,
        "reference": job.told_reference,
    }


def _song(job: Job, song: Song) -> dict[str, Any]:
    mime_type = MIME_TYPES[song.format]
    return {
        "mime_type": mime_type,
        "format": song.format,
        "sample_rate": song.sample_rate,
        "duration_seconds": song.duration_seconds,
        "tracks": {
            name: {"mime_type": mime_type, "bytes": size_bytes, "url": audio_path(job.id, name, song.format)}
            for name, size_bytes in job.sizes_bytes.items()
        },
        "segments": [asdict(span) for span in song.segments],
        "timings": dict(song.timings),
        **({"stream_url": stream_path(job)} if song.parts else {}),
    }
