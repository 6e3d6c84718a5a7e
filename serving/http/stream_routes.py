"""The routes of songs that are listened to while they are generated: the stream and the peaks of a track."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from functools import partial

from flask import Response, jsonify, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import dump_options_header, quote_etag

from inference.audio.stream_encoding import STREAM_FORMATS
from inference.song import MIME_TYPES
from serving.http.job_routes import UNBUFFERED, Route
from serving.http.peaks import PeakFinder
from serving.http.predictions import Pending
from serving.http.problems import Problem, no_wait_slot, not_found, problem_of
from serving.http.song_streams import SongStream, no_stream
from serving.http.wait_slots import WaitSlots, is_gone
from serving.jobs.job import Job
from serving.jobs.service import Jobs

log = logging.getLogger(__name__)

MOST_RANGE_BYTES = 16 << 20  # of one answer, which is held in memory: 11 minutes of MP3
BYTE_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{1,15})-([0-9]{0,15})\s*", re.IGNORECASE)


class StreamRoutes:
    """The views of streams."""

    def __init__(self, jobs: Jobs, wait_slots: WaitSlots) -> None:
        self._jobs, self._wait_slots = jobs, wait_slots
        self._finder = PeakFinder(jobs)

    def table(self) -> list[Route]:
        """The paths and methods of the views."""
        either = ("GET", "POST")
        return [
            ("/jobs/<job_id>/stream/<track>.<audio_format>", either, self.job_stream),
            ("/jobs/<job_id>/peaks/<track>.json", either, self.job_peaks),
        ]

    def job_stream(self, job_id: str, track: str, audio_format: str) -> Response:
        """One track of a song, while it is generated or after."""
        job = self._jobs.get(job_id)
        self._check(job, track, audio_format)
        if request.method == "HEAD":
            return self._describe(Response(), job, track, audio_format)
        if not self._wait_slots.take():
            raise no_wait_slot()
        wanted = _wanted_range(etag_of(job, track, audio_format))
        response = self._opened(
            job, track, audio_format, lambda stream: _range(stream, *wanted) if wanted else _whole(stream)
        )
        assert response, "it waits for as long as it takes"
        return response

    def job_peaks(self, job_id: str, track: str) -> Response:
        """The shape of one track, as far as it is generated."""
        job = self._jobs.get(job_id)
        if track not in job.request.tracks:
            allowed = list(job.request.tracks)
            raise not_found(f"job {job.id} has no track {track}; it has {', '.join(allowed)}", allowed=allowed)
        if job.error:
            raise not_found(f"job {job.id} ended as {job.state}; it has no audio", job_id=job.id)
        with self._wait_slots.slot() as may_wait:  # for the storage, and for others who ask
            if not may_wait:
                raise no_wait_slot()
            return jsonify(self._finder.peaks(job, track).model_dump(mode="json"))

    def predicted(self, pending: Pending, audio_format: str, began: float) -> Response | None:
        """The stream of the song that a request waits for; None if it has none, or does not begin in time.

        If its client disconnects, the song is cancelled, as with every request that waits. Raises Problem.
        """
        job, end = pending.job, began + pending.wait_seconds
        if (job.song and not job.song.parts) or not self._wait_slots.take():
            return None
        track = job.request.tracks[0]
        try:
            response = self._opened(job, track, audio_format, lambda stream: _whole(stream, end))
        except Problem:
            self._cancel_if_unwanted(pending, is_gone(request.environ))
            raise
        if response:
            response.headers["X-Job-Id"] = job.id
            response.headers["X-Seed"] = str(job.request.seed)
            response.call_on_close(lambda: self._cancel_if_unwanted(pending, not self._jobs.draining))
        return response

    def _opened(
        self, job: Job, track: str, audio_format: str, respond: Callable[[SongStream], Response | None]
    ) -> Response | None:
        """What `respond` makes of a new stream. It has taken a wait slot, which is given back with the response."""
        stream = SongStream(self._jobs, job, track, audio_format, partial(is_gone, request.environ))
        response = None
        try:
            self._jobs.listen(job)
            response = respond(stream)
        finally:
            if response is None:
                self._close(stream)
        if response:
            response.call_on_close(partial(self._close, stream))
            self._describe(response, job, track, audio_format)
        return response

    def _close(self, stream: SongStream) -> None:
        stream.close()
        self._wait_slots.give_back()

    def _cancel_if_unwanted(self, pending: Pending, client_is_gone: bool) -> None:
        if client_is_gone and not pending.goes_on and not pending.job.finished:
            log.info("the client has disconnected")
            self._jobs.cancel(pending.job.id)

    def _check(self, job: Job, track: str, audio_format: str) -> None:
        """Raise Problem if there is no such stream."""
        names = [f"{name}.{each}" for name in job.request.tracks for each in STREAM_FORMATS]
        if f"{track}.{audio_format}" not in names:
            detail = f"job {job.id} has no stream {track}.{audio_format}; it has {', '.join(names)}"
            raise not_found(detail, job_id=job.id, allowed=names)
        if job.error:
            raise problem_of(job.error).having(job_id=job.id)
        if job.finished and not (job.song and job.song.parts):
            raise no_stream(job)

    def _describe(self, response: Response, job: Job, track: str, audio_format: str) -> Response:
        """The response with the headers of the stream."""
        name = f"song-{job.id}-{track}.{audio_format}"
        response.mimetype = MIME_TYPES[audio_format]
        response.headers.update(UNBUFFERED)
        response.headers["Accept-Ranges"] = "bytes"
        response.headers["ETag"] = quote_etag(etag_of(job, track, audio_format))
        response.headers["Content-Disposition"] = dump_options_header("inline", {"filename": name})
        return response


def etag_of(job: Job, track: str, audio_format: str) -> str:
    """The ETag of a stream, without quotes."""
    return f"{job.id}-{track}-{audio_format}-stream"


def _whole(stream: SongStream, end: float = math.inf) -> Response | None:
    """The stream from its first byte to its end; None if it has not begun by then."""
    return Response(iter(stream)) if stream.begin(end) else None


def _range(stream: SongStream, first: int, last: int | None) -> Response:
    """The bytes that are there by now, from `first` to `last` at most. Raises RequestedRangeNotSatisfiable."""
    content = stream.from_offset(first, MOST_RANGE_BYTES if last is None else min(last + 1 - first, MOST_RANGE_BYTES))
    if not content:
        raise RequestedRangeNotSatisfiable(length=stream.n_bytes)
    response = Response(content, status=206)
    total = stream.n_bytes if stream.ended else "*"
    response.headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{total}"
    return response


def _wanted_range(etag: str) -> tuple[int, int | None] | None:
    """The first and the last byte of the requested range; None: the whole stream, as for the range `0-`.

    What RFC 9110 allows to ignore is ignored: other units, several ranges, ranges from the end, malformed ranges. A
    conditional request (If-Range) gets a range only if its condition names this stream.
    """
    condition = request.headers.get("If-Range")
    match = BYTE_RANGE.fullmatch(request.headers.get("Range", ""))
    if request.method != "GET" or match is None or (condition is not None and condition.strip() != f'"{etag}"'):
        return None
    first, last = int(match[1]), int(match[2]) if match[2] else None
    whole, reverse = first == 0 and last is None, last is not None and last < first
    return None if whole or reverse else (first, last)
