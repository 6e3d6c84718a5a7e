"""What the files of a job store have to hold: JSON in, checked fields out, with the same ranges as a request's.

It does not know where the files lie. What a file has beyond these fields is passed over: a newer server wrote it.
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

from inference.audio.mixing import check_reference
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
    """What is written is no record of a job, and trying again will not make it one."""


@contextmanager
def well_formed(what: str) -> Iterator[None]:
    """Raises Malformed where the record that is read is not as it has to be; its values are private, so not named."""
    try:
        yield
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)]
        raise Malformed(f"what is written of {what} is malformed: {'; '.join(mistakes)}", "unavailable") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"what is written of {what} is malformed: {type(error).__name__}", "unavailable") from error


def parsed(content: bytes) -> Json:
    """A file's JSON object, of which all can be written and sent again. Raises ValueError."""
    record = from_json(content, allow_inf_nan=False)  # unlike Python's own it refuses deep nesting and lone surrogates
    if not isinstance(record, dict):
        raise ValueError("no object")
    json.dumps(record, allow_nan=False)  # 1e999 is read as infinite
    return record


def _in_utc(moment: datetime) -> datetime:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not 1970 <= moment.year < 5000:
        raise ValueError("no year in which a song is made")
    return moment


def _or(default: object) -> WrapValidator:
    """What is malformed of a detail is left out: it does not cost a job its song or its end."""

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
    """Which job a request id belongs to."""

    job_id: JobId
    fingerprint: str


class StoredReference(_Record):
    """Which files of reference audio a job has, and the part of them that is used."""

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
    """What a client is told of a file of its reference audio."""

    name: str | None = None
    bytes: Natural | None = None


class ToldReference(_Record):
    """What a client is told of its reference audio."""

    audio: ToldFile | None = None
    vocal: ToldFile | None = None
    instrumental: ToldFile | None = None
    start_seconds: Number = 0.0
    end_seconds: Number | None = None

    def told(self) -> Json:
        """The span, and the files that there are."""
        files = self.model_dump(include={"audio", "vocal", "instrumental"}, exclude_unset=True)
        span = {"start_seconds": self.start_seconds, "end_seconds": self.end_seconds}
        return {**span, **{name: file for name, file in files.items() if file is not None}}


class StoredJob(_Record):
    """What was asked for. `request` is checked by itself, so that a job whose song cannot be made is a job still."""

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
    """How far a song is: a Progress."""

    stage: str
    section: Natural = 0
    sections: Natural = 0
    tokens: Natural = 0
    rows: Natural = 0
    frames: Natural = 0
    fraction: float = Field(0.0, ge=0, le=1)
    seconds_left: Number | None = None


class StoredProgress(_Record):
    """How far a job is that has not ended."""

    state: Literal["queued", "running"]
    model: str
    started_at: Annotated[Moment | None, _or(None)] = None
    attempts: Annotated[Natural, _or(0)] = 0
    progress: Annotated[StoredSteps | None, _or(None)] = None
    seconds_left: Number | None = None


class StoredSpan(_Record):
    """A SectionSpan."""

    tag: str
    start_seconds: Number
    end_seconds: Number


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
    """How a job ended. `claim` and `replica` say who ended it, `bytes` how large its audio is."""

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
