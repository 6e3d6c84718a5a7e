"""The schema of the files in a job store: JSON in, checked fields out, with the same ranges as a request's.

Independent of where the files are. Unknown fields are ignored: a newer server wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import from_json

from inference.audio.reading import check_reference
from inference.errors import InvalidField
from inference.song import MIME_TYPES, TRACK_NAMES, Reference
from serving.jobs.errors import JobError
from serving.jobs.layout import ID
from serving.jobs.song_fields import LARGEST_SEED, REQUEST_ID_PATTERN
from storage import StorageError

Json = dict[str, Any]
REFERENCE_PARTS = ("mix", "vocal", "instrumental")
RESERVED_NAMES = ("type", "title", "status", "detail")  # which no field of an error may have
LONGEST_RETRY_SECONDS = 86_400


class Malformed(StorageError):
    """The file is not a record of a job, and reading it again will not make it one."""


@contextmanager
def well_formed(what: str) -> Iterator[None]:
    """Raise Malformed if the record does not fit its schema. Its values are private, so they are not named."""
    try:
        yield
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)]
        raise Malformed(f"the record of {what} is malformed: {'; '.join(mistakes)}", "unavailable") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"the record of {what} is malformed: {type(error).__name__}", "unavailable") from error


def parsed(content: bytes) -> Json:
    """A file's JSON object, all of which can be written again. Raises ValueError, which repeats none of it."""
    try:
        record = from_json(content, allow_inf_nan=False)  # unlike Python's own it refuses deep nesting, lone surrogates
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    try:
        json.dumps(record, allow_nan=False)
    except ValueError as error:
        raise ValueError("holds a number that is too large") from error  # 1e999 is read as infinite
    return record


def _in_utc(moment: datetime) -> datetime:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not 1970 <= moment.year < 5000:
        raise ValueError("not a year in which songs are generated")
    return moment


def _or(default: object) -> WrapValidator:
    """Replace a malformed detail by its default: it does not cost a job its song or its end."""

    def read(value: object, handler: Callable[[object], object]) -> object:
        try:
            return handler(value)
        except ValidationError:
            return default

    return WrapValidator(read)


Natural = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=0)]
Pause = Annotated[float, Field(ge=0, le=LONGEST_RETRY_SECONDS)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]
TrackName = Annotated[str, Field(pattern=f"^({'|'.join(TRACK_NAMES)})$")]
JobId = Annotated[str, Field(pattern=f"^{ID.pattern}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=())


class StoredKey(_Record):
    """The job that a request id belongs to."""

    job_id: JobId
    fingerprint: str


class StoredReference(_Record):
    """The files of a job's reference audio, and the part of them that is used."""

    parts: list[str] = Field(min_length=1)
    start_seconds: float
    end_seconds: float

    @model_validator(mode="after")
    def _can_be_used(self) -> StoredReference:
        if not set(self.parts) <= set(REFERENCE_PARTS):
            raise ValueError(f"parts: allowed: {', '.join(REFERENCE_PARTS)}")
        try:
            check_reference(self.read(dict.fromkeys(self.parts, b"")))
        except InvalidField as error:
            raise ValueError(error.without_value) from error
        return self

    def read(self, parts: Mapping[str, bytes]) -> Reference:
        """The reference with its audio."""
        return Reference(**parts, start_seconds=self.start_seconds, end_seconds=self.end_seconds)


class ToldFile(_Record):
    """A file of reference audio, as answers show it."""

    name: str | None = None
    bytes: Natural | None = None


class ToldReference(_Record):
    """Reference audio, as answers show it."""

    audio: ToldFile | None = None
    vocal: ToldFile | None = None
    instrumental: ToldFile | None = None
    start_seconds: Number = 0.0
    end_seconds: Number | None = None

    def told(self) -> Json:
        """As JSON: the span, and the files that there are."""
        files = self.model_dump(include={"audio", "vocal", "instrumental"}, exclude_unset=True)
        span = {"start_seconds": self.start_seconds, "end_seconds": self.end_seconds}
        return {**span, **{name: file for name, file in files.items() if file is not None}}


class StoredJob(_Record):
    """A request. Its `request` field is checked separately: a job whose song is invalid is still a job."""

    id: JobId
    model: str
    request_id: Annotated[str, Field(pattern=f"^{REQUEST_ID_PATTERN}$")] | None = None
    fingerprint: str
    wanted_model: str | None = None
    origin: dict[str, str | bool | int | float | None] = {}
    created_at: Moment
    warnings: tuple[str, ...]
    seconds_left: Number | None = None
    deadline_seconds: Number | None = None
    told_reference: ToldReference | None = None
    request: Any = None


class StoredSteps(_Record):
    """The Progress of a song."""

    stage: str
    section: Natural = 0
    sections: Natural = 0
    tokens: Natural = 0
    rows: Natural = 0
    frames: Natural = 0
    fraction: float = Field(0.0, ge=0, le=1)
    seconds_left: Number | None = None
    playable_seconds: Annotated[Number, _or(0.0)] = 0.0


class StoredSpan(_Record):
    """A SectionSpan."""

    tag: str
    start_seconds: Number
    end_seconds: Number


class StoredProgress(_Record):
    """The progress of an unfinished job."""

    state: Literal["queued", "running"]
    model: str
    started_at: Annotated[Moment | None, _or(None)] = None
    attempts: Annotated[Natural, _or(0)] = 0
    progress: Annotated[StoredSteps | None, _or(None)] = None
    seconds_left: Number | None = None
    sections: Annotated[tuple[StoredSpan, ...], _or(())] = ()


class StoredSong(_Record):
    """A finished song without its audio."""

    format: str = Field(pattern=f"^({'|'.join(MIME_TYPES)})$")
    sample_rate: int = Field(ge=1)
    duration_seconds: Number
    seed: int = Field(ge=0, le=LARGEST_SEED)
    timings: Annotated[dict[str, Number], _or({})] = {}
    warnings: Annotated[tuple[str, ...], _or(())] = ()
    sizes_bytes: dict[TrackName, Natural] = Field(min_length=1)
    segments: Annotated[tuple[StoredSpan, ...], _or(())] = ()
    parts: Annotated[Natural, _or(0)] = 0


class StoredError(_Record):
    """A JobError. Earlier servers called `fields` members, and wrote `retry_seconds` as an HTTP header."""

    kind: str
    detail: str
    fields: dict[str, Any] = Field({}, validation_alias=AliasChoices("fields", "members"))
    retry_seconds: Annotated[Pause | None, _or(None)] = Field(
        None, validation_alias=AliasChoices("retry_seconds", AliasPath("headers", "Retry-After"))
    )

    def read(self) -> JobError:
        """The error itself."""
        fields = {name: value for name, value in self.fields.items() if name not in RESERVED_NAMES}
        return JobError(self.kind, self.detail, fields, self.retry_seconds)


class StoredEnd(_Record):
    """The end of a job. `claim` and `replica` say who ended it, `bytes` is the size of its audio."""

    state: Literal["succeeded", "failed", "cancelled", "interrupted"]
    model: Annotated[str | None, _or(None)] = None
    started_at: Annotated[Moment | None, _or(None)] = None
    finished_at: Annotated[Moment | None, _or(None)] = None
    attempts: Annotated[Natural, _or(0)] = 0
    progress: Annotated[StoredSteps | None, _or(None)] = None
    cancel_requested: Annotated[bool, _or(False)] = False
    song: StoredSong | None = None
    error: StoredError | None = None
    claim: Natural = 0
    replica: str = ""
    bytes: Natural = 0

    @model_validator(mode="after")
    def _is_whole(self) -> StoredEnd:
        missing = self.song if self.state == "succeeded" else self.error
        if missing is None:
            raise ValueError(f"{self.state} without {'a song' if self.state == 'succeeded' else 'an error'}")
        return self
