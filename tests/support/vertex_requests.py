"""Requests to endpoints on the stand-in for Vertex AI, and the probes of a real server behind them."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any

from tests.support.vertex import Answer, Probes

DEADLINE_S = 120.0  # an end to waiting where something is broken
# Quick probes, but a server may take 40 s to listen before it is restarted.
TOLERANT = Probes(liveness_period_s=0.25, liveness_tries=160, health_period_s=0.25)
SONG: dict[str, object] = {"genres": "pop", "lyrics": "[verse]\nla la la", "max_new_tokens": 100, "seed": 7}


def body_of(instance: dict[str, object]) -> bytes:
    return json.dumps({"instances": [instance]}).encode()


def post(url: str, body: bytes, content_type: str = "application/json") -> Answer:
    address = urllib.parse.urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=DEADLINE_S)
    try:
        connection.request("POST", address.path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        return Answer(response.status, response.headers["Content-Type"], response.read())
    finally:
        connection.close()


def predict(url: str, instance: dict[str, object]) -> dict[str, Any]:
    answer = post(f"{url}:predict", body_of(instance))
    assert answer.status == 200, answer.body
    (prediction,) = json.loads(answer.body)["predictions"]
    assert isinstance(prediction, dict)
    return prediction


def ask_models(url: str) -> dict[str, Any]:
    return predict(url, {"operation": "models/status"})
