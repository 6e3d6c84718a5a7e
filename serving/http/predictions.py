"""Predictions: one response for the outcomes of all instances, within the size limit of responses.

Independent of routes, and of how requests wait for jobs.

If audio would make the response too large, a prediction comes without it and says how to get it:

    audio_uri       the first track's address in the bucket
    url             an address that anyone may read for SIGNED_SECONDS, if the bucket's credentials can sign one
    audio_omitted   one sentence: why, and how to fetch the tracks in pieces
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from flask import Response, jsonify, request

from inference.errors import InvalidField
from inference.song import MIME_TYPES, SongRequest
from inference.text import lyrics, prompt
from inference.vocabulary import TOKENS_PER_SECOND
from serving.http import audio_files, job_views
from serving.http.problems import Problem, invalid, problem_of
from serving.http.request_models import JobOperation
from serving.http.response_models import RefusedView, SongPiece
from serving.jobs.errors import JobError
from serving.jobs.job import SUCCEEDED, Job, SizedAudio
from serving.jobs.listing import Page
from serving.jobs.service import Jobs
from storage import StorageError

SIGNED_SECONDS = 3_600
PIECE_OVERHEAD_BYTES = 2_000  # of the prediction of a piece, without its base64
AUDIO_BYTES_PER_SECOND = {"mp3": 24_000, "wav": 88_200, "flac": 40_000, "ogg": 12_000}  # about; of one track
SURELY = 0.5  # of the expected size: sections may end early, but hardly all of them by half


@dataclass(frozen=True)
class Pending:
    """A song that an instance of a request waits for.

    `goes_on` is true if it continues after the client disconnects; `piece` is the requested part of its audio; `stream`
    is true if the client listens while it is generated.
    """

    job: Job
    wait_seconds: float
    goes_on: bool = True
    piece: JobOperation | None = None
    stream: bool = False


Outcome = Pending | dict[str, object] | Problem  # of an instance that was started


class Answers:
    """Turns outcomes into responses. `limit_bytes` is the largest JSON; None: any."""

    def __init__(self, jobs: Jobs, limit_bytes: int | None, is_bucket: bool) -> None:
        self._jobs, self._limit_bytes, self._is_bucket = jobs, limit_bytes, is_bucket

    def job_view(self, job: Job, deleted: bool | None = None) -> dict[str, object]:
        """A job as it is now, without its audio; after a deletion request, `deleted` says if it is gone."""
        return job_views.job_view(job, self._jobs.wait_estimates().get(job.id), deleted)

    def job_list(self, page: Page) -> dict[str, object]:
        """A page of jobs."""
        estimates = self._jobs.wait_estimates()
        return job_views.list_view([(job, estimates.get(job.id)) for job in page.jobs], page.following)

    def predictions(self, outcomes: Sequence[Outcome]) -> Response:
        """One prediction for each instance, in order. Raises Problem if all of them failed."""
        each_bytes = self._limit_bytes and self._limit_bytes // len(outcomes)
        answers = [self._placed(outcome, index, each_bytes) for index, outcome in enumerate(outcomes)]
        return _predictions_response(answers)

    def audio(self, job: Job) -> Response:
        """The song's first track as a file; its job and seed are in the headers. Raises Problem."""
        if job.error:
            raise problem_of(job.error).having(job_id=job.id)
        if job.state != SUCCEEDED or job.song is None:
            response = jsonify(self.job_view(job))
            response.status_code = 202
            response.headers["Location"] = f"/jobs/{job.id}"
            return response
        track = next(iter(job.song.audio))
        if self._limit_bytes is not None and job.sizes_bytes[track] > self._limit_bytes:
            members = {"job_id": job.id, **self._elsewhere(job)}
            raise Problem(400, "response-too-large", self._omitted(job), members)
        return audio_files.first_track(job)

    def foresee(self, song: SongRequest, can_be_fetched: bool, instances: int) -> tuple[str, ...]:
        """The warnings about the expected size of the song, one of so many instances.

        Raises Problem if its client could hardly ever receive it.
        """
        if self._limit_bytes is None or self._is_bucket:
            return ()
        expected, limit = expected_bytes(song), self._limit_bytes // instances
        if expected <= limit:
            return ()
        told = f"the audio is expected to take {expected} bytes as base64, and its answer may take {limit}"
        if expected * SURELY > limit and not can_be_fetched:
            detail = (
                f"{told} (YUE_MAX_RESPONSE_BYTES); ask for fewer segments or tracks or for mp3, or send request_id or "
                "wait_seconds 0, which means that you fetch the song in pieces: operation result with track and offset"
            )
            raise Problem(400, "response-too-large", detail, {"expected": expected, "allowed": limit})
        return (f"{told}; if so, it comes without audio: fetch it by operation result with track and offset",)

    def _placed(self, outcome: Outcome, index: int, limit_bytes: int | None) -> dict[str, object] | Problem:
        answer = self._answer(outcome, limit_bytes)
        return answer.having(instance=f"{request.path}#/instances/{index}") if isinstance(answer, Problem) else answer

    def _answer(self, outcome: Outcome, limit_bytes: int | None) -> dict[str, object] | Problem:
        if not isinstance(outcome, Pending):
            return outcome
        job = outcome.job
        try:
            if job.error:
                return problem_of(job.error).having(job_id=job.id)
            if job.state != SUCCEEDED:
                return self.job_view(job)
            return self._piece(job, outcome.piece, limit_bytes) if outcome.piece else self._whole(job, limit_bytes)
        except (StorageError, JobError, Problem) as error:
            return problem_of(error).having(job_id=job.id)

    def _whole(self, job: Job, limit_bytes: int | None) -> dict[str, object]:
        view = self.job_view(job)
        if limit_bytes is not None:
            audio_bytes = sum(_base64_bytes(size) for size in job.sizes_bytes.values())
            if len(json.dumps(view)) + audio_bytes + 64 * len(job.sizes_bytes) > limit_bytes:
                return job_views.prediction_elsewhere(job, self._omitted(job), self._elsewhere(job))
        return job_views.prediction(job)

    def _elsewhere(self, job: Job) -> dict[str, str]:
        """Other addresses of the first track."""
        stored = self._jobs.get(job.id).song
        if stored is None or not isinstance(stored.audio, SizedAudio):
            return {}
        track = next(iter(stored.audio))
        places = {"audio_uri": stored.audio.uri(track), "url": stored.audio.sign(track, SIGNED_SECONDS)}
        return {name: place for name, place in places.items() if place}

    def _omitted(self, job: Job) -> str:
        track, size_bytes = next(iter(job.sizes_bytes.items()))
        return (
            f"the answer would be larger than {self._limit_bytes} bytes (YUE_MAX_RESPONSE_BYTES); fetch the "
            f'{size_bytes} bytes of {track} in pieces: {{"job_id": "{job.id}", "operation": "result", '
            f'"track": "{track}", "offset": 0}}, then from each next_offset on'
        )

    def _piece(self, job: Job, asked: JobOperation, limit_bytes: int | None) -> dict[str, object]:
        """A part of a track: as much as was requested and as fits."""
        assert asked.track
        sizes, offset = job.sizes_bytes, asked.offset or 0
        if asked.track not in sizes:
            raise invalid([InvalidField("track", asked.track, ", ".join(sizes))])
        total = sizes[asked.track]
        if offset > total:
            raise invalid([InvalidField("offset", offset, f"a whole number of bytes from 0 to {total}")])
        room = total if limit_bytes is None else max(3, (limit_bytes - PIECE_OVERHEAD_BYTES) // 4 * 3)
        content = _read(job, asked.track, offset, min(asked.length or total, room))
        after = offset + len(content)
        assert job.song, "no song"
        return SongPiece.of(
            job_id=job.id,
            status=job.state,
            track=asked.track,
            mime_type=MIME_TYPES[job.song.format],
            bytes=total,
            offset=offset,
            length=len(content),
            next_offset=after if after < total else None,
            audio=base64.b64encode(content).decode("ascii"),
        ).as_json()


def expected_bytes(song: SongRequest) -> int:
    """The approximate bytes of base64 of a song that uses up the budgets of its sections."""
    sections = prompt.sections_generated(song.segments, len(lyrics.parse(song.lyrics).sections))
    seconds = sections * song.max_new_tokens / TOKENS_PER_SECOND
    return _base64_bytes(int(seconds * AUDIO_BYTES_PER_SECOND[song.format])) * len(song.tracks)


def _read(job: Job, track: str, offset: int, length: int) -> bytes:
    """A part of a track. Raises StorageError."""
    assert job.song
    audio = job.song.audio
    try:
        with audio.open(track) if isinstance(audio, SizedAudio) else BytesIO(audio[track]) as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise StorageError(f"{track} of job {job.id} cannot be read: {error}", "unavailable") from error


def _base64_bytes(size_bytes: int) -> int:
    return -(-size_bytes // 3) * 4


def _refused(problem: Problem) -> dict[str, object]:
    return RefusedView.unchecked(error=problem.as_dict()).as_json()


def _predictions_response(answers: Sequence[Mapping[str, Any] | Problem]) -> Response:
    problems = [answer for answer in answers if isinstance(answer, Problem)]
    if len(problems) < len(answers):
        return jsonify(predictions=[_refused(a) if isinstance(a, Problem) else a for a in answers])
    if len(problems) == 1:
        raise problems[0]
    statuses = {problem.status for problem in problems}
    worst = max(statuses)
    status = worst if len(statuses) == 1 or worst >= 500 else 400
    headers = {name: value for problem in problems for name, value in problem.headers.items()}
    detail = f"all {len(problems)} instances failed"
    members = {"errors": [problem.as_dict() for problem in problems]}
    raise Problem(status, "all-instances-failed", detail, members, headers)
