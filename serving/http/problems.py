"""The errors of the HTTP side and their one form on the wire, RFC 9457 (`application/problem+json`).

`serving/jobs/errors.py` says what kind of error an exception is; `serving/http/problem_kinds.py` is the one table of
each kind's status and title.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flask import Response, jsonify
from gunicorn.http import errors as http_errors
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from inference.errors import InvalidField
from inference.text.characters import whole, whole_value
from serving.http.problem_kinds import KINDS
from serving.jobs.errors import RETRY_SECONDS, InvalidFields, JobError, Unforeseen, described, shown

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = math.ceil(RETRY_SECONDS)


class Problem(Exception):
    """An error as clients see it.

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
    """Nothing of that name exists."""
    return Problem(404, "not-found", detail, members)


def conflict(detail: str, **members: object) -> Problem:
    """The request does not fit what is going on."""
    return Problem(409, "conflict", detail, members)


def no_wait_slot() -> Problem:
    """All wait slots are taken."""
    return unavailable(
        "too-many-waiters", "all wait slots for streams and requests are taken; ask for the job's state instead"
    )


def unavailable(kind: str, detail: str) -> Problem:
    """Something is unavailable at present; trying again may help."""
    return Problem(503, kind, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def invalid(errors: Sequence[InvalidField]) -> Problem:
    """One problem for all the fields that are wrong."""
    return _of_job_error(InvalidFields(errors))


def problem_of(error: BaseException) -> Problem:
    """Any error as a problem. An unforeseen one is logged with its traceback, and shown by an id only."""
    match error:
        case Problem():
            return error
        case HTTPException():
            return _of_http(error)
        case http_errors.InvalidResponseHeader() | http_errors.InvalidResponseHeaderName():  # of ours
            return _of_job_error(Unforeseen(error))
        case http_errors.LimitRequestLine():
            return Problem(414, "request-uri-too-long", "the request line is too long")
        case http_errors.LimitRequestHeaders():
            return Problem(431, "request-header-fields-too-large", f"the request headers are too large: {error}")
        case http_errors.ParseException():  # of the head, or of a body in chunks, which is parsed only when it is read
            return Problem(400, "bad-request", f"the request is not valid HTTP: {shown(str(error))}")
    return _of_job_error(described(error))


def _of_job_error(error: JobError) -> Problem:
    """The problem for a job's error. One that another version stored may have an unknown kind."""
    known = KINDS.get(error.kind)
    kind = known if known and known.status else KINDS["song-failed"]
    assert kind.status
    headers = {} if error.retry_seconds is None else {"Retry-After": str(max(1, math.ceil(error.retry_seconds)))}
    return Problem(kind.status, kind.name, error.detail, error.fields, headers)


def _of_http(error: HTTPException) -> Problem:
    """The errors of Flask itself: unknown routes, methods, media types, bodies that are too large."""
    kind = error.name.lower().replace(" ", "-")
    status = error.code or 500
    if not _is_known(status, kind):
        if status >= 500:
            return _of_job_error(Unforeseen(error))
        status, kind = 400, "bad-request"
    # Location and Allow are part of the answer; the content type is ours.
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return Problem(status, kind, _said(error), headers=headers)


def _said(error: HTTPException) -> str:
    match error:
        case NotFound():
            return "there is no such path; /openapi.json and /docs list all paths"
        case MethodNotAllowed(valid_methods=methods) if methods:
            return f"the path does not allow this method; allowed: {', '.join(sorted(methods))}"
    return error.description or error.name


def _is_known(status: int, kind: str) -> bool:
    return kind in KINDS and KINDS[kind].status in (status, None)
