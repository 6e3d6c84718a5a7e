"""The JSON form of a job: its request, its progress, its end.

It holds no audio; `serving/jobs/schema.py` is its schema. A server of another version may have written it: unknown
fields are ignored, and missing ones have their default.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime

from inference.errors import InvalidField, YueError
from inference.song import Progress, SectionSpan, Song, SongRequest
from serving.jobs.errors import (
    EndUnreadable,
    Interrupted,
    InvalidFields,
    JobError,
    Unforeseen,
    Unreadable,
    described,
)
from serving.jobs.job import CANCELLED, FAILED, INTERRUPTED, SUCCEEDED, Job, SizedAudio, next_moment
from serving.jobs.schema import (
    REFERENCE_PARTS,
    Json,
    Malformed,
    StoredEnd,
    StoredError,
    StoredJob,
    StoredProgress,
    StoredReference,
    StoredSpan,
    StoredSteps,
    well_formed,
)
from serving.jobs.song_fields import SongFields, read_fields
from storage import StorageError

JOB_FIELDS = ("id", "model", "request_id", "fingerprint", "wanted_model", "origin", "deadline_seconds")
ERROR_FIELDS = ("kind", "detail", "fields", "retry_seconds")
STORED_SONG_FIELDS = tuple(each.name for each in fields(SongRequest) if each.name != "reference")
TOLD_PARTS = {"mix": "audio", "vocal": "vocal", "instrumental": "instrumental"}  # by their names in a request
NOTHING = SongRequest("", "", 0)  # in place of a request that cannot be read


@dataclass(frozen=True)
class End:
    """The end of a job, before it is written."""

    state: str
    song: Song | None = None
    error: Exception | None = None
    finished_at: datetime = field(default_factory=next_moment)

    def apply_to(self, job: Job) -> None:
        """Give the job this end."""
        job.song, job.error, job.finished_at, job.engine = self.song, self.error, self.finished_at, None
        job.request = without_audio(job.request)
        job.state = self.state


def succeeded(song: Song) -> End:
    """The song was generated."""
    return End(SUCCEEDED, song=song)


def failed(error: Exception) -> End:
    """The job failed. An unforeseen error is logged here, so that every answer has the same id for it."""
    foreseen = isinstance(error, YueError | StorageError | JobError)
    return End(FAILED, error=error if foreseen else Unforeseen(error))


def cancelled(error: Exception) -> End:
    """The job was cancelled."""
    return End(CANCELLED, error=error)


def interrupted() -> End:
    """The servers that ran the job ended, again and again."""
    return End(INTERRUPTED, error=Interrupted())


def broken_end(reason: Exception) -> StoredEnd:
    """The end of a job whose record of it cannot be read."""
    return StoredEnd(state="failed", error=StoredError(**_error(EndUnreadable(str(reason)))))


def without_audio(request: SongRequest) -> SongRequest:
    """The request without its megabytes of audio, which are not needed after the end."""
    return replace(request, reference=None)


def with_audio(request: SongRequest, parts: Mapping[str, bytes]) -> SongRequest:
    """The request with these files as its reference; without any while the job waits, as the store has them."""
    if not request.reference:
        return request
    mix, vocal, instrumental = map(parts.get, REFERENCE_PARTS)
    reference = replace(request.reference, mix=mix, vocal=vocal, instrumental=instrumental)
    return replace(request, reference=reference)


def reference_parts(request: SongRequest) -> dict[str, bytes]:
    """The reference's files, by their names."""
    given = {part: getattr(request.reference, part) for part in REFERENCE_PARTS} if request.reference else {}
    return {part: audio for part, audio in given.items() if audio is not None}


def told_reference(job: Job) -> Json | None:
    """The reference audio as answers show it: for each file its name, if it has one, and its stored size."""
    given, told = job.request.reference, dict(job.told_reference or {})
    if given is None:
        return told or None
    sizes = {TOLD_PARTS[part]: len(audio) for part, audio in reference_parts(job.request).items()}
    files = {part: {"name": None, **told.get(part, {}), "bytes": size_bytes} for part, size_bytes in sizes.items()}
    return {"start_seconds": given.start_seconds, "end_seconds": given.end_seconds, **told, **files}


def ordered(job: Job) -> Json:
    """The record of the request, which never changes. A deadline is stored as the seconds that are left."""
    request = _shallow(without_audio(job.request))
    if job.request.reference:
        window = {name: getattr(job.request.reference, name) for name in ("start_seconds", "end_seconds")}
        request["reference"] = {"parts": list(reference_parts(job.request)), **window}
    kept = {name: getattr(job, name) for name in JOB_FIELDS}
    written = {"created_at": _text(job.created_at), "warnings": job.warnings, "seconds_left": seconds_left(job)}
    return {**kept, **written, "told_reference": told_reference(job), "request": request}


@well_formed("its request, in job.json,")
def read_ordered(job_id: str, record: Json) -> Job:
    """The job as it was when it arrived, without its reference audio. Raises Malformed.

    If no client could have sent its song, the job has the reason as its `error`.
    """
    stored = StoredJob.model_validate(record)
    if stored.id != job_id:
        raise ValueError("another job's record")
    kept = {name: getattr(stored, name) for name in (*JOB_FIELDS, "warnings", "created_at")}
    job = Job(NOTHING, told_reference=stored.told_reference.told() if stored.told_reference else None, **kept)
    _read_deadline(job, stored.seconds_left)
    try:
        job.request = _song_request(stored.request)
        reference = read_reference(record)
        if reference:
            job.request = replace(job.request, reference=reference.read({}))
    except (Malformed, JobError) as error:
        job.request, job.error = NOTHING, Unreadable(str(error))
    return job


@well_formed("its reference audio, in job.json,")
def read_reference(record: Json) -> StoredReference | None:
    """The reference audio of the request. Raises Malformed."""
    reference = record["request"].get("reference")
    return StoredReference.model_validate(reference) if reference else None


def unreadable_job(job_id: str, reason: Exception) -> Job:
    """A job whose request cannot be read."""
    return Job(NOTHING, "", id=job_id, error=Unreadable(str(reason)))


def progressed(job: Job) -> Json:
    """The record of a job's progress."""
    return {
        "state": job.state,
        "model": job.model,
        "started_at": _text(job.started_at),
        "attempts": job.attempts,
        "progress": asdict(job.progress) if job.progress else None,
        "seconds_left": seconds_left(job),
        "sections": [asdict(span) for span in job.sections],
    }


@well_formed("its progress, in progress.json,")
def read_progressed(job: Job, record: Json) -> None:
    """Update the job from the record of its progress. Raises Malformed."""
    stored = StoredProgress.model_validate(record)
    job.model, job.attempts, job.started_at = stored.model, stored.attempts, stored.started_at
    job.progress = _steps(stored.progress)
    job.sections = _spans(stored.sections)
    _read_deadline(job, stored.seconds_left)
    job.state = stored.state


@well_formed("its deadline")
def read_deadline(job: Job, record: Json) -> None:
    """Update the job's deadline from the record of its progress. Raises Malformed."""
    _read_deadline(job, StoredProgress.model_validate(record).seconds_left)


def ended(job: Job, end: End) -> Json:
    """The record of a job's end: all that its view needs except the audio."""
    return {
        **progressed(job),
        "state": end.state,
        "finished_at": _text(end.finished_at),
        "cancel_requested": job.cancel_requested,
        "song": _song(end.song) if end.song else None,
        "error": _error(described(end.error)) if end.error else None,
    }


@well_formed("its end, in end.json,")
def read_end(record: Json) -> StoredEnd:
    """The end of a job. Raises Malformed."""
    return StoredEnd.model_validate(record)


def apply_to(job: Job, end: StoredEnd, audio: SizedAudio) -> None:
    """Update the job from the record of its end."""
    job.attempts, job.started_at, job.finished_at = end.attempts, end.started_at, end.finished_at
    job.model, job.progress = job.model if end.model is None else end.model, _steps(end.progress)
    job.cancel_requested = end.cancel_requested
    if end.song:
        names = ("format", "sample_rate", "duration_seconds", "seed", "timings", "warnings", "parts")
        kept = {name: getattr(end.song, name) for name in names}
        job.song = Song(audio=audio, segments=_spans(end.song.segments), **kept)
    job.error = end.error.read() if end.error else None
    job.state = end.state


def seconds_left(job: Job) -> float | None:
    """The seconds until the job's deadline. They are stored, since no other process shares this clock."""
    return None if job.deadline is None else max(0.0, job.deadline - time.monotonic())


def packed(record: Json) -> bytes:
    """The bytes of the record."""
    return json.dumps(record, ensure_ascii=False).encode()


def _song_request(given: object) -> SongRequest:
    """The requested song, checked against the ranges of a request. Raises InvalidFields."""
    if not isinstance(given, Mapping):
        raise InvalidFields([InvalidField("request", given, "a JSON object")])
    known = {name: value for name, value in given.items() if name in STORED_SONG_FIELDS and value is not None}
    wanted = read_fields(SongFields, known)
    if wanted.seed is None or wanted.seed < 0:
        raise InvalidFields([InvalidField("seed", known.get("seed"), "a whole number from 0")])
    asked = {name: value for name in STORED_SONG_FIELDS if (value := getattr(wanted, name)) is not None}
    values: Json = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    return SongRequest(**values)


def _song(song: Song) -> Json:
    kept = {each.name: getattr(song, each.name) for each in fields(song) if each.name not in ("audio", "segments")}
    return {
        **kept,
        "sizes_bytes": {name: len(audio) for name, audio in song.audio.items()},
        "segments": [asdict(span) for span in song.segments],
    }


def _error(error: JobError) -> Json:
    return {name: getattr(error, name) for name in ERROR_FIELDS}


def _shallow(request: SongRequest) -> Json:
    return {each.name: getattr(request, each.name) for each in fields(request)}


def _spans(stored: Sequence[StoredSpan]) -> tuple[SectionSpan, ...]:
    return tuple(SectionSpan(**dict(span)) for span in stored)


def _steps(stored: StoredSteps | None) -> Progress | None:
    return Progress(**dict(stored)) if stored else None


def _read_deadline(job: Job, left: float | None) -> None:
    job.deadline = None if left is None else time.monotonic() + left


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
