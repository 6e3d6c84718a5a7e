"""The errors between a client and its server, each with its exit code, and how an answer becomes one."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]

INTERRUPTED = 130  # what shells call Ctrl-C
TEMPORARY = (408, 425, 429, 502, 503, 504, 507)  # the same request may succeed later
UNAUTHORIZED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
OF_NO_SONG = ("urn:yue:problem:conflict", "urn:yue:problem:storage-failed")  # they name a job that did not fail
LONGEST_TEXT = 200  # characters of an answer that is shown as it is


class ClientError(Exception):
    """The command failed. `problem` is the server's own, where it sent one; `hint` is what may help."""

    exit_code = 1
    temporary = False

    def __init__(self, detail: str, hint: str = "", problem: Json | None = None) -> None:
        super().__init__(detail)
        self.hint, self.problem = hint, dict(problem or {})

    def as_dict(self) -> Json:
        """For scripts: the problem, with the exit code."""
        hint = {"hint": self.hint} if self.hint else {}
        return {"detail": str(self), **self.problem, **hint, "exit_code": self.exit_code}


class Failed(ClientError):
    """The song or the models failed."""


class Misused(ClientError):
    """The command or its options are wrong."""

    exit_code = 2


class Unreachable(ClientError):
    """No answer came, or the server is busy."""

    exit_code = 3

    def __init__(
        self, detail: str, hint: str = "", problem: Json | None = None, temporary: bool = True, after_s: float = 0
    ) -> None:
        super().__init__(detail, hint, problem)
        self.temporary, self.after_s = temporary, after_s


class Refused(ClientError):
    """The server refused the request."""

    exit_code = 4


class Forgotten(Refused):
    """The server has no such job or path."""


class Unauthorized(ClientError):
    """This client may not use the server."""

    exit_code = 5


def of_answer(status: int, body: bytes, retry_after: str | None, address: str) -> ClientError:
    """The error for a response."""
    if problem := _problem_in(body):
        return of_problem({"status": status, **problem}, _seconds(retry_after))
    text = body.decode(errors="replace").strip()[:LONGEST_TEXT]
    detail = f"{address} answered {status}" + (f": {text}" if text and "<" not in text else "")
    error = of_problem({"status": status, "detail": detail}, _seconds(retry_after))
    if not isinstance(error, Unauthorized):
        error.hint = error.hint or "is that a YuE server? Its address is given by --url or YUE_URL"
    return error


def of_problem(problem: Json, retry_after_s: float = 0) -> ClientError:
    """The error for an RFC 9457 problem."""
    try:
        status = int(problem.get("status") or HTTPStatus.INTERNAL_SERVER_ERROR)
    except (TypeError, ValueError):
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
    text = words(problem)
    if "job_id" in problem and problem.get("type") not in OF_NO_SONG and status != HTTPStatus.NOT_FOUND:
        return Failed(text, problem=problem)
    if status in UNAUTHORIZED:
        return Unauthorized(text, problem=problem)
    if status in TEMPORARY:
        return Unreachable(text, "try again later", problem, after_s=retry_after_s)
    if status == HTTPStatus.NOT_FOUND:
        return Forgotten(text, problem=problem)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return Refused(text, "a shorter or more compressed reference makes the request smaller", problem)
    return (
        Refused(text, problem=problem) if status < HTTPStatus.INTERNAL_SERVER_ERROR else Failed(text, problem=problem)
    )


def words(problem: Any) -> str:
    """A problem in words: its detail, what is allowed, and the problems that it lists."""
    if not isinstance(problem, dict):
        return str(problem)
    own = str(problem.get("detail") or problem.get("title") or problem)
    each = [words(part) for part in problem.get("errors") or ()]
    allowed = problem.get("allowed")
    listed = ", ".join(map(str, allowed)) if isinstance(allowed, list | tuple) else str(allowed)
    lines = [own, *(text for text in each if text not in own)]
    if allowed and "allowed" not in own and listed not in own:
        lines.append(f"allowed: {listed}")
    return "\n".join(lines)


def _problem_in(body: bytes) -> Json:
    """The problem, from within Google's form of an error where that is around it."""
    try:
        answer = json.loads(body)
        answer = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(answer, dict):
            return {}
        outer = answer.get("error")
        if not isinstance(outer, dict):
            return answer if "detail" in answer or "title" in answer else {}
    except ValueError:
        return {}
    message = str(outer.get("message", ""))
    start = message.find("{")
    inner = _problem_in(message[start:].encode()) if start >= 0 else {}
    return inner or {"detail": message or str(outer)}


def _seconds(text: str | None) -> float:
    """Retry-After, where it is a number of seconds; 0 where it is none."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
