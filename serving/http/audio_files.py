"""A song's audio as an HTTP response: the whole file or the requested range, read while it is sent.

Independent of the routes.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from io import BytesIO

from flask import Response, request
from werkzeug.exceptions import PreconditionFailed
from werkzeug.http import dump_options_header
from werkzeug.wsgi import wrap_file

from inference.song import MIME_TYPES
from serving.http.problems import conflict, not_found
from serving.jobs.job import Job, SizedAudio

BYTE_RANGE = re.compile(r"(?=-?[0-9])([0-9]*)-([0-9]*)")


def named_track(job: Job, track: str, audio_format: str) -> Response:
    """One track of a finished job. Raises Problem if there is no such track, or none yet."""
    song = job.song
    if not job.finished:
        raise conflict(f"job {job.id} is {job.state}; its audio is available once it has succeeded", job_id=job.id)
    if song is None:
        raise not_found(f"job {job.id} ended as {job.state}; it has no audio", job_id=job.id)
    names = [f"{name}.{song.format}" for name in song.audio]
    name = f"{track}.{audio_format}"
    if name not in names:
        raise not_found(f"job {job.id} has no {name}; it has {', '.join(names)}", job_id=job.id, allowed=names)
    return _response(job, track, f"song-{job.id}-{name}")


def first_track(job: Job) -> Response:
    """The song's first track as a download; its job and seed are in the headers."""
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
    response.set_etag(etag := f"{job.id}-{track}")
    asked = {name: value for name, value in request.environ.items() if name not in ("HTTP_RANGE", "HTTP_IF_RANGE")}
    response.make_conditional(asked, accept_ranges=True)  # the client's copy counts before a range
    if response.status_code == HTTPStatus.PRECONDITION_FAILED:
        raise PreconditionFailed("the file is not the one that If-Match names")
    if response.status_code == HTTPStatus.OK and (wanted := _wanted_range(etag, size_bytes)):
        asked["HTTP_RANGE"] = wanted
        response.make_conditional(asked, accept_ranges=True, complete_length=size_bytes)
    return response


def _wanted_range(etag: str, size_bytes: int) -> str | None:
    """The requested range of bytes in werkzeug's form; None: the whole file.

    What RFC 9110 allows to ignore is ignored: other units, several ranges, malformed ranges. A conditional request
    (If-Range) gets a range only if its condition names this file.
    """
    condition = request.headers.get("If-Range")
    if request.method != "GET" or (condition is not None and condition.strip() != f'"{etag}"'):
        return None
    unit, _, ranges = request.headers.get("Range", "").partition("=")
    parts = [part.strip() for part in ranges.split(",") if part.strip()]
    match = BYTE_RANGE.fullmatch(parts[0]) if unit.strip().lower() == "bytes" and len(parts) == 1 else None
    if match is None:
        return None
    first, last = (_position(digits, size_bytes) for digits in match.groups())
    if match[1] and match[2] and last < first:
        return None
    return f"bytes={first if match[1] else ''}-{last if match[2] else ''}"


def _position(digits: str, size_bytes: int) -> int:
    """A number of bytes, of any number of digits, cut to the size of the file."""
    digits = digits.lstrip("0")
    return size_bytes if len(digits) > len(str(size_bytes)) else min(int(digits or 0), size_bytes)
