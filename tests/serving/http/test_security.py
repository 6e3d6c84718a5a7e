"""The page on security tells the truth: each route is answered, in each situation, as its table says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from server import close_app
from serving.http import openapi
from tests.support.fakes import Served
from tests.support.paths import PROJECT

PAGE = (PROJECT / "docs" / "security.md").read_text()
KEY = "first-key-0123456789"
HEALTH, PREDICT = "/v1/health", "/v1/predict"
NAMED = {"$AIP_HEALTH_ROUTE": HEALTH, "$AIP_PREDICT_ROUTE": PREDICT}
IN_PATHS = {"<name>": "index.html", "<job_id>": "0" * 32, "<track>": "mix", "<audio_format>": "mp3"}
BEYOND, VERTEX = {"host": "0.0.0.0"}, {"aip_mode": "PREDICTION"}
# By the columns of the table: the settings, and whether the key is sent.
SITUATIONS: dict[str, tuple[dict[str, str], bool]] = {
    "No key, this machine": ({}, False),
    "No key, beyond it": (BEYOND, False),
    "Key set, not sent": ({**BEYOND, "api_key": KEY}, False),
    "Key set and sent": ({**BEYOND, "api_key": KEY}, True),
    "Vertex AI, no key": (VERTEX, False),
    "Vertex AI, key set, not sent": ({**VERTEX, "api_key": KEY}, False),
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" |")]


def table() -> Iterator[tuple[str, str, Any, dict[str, str]]]:
    """Method, path and body of each request in the table, and its answer by situation."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    situations = cells(lines[0])[1:]
    for line in lines[2:]:
        requests, *answers = cells(line)
        body = re.search(r"`(\{.*\})`", requests)
        for methods, path in re.findall(r"`([A-Z, ]+) (/\S*|\$\w+)`", requests):
            for method in methods.split(", "):
                yield method, path, json.loads(body[1]) if body else None, dict(zip(situations, answers, strict=True))


def serving(situation: str) -> tuple[Served, dict[str, str]]:
    """A server in that situation, and the headers of those who ask it."""
    settings, sends_key = SITUATIONS[situation]
    served = Served(health_route=HEALTH, predict_route=PREDICT, **settings)
    return served, {"X-API-Key": KEY} if sends_key else {}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_route_is_answered_as_the_table_says(situation: str) -> None:
    served, headers = serving(situation)
    told, found = {}, {}
    for method, path, body, answers in table():
        place = NAMED.get(path, path)
        for name, value in IN_PATHS.items():
            place = place.replace(name, value)
        status = served.client.open(place, method=method, json=body, headers=headers).status_code
        asked = f"{method} {path} {body}"
        told[asked], found[asked] = answers[situation], str(status) if status in (401, 403) else "yes"
    assert found == told
    close_app(served.app)


def test_every_route_and_situation_is_in_the_table() -> None:
    served, _ = serving("No key, this machine")
    routed = {(method, path) for path, method, _ in openapi.routes(served.app)}
    assert {(method, NAMED.get(path, path)) for method, path, _, _ in table()} == routed
    assert all(answers.keys() == SITUATIONS.keys() for _, _, _, answers in table())
    close_app(served.app)
