"""The JSON form of a job: what was asked for, how far it is, how it ended.

It does not know where the JSON lies, and writes no audio into it. A server of another version may have written it: what
it has beyond ours is passed over, and what it lacks has the default, where there is one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from inference.errors import StorageError, YueError
from inference.song import Progress, Reference, SectionSpan, Song, SongRequest
from serving.job import CANCELLED, FAILED, INTERRUPTED, SUCCEEDED, Job, SizedAudio, now
from serving.problems import Problem, problem_of, recorded

Json = dict[str, Any]
REFERENCE_PARTS = ("mix", "vocal", "instrumental")
JOB_FIELDS = ("id", "model", "request_id", "fingerprint", "wanted_model")
PROBLEM_FIELDS = ("status", "kind", "detail", "members", "headers")
Record = TypeVar("Record", SongRequest, Progress, SectionSpan)


class Malformed(StorageError):
    """What is written is no record of a job, and trying again will not make it one."""


@contextmanager
def well_formed(what: str) -> Iterator[None]:
    """Raises Malformed where the record that is read is not as it has to be."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"what is written of {what} is malformed: {error!r}", "unavailable") from error


@dataclass(frozen=True)
class End:
    """How a job ends, before it has."""

    state: str
    song: Song | None = None
    error: Exception | None = None
    finished_at: datetime = field(default_factory=now)

    def befall(self, job: Job) -> None:
        """Make it so."""
        job.song, job.error, job.finished_at, job.engine = self.song, self.error, self.finished_at, None
        job.request = without_audio(job.request)
        job.state = self.state


def succeeded(song: Song) -> End:
    """It was sung."""
    return End(SUCCEEDED, song=song)


def failed(error: Exception) -> End:
    """It was not. Whatever nobody foresaw becomes a problem here, so that it has one id in every answer."""
    foreseen = isinstance(error, YueError | Problem)
    return End(FAILED, error=error if foreseen else problem_of(error))


def cancelled(error: Exception) -> End:
    """Somebody did not want it any more."""
    return End(CANCELLED, error=error)


def interrupted() -> End:
    """Whoever sang it ended, again and again."""
    detail = "the servers that sang it ended before it was done, twice; send it again, as a new request"
    return End(INTERRUPTED, error=Problem(503, "interrupted", detail))


def unreadable() -> Problem:
    """Nobody can tell any more what was to be sung."""
    detail = "what was asked for cannot be read any more, so nothing was sung; send it again, as a new request"
    return Problem(500, "song-failed", detail)


def reference_lost() -> Problem:
    """A song is not sung in another style than it was asked for."""
    detail = "the reference audio is lost, so nothing was sung; send it again, as a new request"
    return Problem(500, "song-failed", detail)


def without_audio(request: SongRequest) -> SongRequest:
    """The request without the megabytes that nobody needs once it is sung."""
    return replace(request, reference=None)


def with_audio(request: SongRequest, parts: Mapping[str, bytes]) -> SongRequest:
    """The request whose reference has these files; none while it waits, as the store has them."""
    if not request.reference:
        return request
    audio: dict[str, Any] = {part: parts.get(part) for part in REFERENCE_PARTS}
    return replace(request, reference=replace(request.reference, **audio))


def reference_parts(request: SongRequest) -> dict[str, bytes]:
    """The reference's files, by their names."""
    given = {part: getattr(request.reference, part) for part in REFERENCE_PARTS} if request.reference else {}
    return {part: audio for part, audio in given.items() if audio is not None}


def ordered(job: Job) -> Json:
    """What was asked for: nothing of it changes. Of a deadline it has the seconds that are left, no moment."""
    request = _shallow(without_audio(job.request))
    if job.request.reference:
        window = {name: getattr(job.request.reference, name) for name in ("start_seconds", "end_seconds")}
        request["reference"] = {"parts": list(reference_parts(job.request)), **window}
    kept = {name: getattr(job, name) for name in (*JOB_FIELDS, "origin")}
    written = {"created_at": _text(job.created_at), "warnings": job.warnings, "seconds_left": seconds_left(job)}
    return {**kept, **written, "request": request}


@well_formed("what was asked for")
def read_ordered(record: Json) -> Job:
    """The job as it was when it came, without its reference audio."""
    given = dict(record["request"])
    reference = given.pop("reference", None)
    if reference:
        given["reference"] = Reference(start_seconds=reference["start_seconds"], end_seconds=reference["end_seconds"])
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    request = _known(SongRequest, given)
    kept = {name: record[name] for name in JOB_FIELDS} | {"origin": dict(record.get("origin", {}))}
    job = Job(request, warnings=tuple(record["warnings"]), created_at=_moment(record["created_at"]) or now(), **kept)
    read_deadline(job, record)
    return job


@well_formed("how it ended")
def illegible(job_id: str, end: Json | None = None) -> Job:
    """A job of which nobody can read what was asked for, only how it ended, if it has."""
    created_at = _moment(end["finished_at"]) if end else None
    return Job(SongRequest("", "", 0), "", id=job_id, created_at=created_at or now(), error=unreadable())


def progressed(job: Job) -> Json:
    """How far it is."""
    return {
        "state": job.state,
        "model": job.model,
        "started_at": _text(job.started_at),
        "attempts": job.attempts,
        "progress": asdict(job.progress) if job.progress else None,
        "seconds_left": seconds_left(job),
    }


@well_formed("how far it is")
def read_progressed(job: Job, record: Json) -> None:
    """Tell the job how far it is."""
    job.model, job.attempts = record["model"], record["attempts"]
    job.started_at = _moment(record["started_at"])
    job.progress = _known(Progress, record["progress"]) if record["progress"] else None
    read_deadline(job, record)
    job.state = record["state"]


@well_formed("its deadline")
def read_deadline(job: Job, record: Json) -> None:
    """Tell the job how many seconds are left until its deadline."""
    left = record.get("seconds_left")
    job.deadline = None if left is None else time.monotonic() + left


def ended(job: Job, end: End) -> Json:
    """How it ended; all that a view of it needs, but for the audio."""
    problem = problem_of(end.error) if end.error else None
    return {
        **progressed(job),
        "state": end.state,
        "finished_at": _text(end.finished_at),
        "cancel_requested": job.cancel_requested,
        "song": _song(end.song) if end.song else None,
        "error": problem and {name: getattr(problem, name) for name in PROBLEM_FIELDS},
    }


@well_formed("how it ended")
def read_ended(job: Job, record: Json, audio: SizedAudio) -> None:
    """Tell the job its end."""
    read_progressed(job, {**record, "state": job.state})
    job.cancel_requested = record["cancel_requested"]
    song = record["song"]
    if song:
        segments = tuple(_known(SectionSpan, span) for span in song["segments"])
        kept = {name: song[name] for name in ("format", "sample_rate", "duration_seconds", "seed", "timings")}
        job.song = Song(audio=audio, segments=segments, warnings=tuple(song["warnings"]), **kept)
    error = record["error"]
    job.error = recorded({name: error[name] for name in PROBLEM_FIELDS}) if error else None
    job.finished_at = _moment(record["finished_at"])
    job.state = record["state"]


def seconds_left(job: Job) -> float | None:
    """Until the job's deadline. Other servers are told seconds, for moments of this clock mean nothing to them."""
    return None if job.deadline is None else max(0.0, job.deadline - time.monotonic())


def packed(record: Json) -> bytes:
    """As it is written."""
    return json.dumps(record, ensure_ascii=False).encode()


def _song(song: Song) -> Json:
    kept = {each.name: getattr(song, each.name) for each in fields(song) if each.name not in ("audio", "segments")}
    return {
        **kept,
        "sizes_bytes": {name: len(audio) for name, audio in song.audio.items()},
        "segments": [asdict(span) for span in song.segments],
    }


def _shallow(request: SongRequest) -> Json:
    return {each.name: getattr(request, each.name) for each in fields(request)}


def _known(kind: type[Record], given: Json) -> Record:
    return kind(**{each.name: given[each.name] for each in fields(kind) if each.name in given})


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _moment(text: str | None) -> datetime | None:
    moment = datetime.fromisoformat(text) if text else None
    return moment.replace(tzinfo=UTC) if moment and not moment.tzinfo else moment
