"""The query parameters of /jobs, checked.

Of jobs it needs only their states.
"""

from __future__ import annotations

import re
from typing import Any

from werkzeug.datastructures import MultiDict

from inference.errors import InvalidField
from serving.http.problems import invalid
from serving.jobs.layout import ID
from serving.jobs.listing import CURSOR, LISTED_JOBS, MOST_LISTED_JOBS, STATES, JobQuery

PARAMETERS = ("status", "limit", "before")
ALLOWED_STATUS = f"one of {', '.join(STATES)}, or several with commas between them"
ALLOWED_LIMIT = f"a whole number from 1 to {MOST_LISTED_JOBS}"
ALLOWED_BEFORE = "the id of a listed job, or `next` of an answer"


def read_query(given: MultiDict[str, str]) -> JobQuery:
    """The requested selection of jobs. Raises Problem, which names every wrong parameter."""
    mistakes = [
        InvalidField(name, given[name], f"only the parameters {', '.join(PARAMETERS)}")
        for name in given
        if name not in PARAMETERS
    ]
    asked: dict[str, Any] = {}
    for name, read, allowed in (
        ("status", _states, ALLOWED_STATUS),
        ("limit", _limit, ALLOWED_LIMIT),
        ("before", _before, ALLOWED_BEFORE),
    ):
        if name in given:
            text = ",".join(given.getlist(name))
            asked[name] = read(text)
            if not asked[name]:
                mistakes.append(InvalidField(name, text, allowed))
    if mistakes:
        raise invalid(mistakes)
    return JobQuery(asked.get("status", frozenset(STATES)), asked.get("limit", LISTED_JOBS), asked.get("before"))


def _states(text: str) -> frozenset[str] | None:
    states = frozenset(text.split(","))
    return states if states <= set(STATES) else None


def _limit(text: str) -> int | None:
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    return number if number <= MOST_LISTED_JOBS else None


def _before(text: str) -> str | None:
    return text if ID.fullmatch(text) or CURSOR.fullmatch(text) else None
