"""How a job is shown: job in, JSON out.

It knows nothing of routes or requests.

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

A song that is not finished has the first entry only, with `status` "queued" or "running"; a queued one has `position`
and `expected_seconds` too, null where its server cannot tell. One that failed, was cancelled or was interrupted has
`error` too, a problem. The job's own view (`job_view`) is the same without any base64.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from inference.song import MIME_TYPES, Song
from serving.http.problems import problem_of
from serving.jobs.job import FINISHED, QUEUED, SUCCEEDED, Job
from serving.jobs.wait_estimates import WaitEstimate

LISTED_LYRICS = 200  # characters


def job_view(job: Job, wait_estimate: WaitEstimate | None = None) -> dict[str, object]:
    """A job as it is now, without its audio; while it is queued, with what it can expect, as far as that is known."""
    state = job.state  # read first: what it promises was set before it
    view: dict[str, object] = {
        "job_id": job.id,
        "status": state,
        "request_id": job.request_id,
        "model": job.model,
        "seed": job.request.seed,
        "warnings": list(dict.fromkeys((*job.warnings, *(job.song.warnings if job.song else ())))),
        "created_at": _timestamp(job.created_at),
        "started_at": _timestamp(job.started_at),
        "finished_at": _timestamp(job.finished_at),
        "progress": asdict(job.progress) if job.progress else None,
        "cancel_requested": job.cancel_requested,
        "request": _request_view(job),
    }
    if state == SUCCEEDED and job.song:
        return {**view, **_song_view(job, job.song)}
    if state == QUEUED:
        expected = wait_estimate.expected_seconds if wait_estimate else None
        seconds = None if expected is None else round(expected, 1)
        return {**view, "position": wait_estimate.position if wait_estimate else None, "expected_seconds": seconds}
    if state in FINISHED and job.error:
        return {**view, "error": problem_of(job.error).as_dict()}
    return view


def shortened(view: dict[str, object]) -> dict[str, object]:
    """A job's view for a list of many: of long lyrics only how they begin."""
    asked = view["request"]
    if not isinstance(asked, dict) or len(asked["lyrics"]) <= LISTED_LYRICS:
        return view
    return {**view, "request": {**asked, "lyrics": f"{asked['lyrics'][: LISTED_LYRICS - 1]}…"}}


def prediction(job: Job) -> dict[str, object]:
    """A job as it is now, with the audio if it is done."""
    view = job_view(job)
    if view["status"] != SUCCEEDED or not job.song:
        return view
    first, *others = job.song.audio
    tracks: Any = view["tracks"]
    for name in others:
        tracks[name]["audio"] = _base64(job.song.audio[name])
    return {**view, "audio": _base64(job.song.audio[first])}


def audio_path(job_id: str, track: str, audio_format: str) -> str:
    """Where one track of a job is served."""
    return f"/jobs/{job_id}/audio/{track}.{audio_format}"


def _request_view(job: Job) -> dict[str, object] | None:
    """What was asked for, without reference audio; None where that cannot be read any more."""
    if not job.request.genres:
        return None
    asked = {each.name: getattr(job.request, each.name) for each in fields(job.request)}
    how = {"model": job.wanted_model, "deadline_seconds": job.deadline_seconds, "reference": job.told_reference}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in {**asked, **how}.items()}


def _song_view(job: Job, song: Song) -> dict[str, object]:
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
    }


def _base64(audio: bytes) -> str:
    return base64.b64encode(audio).decode("ascii")


def _timestamp(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None
