"""Responses to requests that never reach a route, because they are not HTTP or too long, in the usual problem format.

`serving/gunicorn/worker.py` sends them.
"""

from __future__ import annotations

import json
import logging
import uuid
from http import HTTPStatus

from serving.http.problems import CONTENT_TYPE, problem_of
from serving.observability.requests import REQUEST_ID

log = logging.getLogger(__name__)


def refusal(error: Exception) -> bytes:
    """Return the whole HTTP response; the connection is closed after it. `problem_of` logs unexpected errors."""
    problem, request_id = problem_of(error), uuid.uuid4().hex
    # The type alone: the message may contain a key.
    log.info("a request was refused: %s", type(error).__name__, extra={"request_id": request_id})
    body = json.dumps(problem.as_dict()).encode() + b"\n"
    headers = {
        "Content-Type": CONTENT_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
        REQUEST_ID: request_id,
        **problem.headers,
    }
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
