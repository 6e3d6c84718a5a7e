"""What an answer holds: jobs, predictions, models, health, problems.

`serving/http/check_models.py` has those of a check, `serving/http/response_types.py` what all of them are made of. The
contract is made from these models, and the answers about jobs are built from them; tests compare the others with them.
Every object may get more members in time; clients ignore those that they do not know. A name that other modules
use for something else has `View` behind it, which the contract leaves out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from inference.catalog import ALLOWED_NAMES
from inference.song import MIME_TYPES, STAGES, TRACK_NAMES
from serving.http.check_models import SongCheck
from serving.http.problem_kinds import KINDS
from serving.http.response_types import Answer as _Answer
from serving.http.response_types import Base64, JobId, Natural, Number, Place, Timestamp
from serving.http.response_types import maybe as _maybe

STREAM_TEXT = "the path of the first track as a stream, which can be listened to while the song is generated"


class ProblemView(_Answer):
    """An error, as RFC 9457 has it. docs/errors.md lists the types."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="the kind of problem; its meaning never changes",
        json_schema_extra={"enum": [kind.type for kind in KINDS.values()]},
    )
    title: str = Field(description="the type, for people")
    status: int = Field(
        ge=400, le=599, description="the HTTP status; in a prediction, the one that it would have had alone"
    )
    detail: str = Field(description="one sentence for the person who has to act")
    instance: str = _maybe("the path, and in /predict the place of the instance in the request")
    field: str = _maybe("which field is wrong, a dotted path")
    value: Any = _maybe("its value, shortened")
    allowed: Any = _maybe("the allowed values")
    line: int = _maybe("of the lyrics", ge=1)
    errors: list[dict[str, Any]] = _maybe("the single problems")
    job_id: str = _maybe("the job that it is about")
    error_id: str = _maybe("the id of the error in the server's log")


class ProgressView(_Answer):
    """The progress of a song."""

    stage: str = Field(description="the earliest stage that is not done", json_schema_extra={"enum": list(STAGES)})
    section: Natural = Field(description="the section that is generated; 0 outside stage 1")
    sections: Natural = Field(description="how many will be generated")
    tokens: Natural = Field(description="of stage 1 so far")
    rows: Natural = Field(description="of stage 2 so far, each up to 6 s of one track")
    frames: Natural = Field(description="of stage 2 so far, all rows together")
    fraction: float = Field(ge=0, le=1, description="of the whole song; never falls")
    seconds_left: Number | None = Field(description="null while nothing has been measured")
    playable_seconds: Number = Field(description="of the song that can be streamed already")


class Segment(_Answer):
    """The place of a section in the song."""

    tag: str = Field(description="as the lyrics name it, or YuE's name for one in another language")
    start_seconds: Number
    end_seconds: Number


class Track(_Answer):
    """One file of a song."""

    mime_type: str = Field(json_schema_extra={"enum": list(MIME_TYPES.values())})
    bytes: Natural = Field(description="the file's size")
    url: str = Field(description="its path on this server")


class PredictedTrack(Track):
    """One file of a song, in a prediction."""

    audio: Base64 = _maybe("the file, base64; the first track's is the prediction's own")


class ToldFileView(_Answer):
    """A file of reference audio, without its audio."""

    name: str | None = _maybe("of a file that was given by its address")
    bytes: Natural | None = _maybe("of the audio as it is kept until the song is done")


class ToldReferenceView(_Answer):
    """Reference audio, without its audio."""

    audio: ToldFileView = _maybe("the file of that field")
    vocal: ToldFileView = _maybe("the file of that field")
    instrumental: ToldFileView = _maybe("the file of that field")
    start_seconds: Number
    end_seconds: Number | None


class AskedSong(_Answer):
    """The request, with drawn and default values."""

    genres: str
    lyrics: str = Field(description="in the list of jobs shortened, then ending in …")
    seed: Natural
    segments: int | None = Field(description="null: all")
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    guidance_scale: list[float]
    format: str = Field(json_schema_extra={"enum": list(MIME_TYPES)})
    tracks: list[str]
    model: str | None = Field(description="null: any")
    deadline_seconds: Number | None
    reference: ToldReferenceView | None


class _Job(_Answer):
    job_id: JobId = Field(description="the id of the job")
    request_id: str | None = Field(description="as the request gave it")
    model: str = Field(description="the model that generates it")
    seed: Natural = Field(description="given or drawn: the same request with the same seed is the same song")
    warnings: list[str] = Field(description="what was generated otherwise than was probably meant")
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    progress: ProgressView | None = Field(description="null before it starts")
    cancel_requested: bool = Field(description="true once its cancellation was requested")
    deleted: bool = _maybe("of a deletion: true if the job is gone, false if it was not finished")
    request: AskedSong | None = Field(description="the request; null if it cannot be read any more")


class UnfinishedJob(_Job):
    """A song that waits or is generated."""

    status: Literal["queued", "running"]
    position: Place | None = _maybe("of a queued song: 1 for the next; null on other servers")
    expected_seconds: Number | None = _maybe(
        "of a queued song: until it is done, by the duration of the songs before it"
    )
    stream_url: str = Field(description=STREAM_TEXT)


class SucceededJob(_Job):
    """A finished song, without its audio."""

    status: Literal["succeeded"]
    mime_type: str = Field(json_schema_extra={"enum": list(MIME_TYPES.values())})
    format: str = Field(json_schema_extra={"enum": list(MIME_TYPES)})
    sample_rate: int = Field(ge=1, description="in Hz")
    duration_seconds: Number
    tracks: dict[str, Track] = Field(
        description="by name, the first that was asked for first",
        json_schema_extra={"propertyNames": {"enum": list(TRACK_NAMES)}},
    )
    segments: list[Segment] = Field(description="the sections that were generated")
    timings: dict[str, Number] = Field(description="the seconds of each stage")
    stream_url: str = _maybe(STREAM_TEXT)


class JobWithoutSong(_Job):
    """A job that ended without a song."""

    status: Literal["failed", "cancelled", "interrupted"]
    error: ProblemView


class SongPrediction(SucceededJob):
    """A finished song."""

    audio: Base64 = Field(description="the first track's file, base64")
    tracks: dict[str, PredictedTrack] = Field(  # type: ignore[assignment]  # each has more than a Track
        description="by name, the first that was asked for first",
        json_schema_extra={"propertyNames": {"enum": list(TRACK_NAMES)}},
    )


class SongTooLarge(SucceededJob):
    """A finished song that is too large for an answer."""

    audio_omitted: str = Field(description="why, and how to get it")
    audio_uri: str = _maybe("the first track's address in the server's bucket")
    url: str = _maybe("the same, signed: anyone can fetch it for an hour")


class SongPiece(_Answer):
    """A part of one track of a finished song."""

    job_id: JobId
    status: Literal["succeeded"]
    track: str = Field(json_schema_extra={"enum": list(TRACK_NAMES)})
    mime_type: str = Field(json_schema_extra={"enum": list(MIME_TYPES.values())})
    bytes: Natural = Field(description="of the whole track")
    offset: Natural = Field(description="where this part begins")
    length: Natural = Field(description="bytes of this part")
    next_offset: Natural | None = Field(description="where the next part begins; null after the last")
    audio: Base64 = Field(description="this part, base64")


class RefusedView(_Answer):
    """An instance that failed, beside others that did not."""

    error: ProblemView


AnyJob = UnfinishedJob | SucceededJob | JobWithoutSong


class JobListView(_Answer):
    """A page of the jobs: those that are not finished, then the others, each the newest first."""

    jobs: list[AnyJob]
    next: str | None = Field(description="`before` of the next page; null after the last")


class ByteCounts(_Answer):
    """How much of something is downloaded."""

    bytes_done: Natural = _maybe("so far")
    bytes_total: Natural = _maybe("in all")


class DownloadProgress(ByteCounts):
    """The progress of a download."""

    bytes_per_second: Natural = _maybe("of late")
    seconds_left: Number | None = _maybe("at that rate")
    proving: str = _maybe("the file whose digest is being computed")
    waiting: Any = _maybe("why nothing arrives at present")
    repositories: dict[str, ByteCounts] = _maybe("the same of each repository")


class LastErrorView(_Answer):
    """The last error of the models."""

    error: str = Field(description="its class")
    reason: str | None = Field(description="of a download, for programs")
    detail: str = Field(description="a sentence for people")
    permanent: bool = Field(description="trying again does not help until somebody acts")
    model: str
    at: datetime


class EngineInfo(_Answer):
    """The engine, and how the models are loaded."""

    device: str = _maybe("cpu, or the name of the GPU")
    dtype: str = _maybe("float32, bfloat16 or float16")
    quantization: str = _maybe("none or int8")
    memory_bytes: Natural | None = _maybe("of the GPU, taken by the weights")
    loading_seconds: Number = _maybe("that the weights took")
    max_songs: int = _maybe("that are generated together")
    max_rows: int = _maybe("of stage 2 that are computed together")
    recordings: Any = _maybe("which steps are recorded, and why others are not")
    pid: int = _maybe("of the engine's process")


class _ModelsView(_Answer):
    model: str = Field(description=ALLOWED_NAMES)
    revision: str | None = Field(description="the commit, where it is known")


class ModelsBegun(_ModelsView):
    """Models on their way."""

    status: Literal["downloading", "loading"]
    seconds: Number = Field(description="since the attempt began")
    download: DownloadProgress
    loading: str | None = Field(description="the part that the engine is loading")
    replaces: bool = Field(description="true if another model makes room for it")


class _Troubles(_Answer):
    last_error: LastErrorView | None
    crashes: Natural = Field(description="engines in a row that ended by themselves")
    next_try_seconds: Number | None = Field(description="what is left of the pause after such ends")
    gpu: bool = Field(description="true if the machine has a GPU that the settings allow")


class ModelsComing(ModelsBegun, _Troubles):
    """No model is here; one is on its way."""


class ModelsReady(_ModelsView, _Troubles):
    """A model that is ready."""

    status: Literal["ready"]
    seconds: Number = Field(description="from the first byte to ready")
    engine: EngineInfo
    next: ModelsBegun = _maybe("the model that will replace it")


class ModelsAbsent(_ModelsView, _Troubles):
    """No model is here, and none is on its way."""

    status: Literal["not_loaded", "error"]


ModelsStatus = ModelsReady | ModelsComing | ModelsAbsent


class DownloadAnswer(_Answer):
    """The state of a requested download."""

    status: Literal["success", "accepted"] = Field(description="accepted: it goes on")
    message: str
    models: ModelsStatus


class CancelAnswer(_Answer):
    """The result of a cancellation."""

    status: Literal["cancelled", "nothing_to_cancel"]
    message: str
    models: ModelsStatus


class SessionView(_Answer):
    """The rights of this client."""

    signed_in: bool = Field(description="true if it has a key or a session")
    key_required: bool = Field(description="true if most routes need one")
    may_administer: bool = Field(description="true if it may change models and list all jobs")
    version: str = Field(description="of the server")


class Health(_Answer):
    """The health of the server."""

    status: Literal["healthy", "starting", "unhealthy", "draining"]
    models: ModelsStatus


class Alive(_Answer):
    """The process answers."""

    status: Literal["alive"]


class Readiness(_Answer):
    """The readiness of the server for songs."""

    status: Literal["ready", "starting", "unhealthy", "draining"]


Prediction = (
    SongPrediction
    | SongTooLarge
    | SongPiece
    | AnyJob
    | ModelsStatus
    | DownloadAnswer
    | CancelAnswer
    | RefusedView
    | SongCheck
)


class Predictions(_Answer):
    """One prediction for each instance, in their order."""

    predictions: list[Prediction]
