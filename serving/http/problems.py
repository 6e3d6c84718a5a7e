"""The errors of the HTTP side and their one form on the wire, RFC 9457 (`application/problem+json`).

It knows nothing of routes, jobs or models. How inference's errors are shown:

| error | status | why |
|---|---|---|
| InvalidField, UnknownModel | 400 | the request has to change |
| Cancelled | 409 | somebody cancelled the song or the download; asking again makes a new one |
| ModelBusy | 409 | another model is being loaded; ask again when that is done |
| CheckpointError | 500 | the weights are broken; asking again does not help |
| StorageError | 507 | no room for jobs and songs is left; 503 where they cannot be kept for another reason |
| DownloadError, EngineError | 503 | the models or their process are not there now; asking again may help |
| ServerStopping | 503 | as any work that is sent to a server that stops |
| EngineCrashed | 503 | the engine ends again and again; `Retry-After` is what is left of its pause |
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response, jsonify
from gunicorn.http import errors as http_errors
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from inference.errors import (
    Cancelled,
    CheckpointError,
    DownloadError,
    EngineCrashed,
    EngineError,
    InvalidField,
    ModelBusy,
    ServerStopping,
    UnknownModel,
    YueError,
)
from serving.http.problem_kinds import KINDS
from serving.http.whole_text import whole, whole_value
from storage import StorageError

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 30  # about one song's time
_AGAIN = {"Retry-After": str(RETRY_AFTER_SECONDS)}
LONGEST_VALUE = 80  # characters of a wrong value that are repeated


class Problem(Exception):
    """An error as the client sees it.

    `kind` ends the problem's type and is one of KINDS, with its `status`; `detail` is one sentence for the person who
    has to act, `members` are the machine-readable rest: field, value, allowed, line, errors, job_id, instance, …
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        members: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail := whole(detail))
        assert _is_known(status, kind), f"{kind} with status {status} is not in serving/http/problem_kinds.py"
        self.status, self.kind, self.detail = status, kind, detail
        self.members = {name: whole_value(value) for name, value in (members or {}).items()}
        self.headers = dict(headers or {})

    def having(self, **members: object) -> Problem:
        """The same problem with more members."""
        return Problem(self.status, self.kind, self.detail, {**self.members, **members}, self.headers)

    def as_dict(self) -> dict[str, object]:
        """The JSON object that RFC 9457 describes."""
        kind = KINDS[self.kind]
        standard = {"type": kind.type, "title": kind.title, "status": self.status, "detail": self.detail}
        return {**standard, **self.members}

    def response(self) -> Response:
        """The HTTP response."""
        response = jsonify(self.as_dict())
        response.status_code = self.status
        response.content_type = CONTENT_TYPE
        response.headers.update(self.headers)
        return response


def not_found(detail: str, **members: object) -> Problem:
    """Nothing of that name is here."""
    return Problem(404, "not-found", detail, members)


def conflict(detail: str, **members: object) -> Problem:
    """The request does not fit what is going on."""
    return Problem(409, "conflict", detail, members)


def queue_full(limit: int, position: int, free_in: float | None, expected_seconds: float | None) -> Problem:
    """No more songs may wait. The next place is free in so many seconds, as far as songs have been measured."""
    detail = f"{limit} songs are waiting already; try again later"
    members = {"position": position, "expected_seconds": _whole_seconds(expected_seconds)}
    return Problem(429, "queue-full", detail, members, _again(free_in))


def deadline_unreachable(deadline_seconds: float, position: int, expected_seconds: float) -> Problem:
    """The song would come too late, by what songs took here."""
    detail = (
        f"the song is expected in {math.ceil(expected_seconds)} s, and deadline_seconds is {deadline_seconds:.1f}; "
        "allow more time, or ask again when fewer songs wait"
    )
    expected = _whole_seconds(expected_seconds)
    members = {"deadline_seconds": round(deadline_seconds, 1), "position": position, "expected_seconds": expected}
    return Problem(503, "deadline-unreachable", detail, members, _again(expected_seconds - deadline_seconds))


def deadline_passed() -> Problem:
    """A song was not begun in time."""
    return Problem(504, "deadline-passed", "the song's deadline passed while it waited, so it was not sung")


def no_wait_slot() -> Problem:
    """As many requests wait as may."""
    return unavailable("too-many-waiters", "as many streams and requests wait as may; ask for the job's state instead")


def being_accepted() -> Problem:
    """Another request with the same request id is on its way."""
    detail = "another request with this request_id is being accepted, and takes its time; send this one again"
    return unavailable("being-accepted", detail)


def stopping() -> Problem:
    """The server takes no more work."""
    return unavailable("stopping", "the server is stopping; send the request again")


def unavailable(kind: str, detail: str, retry_after_seconds: int = RETRY_AFTER_SECONDS) -> Problem:
    """Something is not there now; asking again may help."""
    return Problem(503, kind, detail, headers={"Retry-After": str(retry_after_seconds)})


def invalid(errors: Sequence[InvalidField]) -> Problem:
    """One problem for all the fields that are wrong."""
    assert errors, "nothing is wrong"
    if len(errors) == 1:
        return Problem(400, "invalid-field", str(errors[0]), _members(errors[0]))
    detail = f"{len(errors)} fields are wrong: " + "; ".join(str(error) for error in errors)
    listed = [{"detail": str(error), **_members(error)} for error in errors]
    return Problem(400, "invalid-fields", detail, {"errors": listed})


def recorded(record: Mapping[str, Any]) -> Problem:
    """A problem that was written down, maybe by a server of another version, whose kinds may be others."""
    known = _is_known(record["status"], record["kind"])
    return Problem(**(record if known else {**record, "status": 500, "kind": "song-failed"}))


def problem_of(error: BaseException) -> Problem:
    """How any error is shown. One that nobody foresaw is logged whole, and shown by an id only."""
    match error:
        case Problem():
            return error
        case InvalidField():
            return invalid([error])
        case UnknownModel():
            allowed = {"field": "model", "value": shown(error.name), "allowed": error.allowed}
            return Problem(400, "unknown-model", str(error), allowed)
        case Cancelled():
            return Problem(409, "cancelled", str(error) or "the song was cancelled")
        case ModelBusy():
            return conflict(str(error))
        case CheckpointError():
            return Problem(500, "checkpoint-broken", str(error))
        case DownloadError():
            return unavailable("download-failed", str(error))
        case ServerStopping():
            return stopping()
        case EngineCrashed():
            return unavailable("engine-failed", str(error), max(1, math.ceil(error.retry_seconds)))
        case EngineError():
            return unavailable("engine-failed", str(error))
        case StorageError(kind="full"):
            return Problem(507, "storage-full", f"there is no room for another song: {error}", headers=_AGAIN)
        case StorageError():
            return unavailable("storage-failed", f"songs cannot be kept or found now: {error}")
        case YueError():
            return Problem(500, "song-failed", str(error))
        case HTTPException():
            return _of_http(error)
        case http_errors.InvalidResponseHeader() | http_errors.InvalidResponseHeaderName():  # of ours
            return _of_the_unforeseen(error)
        case http_errors.LimitRequestLine():
            return Problem(414, "request-uri-too-long", "the request's line is too long to be read")
        case http_errors.LimitRequestHeaders():
            return Problem(431, "request-header-fields-too-large", f"the request's headers are too much: {error}")
        case http_errors.ParseException():  # of the head, or of a body in chunks, which is parsed only when it is read
            return Problem(400, "bad-request", f"the request is no HTTP: {shown(str(error))}")
        case _:
            return _of_the_unforeseen(error)


def shown(value: object) -> object:
    """A client's value as it is repeated to the client: valid JSON, and short."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and value.bit_length() < 64:
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _members(error: InvalidField) -> dict[str, object]:
    members = {"field": error.field, "value": shown(error.value), "allowed": error.allowed}
    return members if error.line is None else {**members, "line": error.line}


def _again(seconds: float | None) -> dict[str, str]:
    """When to come back, in whole seconds; about one song's time where nothing has been measured."""
    return _AGAIN if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


def _whole_seconds(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds)


def _of_http(error: HTTPException) -> Problem:
    """What Flask itself refuses: unknown routes, methods, media types, bodies that are too large."""
    kind = error.name.lower().replace(" ", "-")
    status = error.code or 500
    if not _is_known(status, kind):
        if status >= 500:
            return _of_the_unforeseen(error)
        status, kind = 400, "bad-request"
    # Location and Allow are part of the answer; the content type is ours.
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return Problem(status, kind, _said(error), headers=headers)


def _said(error: HTTPException) -> str:
    match error:
        case NotFound():
            return "there is no such path; /openapi.json lists all, and /docs shows them"
        case MethodNotAllowed(valid_methods=methods) if methods:
            return f"the path does not take this method; allowed: {', '.join(sorted(methods))}"
    return error.description or error.name


def _is_known(status: int, kind: str) -> bool:
    return kind in KINDS and KINDS[kind].status in (status, None)


def _of_the_unforeseen(error: BaseException) -> Problem:
    error_id = uuid.uuid4().hex
    log.error("unforeseen error %s", error_id, exc_info=error)
    return Problem(500, "internal-error", f"the server failed; its log has error {error_id}", {"error_id": error_id})
