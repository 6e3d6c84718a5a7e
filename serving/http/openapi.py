"""The contract: an OpenAPI 3.1 document of the routes that an app has, and the page that shows it.

Requests are described by `serving/http/request_models.py`, responses by `serving/http/response_models.py`, and problems
by `serving/http/problem_kinds.py`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from functools import cache
from inspect import getdoc
from typing import Any

from flask import Flask, Response, jsonify
from pydantic import BaseModel, TypeAdapter

from inference.song import SongRequest
from serving.http import response_models
from serving.http.docs_page import render
from serving.http.json_body import JSON
from serving.http.operations import OPERATIONS, Answer, Operation, read_examples
from serving.http.problem_kinds import ANYWHERE, KINDS, PREDICT, ProblemKind
from serving.http.problems import CONTENT_TYPE
from serving.http.request_models import CheckOperation, Download, Instance, JobOperation, ModelsOperation, Parameters
from serving.http.session_tokens import COOKIE

VERSION = "0.1.0"
INFO = {
    "title": "YuE server",
    "version": VERSION,
    "description": "Genre tags and lyrics in, a song out. Errors are RFC 9457 problems.",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "where the server has a key"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, as another header"},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "for browsers, by POST /session"},
}
REF = "#/components/schemas/"
NULL = {"type": "null"}
PREDICT_BODY = {
    "anyOf": [
        {"$ref": REF + "PredictRequest"},
        {"allOf": [{"$ref": REF + "Instance"}], "required": ["genres", "lyrics"]},
        {"$ref": REF + "JobOperation"},
        {"$ref": REF + "ModelsOperation"},
        {"$ref": REF + "CheckOperation"},
    ]
}
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
RETRIED_STATUSES = (429, 503, 507)  # the statuses of what passes
# What the first prediction says of a job leads to these.
_JOB_ID = {"job_id": "$response.body#/predictions/0/job_id"}
_MIX = {**_JOB_ID, "track": "mix", "audio_format": "$response.body#/predictions/0/format"}
LINKS = {
    "job": {"operationId": "get_show_job", "parameters": _JOB_ID},
    "cancel": {"operationId": "post_cancel_job", "parameters": _JOB_ID},
    "audio": {"operationId": "get_job_audio", "parameters": _MIX},
}

Json = dict[str, Any]
View = Callable[..., Any]


def install(app: Flask, max_instances: int) -> tuple[View, View]:
    """Serve the contract of all routes that the app has at the first request, by the views that are returned."""

    @cache
    def built() -> Json:
        return document(app, max_instances)

    def contract() -> Response:
        """This document."""
        return jsonify(built())

    def docs() -> Response:
        """The contract as a page to read."""
        return Response(render(built()), mimetype="text/html")

    for path, method, view in (
        ("/openapi.json", "GET", contract),
        ("/openapi.json", "POST", contract),
        ("/docs", "GET", docs),
    ):
        app.add_url_rule(path, f"{method} {path}", view, methods=[method])
    return contract, docs


def document(app: Flask, max_instances: int) -> Json:
    """The document of the app's routes, whose views must all be in OPERATIONS."""
    schemas = _Schemas(max_instances)
    paths: defaultdict[str, Json] = defaultdict(dict)
    ids: Counter[str] = Counter()
    for path, method, view in routes(app):
        name = f"{method.lower()}_{view.__name__}"
        ids[name] += 1
        about = {
            "operationId": name if ids[name] == 1 else f"{name}_{ids[name]}",  # Vertex AI has names of its own
            "summary": (getdoc(view) or "").split("\n")[0].rstrip("."),
        }
        paths[re.sub(r"<(\w+)>", r"{\1}", path)][method.lower()] = about | _operation(view.__name__, schemas)
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "servers": [{"url": "/"}],
        "security": [{}, *({name: []} for name in SECURITY)],
        "tags": [{"name": tag} for tag in dict.fromkeys(each.tag for each in OPERATIONS.values())],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.found.items())), "securitySchemes": SECURITY},
    }


def routes(app: Flask) -> Iterator[tuple[str, str, View]]:
    """Path, method and view of every route; what Flask adds by itself (HEAD, OPTIONS) is left out."""
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield rule.rule, method, app.view_functions[rule.endpoint]


class _Schemas:
    """JSON Schemas of pydantic types; those with a name are put among `found` and referred to."""

    def __init__(self, max_instances: int) -> None:
        self.found: dict[str, Json] = {}
        for kind in (Parameters, JobOperation, Download, ModelsOperation, CheckOperation):
            self.of(kind)
            properties = self.found[kind.__name__]["properties"]
            required = self.found[kind.__name__].get("required", [])
            for name in properties.keys() - set(required):  # null is the same as leaving a field out
                properties[name] = _or_null(properties[name])
        self._add_instance(max_instances)

    def of(self, kind: Any) -> Json:
        """The schema of a type."""
        schema = TypeAdapter(kind).json_schema(ref_template=REF + "{model}")
        own = _without_noise(schema)
        for name, each in own.pop("$defs", {}).items():
            self.found.setdefault(_schema_name(name), each)
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return own
        self.found.setdefault(name := _schema_name(kind.__name__), own)
        return {"$ref": REF + name}

    def _add_instance(self, max_instances: int) -> None:
        parameters = self.found["Parameters"]
        for field in fields(SongRequest):
            if field.name in parameters["properties"] and field.default not in (MISSING, None):
                default = list(field.default) if isinstance(field.default, tuple) else field.default
                parameters["properties"][field.name]["default"] = default
        note = "`genres` and `lyrics` are needed, here or in `parameters`."
        self.found["Instance"] = {**parameters, "description": f"{getdoc(Instance)} {note}"}
        instances = [{"$ref": REF + name} for name in ("Instance", "JobOperation", "ModelsOperation", "CheckOperation")]
        self.found["PredictRequest"] = {
            "type": "object",
            "description": "Songs to generate, or operations.",
            "required": ["instances"],
            "additionalProperties": False,
            "properties": {
                "instances": {
                    "type": "array",
                    "description": f"1 to {max_instances} of them",
                    "minItems": 1,
                    "maxItems": max_instances,
                    "items": {"anyOf": instances},
                },
                "parameters": {"anyOf": [{"$ref": REF + "Parameters"}, NULL]},
            },
        }


def _schema_name(name: str) -> str:
    """The name of a model in the contract."""
    return name.removesuffix("View")


def _or_null(schema: Json) -> Json:
    if NULL in schema.get("anyOf", []):
        return schema
    about: Json = {name: schema[name] for name in ("description", "default") if name in schema}
    return {**about, "anyOf": [{name: schema[name] for name in schema.keys() - about.keys()}, NULL]}


def _without_noise(schema: Any) -> Any:
    """Without the titles and nulls for defaults that pydantic adds, and with its limits as JSON Schema calls them.

    Where a type has a validator of its own, pydantic leaves the limits under the names that Python knows them by.
    """
    if isinstance(schema, list):
        return [_without_noise(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    noise = ["title"] if isinstance(schema.get("title"), str) else []
    noise += ["default"] if schema.get("default", False) is None else []
    return {
        LIMITS.get(name, name): _schema_name(each) if name == "$ref" else _without_noise(each)
        for name, each in schema.items()
        if name not in noise
    }


def _operation(name: str, schemas: _Schemas) -> Json:
    assert name in OPERATIONS, f"the view {name} is not in serving/http/operations.py"
    operation = OPERATIONS[name]
    responses = {str(status): _response(answer, schemas) for status, answer in operation.answers.items()}
    for status, kinds in _problems(operation).items():
        problems = _problem_response(status, kinds, schemas)
        if status in responses:  # health's own 503
            problems["content"] |= responses[status]["content"]
            problems["description"] = responses[status]["description"] + "\n\n" + problems["description"]
        responses[status] = problems
    made: Json = {"tags": [operation.tag], "responses": dict(sorted(responses.items()))}
    if operation.description:
        made["description"] = operation.description
    if operation.parameters:
        made["parameters"] = list(operation.parameters)
    if operation.body:
        made["requestBody"] = _body(operation, schemas)
    return made


def _body(operation: Operation, schemas: _Schemas) -> Json:
    by_hand = operation.body == PREDICT
    examples = read_examples() if by_hand else operation.examples
    content = {
        "schema": PREDICT_BODY if by_hand else schemas.of(operation.body),
        "examples": {re.sub(r"\W+", "-", name): {"summary": name, "value": body} for name, body in examples.items()},
    }
    return {"required": operation.body_required, "content": {JSON: content}}


def _response(answer: Answer, schemas: _Schemas) -> Json:
    made: Json = {"description": answer.description}
    if answer.content:
        made["content"] = {
            media: {"schema": schemas.of(kind)} if kind else {} for media, kind in answer.content.items()
        }
    if answer.headers:
        made["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if answer.links:
        made["links"] = LINKS
    return made


def _problems(operation: Operation) -> dict[str, list[ProblemKind]]:
    """The kinds of problems that it can meet, by status."""
    places = {ANYWHERE, *operation.places}
    met = [kind for kind in KINDS.values() if places & set(kind.places)]
    statuses = {kind.status for kind in met if kind.status}
    return {str(status): [kind for kind in met if kind.status in (status, None)] for status in sorted(statuses)}


def _problem_response(status: str, kinds: list[ProblemKind], schemas: _Schemas) -> Json:
    narrowed = {"properties": {"type": {"enum": [kind.type for kind in kinds]}}}
    schema = {"allOf": [schemas.of(response_models.ProblemView), narrowed]}
    text = "\n\n".join(f"`{kind.name}`: {kind.meaning}" for kind in kinds)
    made: Json = {"description": text, "content": {CONTENT_TYPE: {"schema": schema}}}
    if int(status) in RETRIED_STATUSES:
        seconds = {"description": "in so many seconds another try may help", "schema": {"type": "string"}}
        made["headers"] = {"Retry-After": seconds}
    return made
