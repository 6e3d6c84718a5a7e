"""A song's audio as an HTTP response: whole, or the range of it that was asked for, read while it is sent.

It does not know which routes lead here.
"""

from __future__ import annotations

from io import BytesIO

from flask import Response, request
from werkzeug.http import dump_options_header
from werkzeug.wsgi import wrap_file

from inference.song import MIME_TYPES
from serving.job import Job, SizedAudio
from serving.problems import conflict, not_found


def named_track(job: Job, track: str, audio_format: str) -> Response:
    """One track of a finished job. Raises Problem where there is no such track, or none yet."""
    song = job.song
    if not job.finished:
        raise conflict(f"job {job.id} is {job.state}; its audio is here when it has succeeded", job_id=job.id)
    if song is None:
        raise not_found(f"job {job.id} was {job.state}; it has no audio", job_id=job.id)
    names = [f"{name}.{song.format}" for name in song.audio]
    name = f"{track}.{audio_format}"
    if name not in names:
        raise not_found(f"job {job.id} has no {name}; it has {', '.join(names)}", job_id=job.id, allowed=names)
    return _response(job, track, f"song-{job.id}-{name}")


def first_track(job: Job) -> Response:
    """The song's first track, as a file to keep; what there is to say of it is in the headers."""
    assert job.song, "no song"
    response = _response(job, next(iter(job.song.audio)), f"song-{job.id}.{job.song.format}", "attachment")
    response.headers["X-Job-Id"] = job.id
    response.headers["X-Seed"] = str(job.song.seed)
    return response


def _response(job: Job, track: str, download_name: str, disposition: str = "inline") -> Response:
    assert job.song, "no song"
    audio = job.song.audio
    content = audio.open(track) if isinstance(audio, SizedAudio) else BytesIO(audio[track])
    response = Response(
        wrap_file(request.environ, content), mimetype=MIME_TYPES[job.song.format], direct_passthrough=True
    )
    response.content_length = size_bytes = job.sizes_bytes[track]
    response.headers["Content-Disposition"] = dump_options_header(disposition, {"filename": download_name})
    response.set_etag(f"{job.id}-{track}")
    response.make_conditional(request, accept_ranges=True, complete_length=size_bytes)
    return response
