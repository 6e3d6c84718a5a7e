"""Measures what this server adds to a request, beside a bare Flask app that returns the same under the same gunicorn.

    python -m benchmarks.overhead

Both are called in turn over one connection each that is kept open. The engine is a light one, so that nothing but the
handling of a request is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from typing import Any

from flask import Flask, Response, jsonify, request

from tests.support.real_server import RealServer, until

LIGHT_APP = "tests.support.light_engine:light_app()"
BARE_APP = "benchmarks.overhead:bare_app()"
SONG = {"genres": "pop", "lyrics": "[verse]\nla la la", "wait_seconds": 0}
TOGETHER = 50  # requests to one server before the other has its turn
Json = dict[str, Any]


def bare_app() -> Flask:
    """Flask and nothing else: it returns answers from the environment, and reads a body where there is one."""
    app = Flask(__name__)
    says = json.loads(os.environ["BARE_ANSWERS"])

    @app.get("/health")
    def health() -> Response:
        return jsonify(says["/health"])

    @app.post("/predict")
    def predict() -> Response:
        assert request.get_json()["instances"]
        return jsonify(says["/predict"])

    return app


class Caller:
    """One connection to a server."""

    def __init__(self, server: RealServer) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def milliseconds(self, path: str, body: bytes | None) -> float:
        """How long one answer takes."""
        began = time.perf_counter()
        self._connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        return 1_000 * (time.perf_counter() - began)


def measure(requests: int) -> dict[str, tuple[list[float], list[float]]]:
    """Request -> the milliseconds of each answer from this server, and from the bare one, sorted."""
    with ExitStack() as servers:
        ours = servers.enter_context(RealServer({}, LIGHT_APP))
        ours.wait_until_answered()
        job_id = ours.generate(**SONG)[1]["job_id"]
        until(lambda: ours.ask(f"/jobs/{job_id}")[1]["status"] == "succeeded")
        body = {"instances": [{"job_id": job_id, "operation": "status"}]}
        questions: dict[str, bytes | None] = {"/health": None, "/predict": json.dumps(body).encode()}
        answers = {"/health": ours.ask("/health")[1], "/predict": ours.ask("/predict", body)[1]}
        bare = servers.enter_context(RealServer({"BARE_ANSWERS": json.dumps(answers)}, BARE_APP))
        bare.wait_until_answered()
        callers = (Caller(ours), Caller(bare))
        found: dict[str, tuple[list[float], list[float]]] = {path: ([], []) for path in questions}
        for _ in range(math.ceil(requests / TOGETHER)):
            for path, question in questions.items():
                for caller, times in zip(callers, found[path], strict=True):
                    times += [caller.milliseconds(path, question) for _ in range(TOGETHER)]
        bare.kill()  # it has nothing that could be ended as this server's parts are
    return {path: (sorted(one), sorted(other)) for path, (one, other) in found.items()}


def share(times: Sequence[float], part: float) -> float:
    """The latency percentile of sorted `times`; `part` 0.99 is the 99th."""
    return times[math.ceil(part * len(times)) - 1]


def table(found: dict[str, tuple[list[float], list[float]]], requests: int) -> str:
    """The result as Markdown."""
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
    lines = [
        f"{date.today()}, {machine}.",
        "",
        f"    python -m benchmarks.overhead --requests {requests}",
        "",
        "| request | answers | this server, ms: p50 | p99 | bare Flask, ms: p50 | p99 | ratio of p50 | of p99 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    names = {"/health": "`GET /health`", "/predict": "`POST /predict`, a job's status"}
    for path, (ours, bare) in found.items():
        halves = [share(ours, 0.5), share(ours, 0.99), share(bare, 0.5), share(bare, 0.99)]
        times = " | ".join(f"{each:.2f}" for each in halves)
        ratios = f"{halves[0] / halves[2]:.2f} × | {halves[1] / halves[3]:.2f} ×"
        lines.append(f"| {names[path]} | {len(ours)} | {times} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="What this server adds to a request, beside bare Flask.")
    parser.add_argument("--requests", type=int, default=2_000, help="of each kind, to each server (default: 2000)")
    requests = parser.parse_args().requests
    print(table(measure(requests), requests))


if __name__ == "__main__":
    main()
