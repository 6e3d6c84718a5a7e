"""The fields of a song: which values a request may hold, and a stored one.

It reads JSON objects; `serving/http/request_models.py` adds the fields that only requests over HTTP have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from inference.errors import InvalidField
from inference.song import MAX_NEW_TOKENS, MAX_SECTIONS, MIME_TYPES, TRACK_NAMES
from inference.text import lyrics, prompt
from serving.jobs.errors import InvalidFields

LARGEST_SEED = 2**53 - 1  # the largest whole number that every JSON reader keeps
DRAW_SEED = -1  # the same as no seed, as other servers of this field have it
LONGEST_LYRICS, LONGEST_GENRES = 20_000, 1_000  # characters
LONGEST_REQUEST_ID = 128
REQUEST_ID_PATTERN = f"[!-~]{{1,{LONGEST_REQUEST_ID}}}"

Schema = TypeVar("Schema", bound=BaseModel)


def _as_whole_number(value: object) -> object:
    """JSON has one kind of number, and some clients write 3 as 3.0: that is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_as_whole_number)]
Scale = Annotated[float, Field(ge=1, le=10)]
Scales = Annotated[list[Scale], Field(min_length=2, max_length=2)]


def number(low: float, high: float, what: str = "a number") -> Any:
    """An optional number in that range."""
    return Field(None, ge=low, le=high, description=f"{what} from {low} to {high}")


def whole_number(low: int, high: int) -> Any:
    """An optional whole number in that range."""
    return number(low, high, "a whole number")


class Strict(BaseModel):
    """Unknown names are refused, "3" is not a number, true is not 1, and NaN is no value.

    A field's description says what is allowed; the error repeats it. null is the same as leaving a field out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())


class SongDefaults(Strict):
    """The fields of a song, all of them optional. A field that is None takes the default of SongRequest."""

    genres: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_GENRES,
        description=f"text of 1 to {LONGEST_GENRES} characters",
        json_schema_extra={"pattern": r"\S"},
    )
    lyrics: str | None = Field(
        None, min_length=1, max_length=LONGEST_LYRICS, description=f"text of 1 to {LONGEST_LYRICS} characters"
    )
    segments: Whole | None = whole_number(1, MAX_SECTIONS)
    seed: Whole | None = Field(
        None,
        ge=DRAW_SEED,
        le=LARGEST_SEED,
        description=f"a whole number from 0 to {LARGEST_SEED}, or {DRAW_SEED} to have one drawn",
    )
    max_new_tokens: Whole | None = whole_number(100, MAX_NEW_TOKENS)
    temperature: float | None = number(0, 2)
    top_p: float | None = Field(None, gt=0, le=1, description="a number above 0, up to 1")
    top_k: Whole | None = whole_number(0, 1_024)
    repetition_penalty: float | None = number(1, 2)
    guidance_scale: Scales | None = Field(None, description="a number from 1 to 10, or two: first section, later ones")
    format: Literal["mp3", "wav", "flac", "ogg"] | None = Field(None, description=", ".join(MIME_TYPES))
    tracks: list[Literal["mix", "vocal", "instrumental"]] | None = Field(
        None,
        min_length=1,
        description=f"a list of {', '.join(TRACK_NAMES)}, each at most once",
        json_schema_extra={"uniqueItems": True},
    )

    @field_validator("guidance_scale", mode="before", json_schema_input_type=Scale | Scales | None)
    @classmethod
    def _one_sets_both(cls, scale: object) -> object:
        return [scale, scale] if isinstance(scale, int | float) else scale

    @field_validator("tracks")
    @classmethod
    def _no_doubles(cls, tracks: list[str] | None) -> list[str] | None:
        if tracks and len(set(tracks)) < len(tracks):
            raise ValueError("a track is named twice")
        return tracks


class SongFields(SongDefaults):
    """One song: its genres and lyrics are required."""

    genres: str = Field(
        min_length=1, max_length=LONGEST_GENRES, description=f"text of 1 to {LONGEST_GENRES} characters"
    )
    lyrics: str = Field(max_length=LONGEST_LYRICS, description=f"text of 1 to {LONGEST_LYRICS} characters")

    @field_validator("lyrics")
    @classmethod
    def _has_sections(cls, text: str) -> str:
        try:
            lyrics.parse(text)
        except InvalidField as error:
            raise wrapped(error) from error
        return text

    @field_validator("genres")
    @classmethod
    def _can_be_prompted(cls, genres: str) -> str:
        try:
            prompt.check_genres(tidy := prompt.tidy_genres(genres))
        except InvalidField as error:
            raise wrapped(error) from error
        return tidy


def read_fields(schema: type[Schema], fields: Mapping[str, object]) -> Schema:
    """The object as the schema has it. Raises InvalidFields, which names every field that is wrong."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise InvalidFields(_mistakes(schema, error)) from error


def _mistakes(schema: type[BaseModel], error: ValidationError) -> list[InvalidField]:
    """One for each field: of a list's several wrong elements, the first."""
    mistakes: dict[str, InvalidField] = {}
    for details in error.errors(include_url=False):
        mistake = _mistake(schema, details)
        mistakes.setdefault(mistake.field, mistake)
    return list(mistakes.values())


def _mistake(schema: type[BaseModel], details: Any) -> InvalidField:
    """pydantic's error as InvalidField: the field's description is what is allowed."""
    if details["type"] == "wrapped":
        ours = details["ctx"]["error"]
        assert isinstance(ours, InvalidField)
        return ours
    path = [part for part in details["loc"] if isinstance(part, str)]
    fields = _fields_beside(schema, path)
    field = ".".join(path)
    if details["type"] == "extra_forbidden":
        return InvalidField(field, details["input"], f"only the fields {', '.join(fields)}")
    allowed = fields[path[-1]].description or ""
    if details["type"] == "missing":
        return InvalidField(field, None, f"{allowed} (required)")
    return InvalidField(field, details["input"], allowed)


def _fields_beside(schema: type[BaseModel], path: list[str]) -> dict[str, FieldInfo]:
    """The fields of the object in which the last name of the path stands."""
    fields = schema.model_fields
    for name in path[:-1]:
        kinds = get_args(fields[name].annotation)
        fields = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)).model_fields
    return fields


def wrapped(error: InvalidField) -> PydanticCustomError:
    """An error of ours for pydantic, which goes on to collect the others."""
    return PydanticCustomError("wrapped", "see error", {"error": error})
