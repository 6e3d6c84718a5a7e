"""A request's body as JSON. Ambiguous JSON is refused.

Independent of fields: `serving/http/request_models.py` checks them.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from json import JSONDecodeError

from flask import request
from werkzeug.exceptions import UnsupportedMediaType

from serving.http import access
from serving.http.problems import Problem, shown

JSON = "application/json"
IDENTITY = "identity"  # the only Content-Encoding that is read
DEEPEST = 32  # nested lists and objects; a song's reference is at 5


def read_json(empty: object = None) -> object:
    """The body of the request. Raises Problem; `empty` is the value of an empty body, where one is allowed."""
    _check_encoding()
    body = access.read_body()
    if not body and empty is not None:
        return empty
    if not request.is_json:
        raise UnsupportedMediaType(f"Content-Type: got {request.mimetype!r}; allowed: {JSON}")
    access.check_values(body)
    value = parse(body)
    if body.count(b"[") + body.count(b"{") > DEEPEST and _is_deeper(value):
        raise _too_deep()
    return value


def parse(body: bytes) -> object:
    """The JSON value of the bytes. Raises Problem."""
    try:
        text = body.decode(json.detect_encoding(body))
        return _parse_text(text)
    except UnicodeDecodeError as error:
        raise _no_json(f"it is not in UTF-8, {error}") from error
    except JSONDecodeError as error:
        raise _no_json(str(error)) from error
    except RecursionError as error:
        raise _too_deep() from error


def _parse_text(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except JSONDecodeError:
        raise
    except ValueError:  # Python reads no integer of more than 4300 digits; as infinity its field refuses it
        return json.loads(text, object_pairs_hook=_without_doubles, parse_int=float)


def _check_encoding() -> None:
    encoding = request.headers.get("Content-Encoding", "")
    if any(each.strip().lower() not in ("", IDENTITY) for each in encoding.split(",")):
        detail = f"Content-Encoding: got {shown(encoding)}; allowed: {IDENTITY}, which means a body without compression"
        members = {"field": "Content-Encoding", "value": shown(encoding), "allowed": IDENTITY}
        raise Problem(415, "unsupported-media-type", detail, members, {"Accept-Encoding": IDENTITY})


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of the body, in which each name may occur once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = shown(next(name for (name, _), first in zip_longest(pairs, found) if name != first))
        raise Problem(400, "invalid-json", f"{twice}: occurs twice in one object; allowed: once", {"field": twice})
    return found


def _is_deeper(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        holders = [each for each in level if isinstance(each, list | dict)]
        level = [each for one in holders for each in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True


def _too_deep() -> Problem:
    detail = f"the body's lists and objects are nested too deeply; allowed: {DEEPEST} levels"
    return Problem(400, "invalid-json", detail, {"allowed": DEEPEST})


def _no_json(why: str) -> Problem:
    return Problem(400, "invalid-json", f"the body is not JSON: {why}")
