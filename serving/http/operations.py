"""The bodies, parameters, answers and examples of each route for the contract, by the name of its view.

Independent of paths: `serving/http/openapi.py` finds the path of each view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inference.audio.stream_encoding import STREAM_FORMATS
from inference.song import MIME_TYPES, TRACK_NAMES
from paths import PROJECT
from serving.http import response_models as answers
from serving.http.check_models import SongCheck
from serving.http.json_body import JSON
from serving.http.peaks import Peaks
from serving.http.problem_kinds import AUDIO, BODY, DOWNLOAD, JOB, PREDICT, QUERY, STORE, STUDIO
from serving.http.request_models import KEY, Download, SignIn, SongToCheck
from serving.http.studio_files import TYPES
from serving.jobs.layout import ID
from serving.jobs.listing import CURSOR, LISTED_JOBS, MOST_LISTED_JOBS, STATES

Json = dict[str, Any]
EXAMPLES = PROJECT / "examples"
SONG = {"genres": "folk acoustic guitar calm female", "lyrics": "[verse]\nThe kettle hums, the window glows"}
A_JOB_ID = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Answer:
    """One status of one operation; `content` maps media types to a pydantic type, or to None for bytes."""

    description: str
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    links: bool = False  # it names a job


@dataclass(frozen=True)
class Operation:
    """The input and output of a view. `places` are the sources of its problems, besides those of every route."""

    tag: str
    answers: Mapping[int, Answer]
    description: str = ""
    places: tuple[str, ...] = ()
    body: Any = None  # a pydantic type; PREDICT for the one that is assembled by hand
    body_required: bool = True
    examples: Mapping[str, object] = field(default_factory=dict)
    parameters: tuple[Json, ...] = ()


def _path(name: str, description: str, **schema: object) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", **schema},
    }


def _header(name: str, description: str, **schema: object) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string", **schema}}


def _query(name: str, description: str, **schema: object) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _json(kind: Any, description: str, **more: Any) -> Answer:
    return Answer(description, {JSON: kind}, **more)


JOB_ID = _path("job_id", "the id of a job", pattern=f"^{ID.pattern}$")
TRACK_NAME = _path("track", "which track", enum=list(TRACK_NAMES))
AUDIO_FORMAT = _path("audio_format", "the song's format", enum=list(MIME_TYPES))
ONE_STATE = {"type": "string", "enum": list(STATES)}
STATUS = {**_query("status", "only these", type="array", items=ONE_STATE, minItems=1), "explode": False}
LIMIT = _query("limit", "at most so many", type="integer", minimum=1, maximum=MOST_LISTED_JOBS, default=LISTED_JOBS)
BEHIND = f"^({ID.pattern}|{CURSOR.pattern})$"
BEFORE = _query("before", "only those after that job, or `next` of an answer", type="string", pattern=BEHIND)
RANGE_HEADER = _header("Range", "which bytes, such as `bytes=0-999`")
IDEMPOTENCY_KEY = _header("Idempotency-Key", "a `request_id` for the songs of this request", pattern=KEY.pattern)
STREAM_FORMAT = _path("audio_format", "any of these, whatever the song's own format is", enum=list(STREAM_FORMATS))
STREAM_TYPES = {MIME_TYPES[name]: None for name in STREAM_FORMATS}
AUDIO_TYPES = dict.fromkeys(MIME_TYPES.values())
FILE_HEADERS = {"ETag": "stays the same", "Accept-Ranges": "bytes", "Content-Disposition": "a name for the file"}
STUDIO_FILE = Answer("The file.", dict.fromkeys(TYPES.values()), {"ETag": "changes with the file"})
UNCHANGED = Answer("The file is the one that `If-None-Match` names.")


def read_examples() -> Json:
    """Bodies of /predict. The first is the song in examples/."""
    genres, lyrics = ((EXAMPLES / name).read_text(encoding="utf-8").strip() for name in ("genres.txt", "lyrics.txt"))
    return {
        "a song": {"instances": [{"genres": genres, "lyrics": lyrics}]},
        "two songs that are not waited for": {
            "instances": [{**SONG, "request_id": "first"}, {**SONG, "genres": "metal male", "request_id": "second"}],
            "parameters": {"format": "flac", "wait_seconds": 0},
        },
        "the state of a job": {"instances": [{"job_id": A_JOB_ID, "operation": "status"}]},
        "its song": {"instances": [{"job_id": A_JOB_ID, "operation": "result"}]},
        "check a song": {"instances": [{"operation": "check", **SONG}]},
        "load the models": {"instances": [{"operation": "download-models"}]},
    }


PREDICT_TEXT = """\
An instance is a song, or an operation on a job or on the models. `parameters` are defaults for all songs. A song \
that is not done within `wait_seconds` goes on, and its prediction names its job.

A body that is an instance itself, without `instances`, is the only one; `parameters` may stand beside its fields.

With the header `Accept: audio/mpeg` (or the type of another format, in which the song is then made where the request \
names none) and one instance the answer is the first track's file itself; 202 and the job where the song is not done \
in time. With `stream` it is the first track as a stream, sent while the song is generated. One bad instance among \
good ones is answered in its prediction's `error`; where none is good, the answer is a problem."""

READY_TEXT = """\
With `YUE_LOADING=startup`: once the models are ready, as `/health` has it. With `on_demand`: at once, since songs \
load their models; unlike `/health`, not while the engine crashes repeatedly and songs are refused. Never while the \
server stops. It changes and starts nothing."""

STREAM_TEXT = """\
Waits until the first part of the song is there. The connection is cut where the song fails in the middle. A range \
that begins behind the first byte gets what there is by now, at least one byte: a client whose connection was cut goes \
on from there, on this server or another."""

OPERATIONS = {
    "predict": Operation(
        "Songs",
        {
            200: Answer(
                "The predictions, or the first track's file.",
                {JSON: answers.Predictions, **AUDIO_TYPES},
                {"X-Job-Id": "of a file: its job", "X-Seed": "of a file: the song's seed", **FILE_HEADERS},
                links=True,
            ),
            202: _json(
                answers.UnfinishedJob,
                "A file was asked for, and the song is not done.",
                headers={"Location": "the job"},
            ),
            206: Answer(
                "A range of the file.", AUDIO_TYPES, {"Content-Range": "which bytes these are", **FILE_HEADERS}
            ),
            304: UNCHANGED,
        },
        PREDICT_TEXT,
        (BODY, PREDICT, DOWNLOAD, STORE, JOB, AUDIO),
        PREDICT,
        parameters=(IDEMPOTENCY_KEY,),
    ),
    "check": Operation(
        "Songs",
        {200: _json(SongCheck, "The sections, warnings and errors.")},
        "Takes the fields of one instance, and generates nothing. Wrong and missing fields are in `errors`.",
        (BODY,),
        SongToCheck,
        examples={"a song": SONG, "half a song": {"lyrics": SONG["lyrics"]}},
    ),
    "list_jobs": Operation(
        "Jobs",
        {200: _json(answers.JobListView, "The jobs, and how to ask for the next page.")},
        places=(STORE, JOB, QUERY),
        parameters=(STATUS, LIMIT, BEFORE),
    ),
    "show_job": Operation("Jobs", {200: _json(answers.AnyJob, "The job.")}, places=(STORE, JOB), parameters=(JOB_ID,)),
    "cancel_job": Operation(
        "Jobs",
        {200: _json(answers.AnyJob, "The job, which ends now or soon; a finished one stays as it is.")},
        places=(STORE, JOB),
        parameters=(JOB_ID,),
    ),
    "delete_job": Operation(
        "Jobs",
        {200: _json(answers.AnyJob, "The job as it was, with `deleted`; one that is not finished is cancelled.")},
        "A finished job is gone with its audio, on every server that shares the storage, and its `request_id` is free.",
        places=(STORE, JOB),
        parameters=(JOB_ID,),
    ),
    "job_events": Operation(
        "Jobs",
        {
            200: Answer("`progress` whenever it has changed, then `end`.", {"text/event-stream": str}),
            204: Answer("The client has already received the end."),
        },
        places=(STORE, JOB),
        parameters=(JOB_ID, _header("Last-Event-ID", "the last event that the client has had")),
    ),
    "job_audio": Operation(
        "Jobs",
        {
            200: Answer("The file.", AUDIO_TYPES, FILE_HEADERS),
            206: Answer("A range of it.", AUDIO_TYPES, {"Content-Range": "which bytes these are", **FILE_HEADERS}),
            304: UNCHANGED,
        },
        places=(STORE, JOB, AUDIO),
        parameters=(JOB_ID, TRACK_NAME, AUDIO_FORMAT, RANGE_HEADER),
    ),
    "job_stream": Operation(
        "Jobs",
        {
            200: Answer("The stream from its start to its end, as the song is generated.", STREAM_TYPES, FILE_HEADERS),
            206: Answer(
                "What there is by now of the range.",
                STREAM_TYPES,
                {"Content-Range": "which bytes these are; `*` for the size, except at the end", **FILE_HEADERS},
            ),
        },
        STREAM_TEXT,
        places=(STORE, JOB, AUDIO),
        parameters=(JOB_ID, TRACK_NAME, STREAM_FORMAT, RANGE_HEADER),
    ),
    "job_peaks": Operation(
        "Jobs",
        {200: _json(Peaks, "What there is by now; of a song that has only begun, no peaks.")},
        places=(STORE, JOB, AUDIO),
        parameters=(JOB_ID, TRACK_NAME),
    ),
    "expose": Operation(
        "Server",
        {200: Answer("The measurements.", {"text/plain": str, "application/openmetrics-text": str})},
    ),
    "health": Operation(
        "Models",
        {
            200: _json(answers.Health, "Requests may be sent here."),
            503: _json(
                answers.Health, "Not now: the models are not ready, though they have to be before the first request."
            ),
        },
    ),
    "livez": Operation("Server", {200: _json(answers.Alive, "It answers.")}, "Checks nothing else."),
    "readyz": Operation(
        "Server",
        {
            200: _json(answers.Readiness, "Songs are accepted."),
            503: _json(
                answers.Readiness, "Not at present.", headers={"Retry-After": "seconds to wait before another try"}
            ),
        },
        READY_TEXT,
    ),
    "studio_page": Operation("Studio", {200: STUDIO_FILE, 304: UNCHANGED}),
    "studio_redirect": Operation("Studio", {302: Answer("To /.", headers={"Location": "the page"})}),
    "studio_file": Operation(
        "Studio",
        {200: STUDIO_FILE, 304: UNCHANGED},
        places=(STUDIO,),
        parameters=(_path("name", "the name of a file"),),
    ),
    "models_status": Operation("Models", {200: _json(answers.ModelsStatus, "The models.")}),
    "download_models": Operation(
        "Models",
        {
            200: _json(answers.DownloadAnswer, "The models are ready."),
            202: _json(answers.DownloadAnswer, 'They are being loaded: `"wait": false`, or it takes too long.'),
        },
        "Waits until the models are ready, unless `wait` is false. A second call joins the first.",
        (BODY, DOWNLOAD),
        Download,
        body_required=False,
        examples={"the configured model": {}, "do not wait": {"wait": False}, "another model": {"model": "en-cot"}},
    ),
    "cancel_download": Operation("Models", {200: _json(answers.CancelAnswer, "What was ended, if anything.")}),
    "show_session": Operation("Session", {200: _json(answers.SessionView, "The rights.")}),
    "sign_in": Operation(
        "Session",
        {
            200: _json(
                answers.SessionView,
                "The session is open. Where the server has no key, none is needed, and there is no cookie.",
                headers={"Set-Cookie": "the session, for 12 hours and as long as the server has its key"},
            )
        },
        places=(BODY,),
        body=SignIn,
        examples={"a key": {"key": "0123456789abcdef"}},
    ),
    "sign_out": Operation("Session", {200: _json(answers.SessionView, "The cookie is removed.")}),
    "contract": Operation("Server", {200: _json(dict[str, Any], "An OpenAPI 3.1 document.")}),
    "docs": Operation("Server", {200: Answer("A page.", {"text/html": str})}),
}
