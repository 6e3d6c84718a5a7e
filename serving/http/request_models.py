"""What a request may hold: JSON in, checked fields out.

`serving/http/song_instances.py` makes songs of the fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from inference.audio.reading import check_header, check_reference
from inference.errors import InvalidField
from inference.song import REFERENCE_SECONDS, TRACK_NAMES, Reference
from inference.text.characters import broken_text
from serving.http.base64_audio import decoded
from serving.http.problems import Problem, invalid, problem_of
from serving.jobs.errors import InvalidFields
from serving.jobs.song_fields import (
    LONGEST_REQUEST_ID,
    REQUEST_ID_PATTERN,
    Schema,
    SongDefaults,
    SongFields,
    Strict,
    Whole,
    number,
    read_fields,
    wrapped,
)
from serving.settings import LONGEST_WAIT_SECONDS

LONGEST_DEADLINE_SECONDS = 86_400
LARGEST_PIECE = 2**53 - 1  # bytes
MOST_MEMBERS = 100  # of an object or a list: the fields of an instance are a quarter of that
LONGEST_ADDRESS = 4_096  # characters; signed addresses have more than a thousand
REFERENCE_FILES = ("audio", "vocal", "instrumental")
REQUEST_ID_TEXT = f"1 to {LONGEST_REQUEST_ID} visible ASCII characters"
KEY = re.compile(f'^("?{REQUEST_ID_PATTERN}"?)?$')  # the header Idempotency-Key
TOP_LEVEL = {"instances", "parameters"}  # of a /predict body
JOB_OPERATIONS = ("status", "result", "cancel", "delete")
CHECK = "check"
MODELS_STATUS, DOWNLOAD_MODELS, CANCEL_DOWNLOAD = "models/status", "download-models", "cancel-download"
MODELS_OPERATIONS = (MODELS_STATUS, DOWNLOAD_MODELS, CANCEL_DOWNLOAD)


def _address(part: str) -> Any:
    where = (
        f"instead of {part}, its address of up to {LONGEST_ADDRESS} characters: https:// or gs://, "
        "of the server's YUE_REFERENCE_HOSTS"
    )
    return Field(None, pattern=r"^(https|gs)://", max_length=LONGEST_ADDRESS, description=where)


class ReferenceFields(Strict):
    """Audio whose style is continued: one file, or the two tracks of one."""

    audio: str | None = Field(None, description="an audio file, base64 or a data: URL")
    vocal: str | None = Field(None, description="an audio file, base64 or a data: URL, together with instrumental")
    instrumental: str | None = Field(None, description="an audio file, base64 or a data: URL, together with vocal")
    audio_uri: str | None = _address("audio")
    vocal_uri: str | None = _address("vocal")
    instrumental_uri: str | None = _address("instrumental")
    start_seconds: float | None = Field(None, description="a number of seconds within the file")
    end_seconds: float | None = Field(None, description="a number of seconds after start_seconds")

    @model_validator(mode="after")
    def _can_be_read(self) -> ReferenceFields:
        """What can be known before anything is decoded or fetched."""
        try:
            self._check_addresses()
            reference = self.as_reference(dict.fromkeys(self.addresses(), b""))
            for field, content in check_reference(reference).items():
                if f"{field.removeprefix('reference.')}_uri" not in self.addresses():
                    check_header(field, content, reference)
        except InvalidField as error:
            raise wrapped(error) from error
        return self

    def addresses(self) -> dict[str, str]:
        """The addresses whose files make the reference whole, by the names of their fields."""
        given = {f"{part}_uri": getattr(self, f"{part}_uri") for part in REFERENCE_FILES}
        return {name: address for name, address in given.items() if address is not None}

    def _check_addresses(self) -> None:
        for name, address in self.addresses().items():
            part = name.removesuffix("_uri")
            if getattr(self, part) is not None:
                raise InvalidField(f"reference.{name}", address, f"either reference.{part} or reference.{name}")

    def as_reference(self, found: Mapping[str, bytes] | None = None) -> Reference:
        """The audio itself; `found` is what lay at the addresses, by the names of their fields."""
        found = found or {}
        start = 0.0 if self.start_seconds is None else self.start_seconds
        return Reference(
            mix=found.get("audio_uri", decoded("reference.audio", self.audio)),
            vocal=found.get("vocal_uri", decoded("reference.vocal", self.vocal)),
            instrumental=found.get("instrumental_uri", decoded("reference.instrumental", self.instrumental)),
            start_seconds=start,
            end_seconds=start + REFERENCE_SECONDS if self.end_seconds is None else self.end_seconds,
        )


class Parameters(SongDefaults):
    """The defaults for all instances of a request. A field that is None takes the default of SongRequest."""

    wait_seconds: float | None = number(0, LONGEST_WAIT_SECONDS)
    deadline_seconds: float | None = number(1, LONGEST_DEADLINE_SECONDS)
    request_id: str | None = Field(None, pattern=f"^{REQUEST_ID_PATTERN}$", description=REQUEST_ID_TEXT)
    reference: ReferenceFields | None = Field(None, description="an object that holds audio, or vocal and instrumental")
    model: str | None = Field(None, description="the name of the model that is loaded")
    stream: bool | None = Field(None, description="true or false")


class Instance(SongFields, Parameters):
    """One song that is asked for."""


class JobOperation(Strict):
    """Something done to a job through /predict."""

    job_id: str = Field(description="the id of a job")
    operation: Literal["status", "result", "cancel", "delete"] = Field(description=", ".join(JOB_OPERATIONS))
    track: Literal["mix", "vocal", "instrumental"] | None = Field(
        None, description=f"one of {', '.join(TRACK_NAMES)}, with operation result"
    )
    offset: Whole | None = Field(None, ge=0, le=LARGEST_PIECE, description="a whole number of bytes from 0, with track")
    length: Whole | None = Field(None, ge=1, le=LARGEST_PIECE, description="a whole number of bytes from 1, with track")

    @model_validator(mode="after")
    def _is_a_piece(self) -> JobOperation:
        given = [name for name in ("track", "offset", "length") if getattr(self, name) is not None]
        if given and self.operation != "result":
            raise wrapped(InvalidField(given[0], getattr(self, given[0]), "only with operation result"))
        if given and self.track is None:
            raise wrapped(InvalidField("track", None, f"one of {', '.join(TRACK_NAMES)}, where a piece is asked for"))
        return self


class Download(Strict):
    """What /download-models takes. Without `model` and `revision`: the model that is set up."""

    model: str | None = Field(None, description="the name of a model")
    revision: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_./-]{1,200}$", description="a branch, tag or commit of up to 200 characters"
    )
    force: bool = Field(False, description="true or false")
    wait: bool = Field(True, description="true or false")


class ModelsOperation(Download):
    """Something done to the models through /predict."""

    operation: Literal["models/status", "download-models", "cancel-download"] = Field(
        description=f"{CHECK}, {', '.join(MODELS_OPERATIONS)}, and with a job_id {', '.join(JOB_OPERATIONS)}"
    )


class SongToCheck(BaseModel):
    """The fields of a song as they are so far: some may be missing or wrong, which the answer says."""

    model_config = ConfigDict(extra="allow")


class CheckOperation(SongToCheck):
    """The same through /predict."""

    operation: Literal["check"] = Field(description=CHECK)


class SignIn(Strict):
    """What opens a session."""

    key: SecretStr = Field(description="a key of the server, a string")


INSTANCE_FIELDS = {*Instance.model_fields, *JobOperation.model_fields, *ModelsOperation.model_fields}


def read(schema: type[Schema], raw: object) -> Schema:
    """`raw` as the schema has it. Raises Problem, which names every field that is wrong."""
    fields = without_nulls(as_object(raw), schema)
    if broken := [*broken_text(fields), *_too_long(fields)]:
        raise invalid(broken)
    try:
        return read_fields(schema, fields)
    except InvalidFields as error:
        raise problem_of(error) from error


def read_body(body: object, max_instances: int) -> tuple[list[object], dict[str, object]]:
    """The instances and the parameters of a /predict body. Raises Problem.

    A body that is an instance itself is the only one; `parameters` may stand beside its fields.
    """
    given = as_object(body, "a JSON object with instances")
    fields = {name: value for name, value in given.items() if value is not None or name not in TOP_LEVEL}
    if "instances" not in fields and fields.keys() & INSTANCE_FIELDS:
        instance = {name: value for name, value in fields.items() if name != "parameters"}
        fields = {"instances": [instance], "parameters": fields.get("parameters")}
    unknown = [InvalidField(name, fields[name], _allowed_beside(name)) for name in fields if name not in TOP_LEVEL]
    if unknown:
        raise invalid(unknown)
    instances, parameters = fields.get("instances"), fields.get("parameters")
    if not isinstance(instances, list) or not 1 <= len(instances) <= max_instances:
        got = f"{len(instances)} instances" if isinstance(instances, list) else instances
        raise invalid([InvalidField("instances", got, f"a list of 1 to {max_instances} instances")])
    if parameters is not None and not isinstance(parameters, Mapping):
        raise invalid([InvalidField("parameters", parameters, "a JSON object")])
    defaults = without_nulls(parameters or {}, Parameters)
    try:
        reference = read(Parameters, defaults).reference
    except Problem as problem:
        raise problem.having(instance="#/parameters") from problem
    return instances, defaults if reference is None else {**defaults, "reference": reference}  # it is checked once


def as_object(raw: object, allowed: str = "a JSON object") -> Mapping[str, object]:
    """`raw`, if it is an object with no more members than could be of use. Raises Problem."""
    if not isinstance(raw, Mapping):
        kinds: dict[type, str] = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        raise Problem(400, "invalid-request", f"got {kinds.get(type(raw), 'a number')}; allowed: {allowed}")
    if len(raw) > MOST_MEMBERS:
        detail = f"got an object with {len(raw)} members; allowed: up to {MOST_MEMBERS}"
        raise Problem(400, "invalid-request", detail)
    return raw


def _too_long(fields: Mapping[str, object]) -> Iterator[InvalidField]:
    """Lists and objects with so many members that an error for each would fill megabytes."""
    for name, value in fields.items():
        if isinstance(value, Mapping | list) and len(value) > MOST_MEMBERS:
            yield InvalidField(name, f"{len(value)} members", f"up to {MOST_MEMBERS} members")


def is_check(instance: object) -> bool:
    """True if an instance is a song to be checked."""
    return isinstance(instance, Mapping) and instance.get("operation") == CHECK


def is_job_operation(instance: object) -> bool:
    """True if an instance is an operation on a job."""
    return isinstance(instance, Mapping) and ("job_id" in instance or instance.get("operation") in JOB_OPERATIONS)


def is_models_operation(instance: object) -> bool:
    """True if an instance is an operation on the models."""
    return isinstance(instance, Mapping) and "operation" in instance and not is_job_operation(instance)


def read_keys(header: str | None, instances: int) -> list[str | None]:
    """The request id of each instance that the header Idempotency-Key gives: after the first, with its place.

    Raises Problem.
    """
    if not KEY.match(header or ""):
        raise invalid([InvalidField("Idempotency-Key", header, REQUEST_ID_TEXT)])
    key = (header or "").strip('"')
    if not key:
        return [None] * instances
    keys: list[str | None] = [key, *(f"{key}.{index}" for index in range(1, instances))]
    if len(str(keys[-1])) > LONGEST_REQUEST_ID:
        room = LONGEST_REQUEST_ID - len(str(keys[-1])) + len(key)
        raise invalid([InvalidField("Idempotency-Key", header, f"1 to {room} characters for {instances} instances")])
    return keys


def _allowed_beside(name: str) -> str:
    """What stands at the top of a body, where that name does not."""
    inside = f"; {name} belongs in an instance" if name in INSTANCE_FIELDS else ""
    return f"instances, parameters{inside}"


def without_nulls(raw: Mapping[str, object], schema: type[BaseModel]) -> dict[str, object]:
    """Without the schema's fields that hold null; an unknown name stays, to be refused."""
    return {name: value for name, value in raw.items() if value is not None or name not in schema.model_fields}
