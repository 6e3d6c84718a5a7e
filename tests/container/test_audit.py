"""What the audit of packages says and how it ends, with a stand-in for the advisory service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.paths import PROJECT
from tests.support.threaded import answering

pytestmark = pytest.mark.slow

AUDIT = PROJECT / "scripts" / "audit.py"
NOTHING: dict[str, Any] = {}


def weakness_of(package: str) -> dict[str, Any]:
    span = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}
    affected = {"package": {"name": package, "ecosystem": "PyPI"}, "ranges": [span]}
    return {"vulns": [{"id": "PYSEC-1", "summary": "it leaks", "affected": [affected]}]}


@contextmanager
def advisories(answer: Callable[[str], dict[str, Any]], asked: list[dict[str, Any]]) -> Iterator[str]:
    """A service that speaks as OSV does; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer(question["package"]["name"])).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}/"


def audit(address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(AUDIT), "--vulnerability-service", "osv", "--osv-url", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_known_weakness_fails_and_is_named() -> None:
    with advisories(lambda name: weakness_of(name) if name == "werkzeug" else NOTHING, []) as address:
        done = audit(address)
    assert done.returncode == 1, done.stderr
    assert "werkzeug" in done.stdout and "PYSEC-1, fixed in 999.1" in done.stdout


def test_every_package_is_asked_about_also_those_that_others_bring() -> None:
    asked: list[dict[str, Any]] = []
    with advisories(lambda name: NOTHING, asked) as address:
        done = audit(address)
    assert done.returncode == 0, done.stderr
    versions = {question["package"]["name"]: question["version"] for question in asked}
    assert {"flask", "werkzeug", "torch", "markupsafe"} <= set(versions)
    assert "+" not in versions["torch"]  # no service knows the names of builds
    assert f"{len(versions)} of {len(versions)} packages were audited, 0 have" in done.stdout


def test_a_service_that_is_not_there_is_told_and_fails_nothing() -> None:
    done = audit("http://127.0.0.1:9/")
    assert done.returncode == 0, done.stderr
    assert "NOT AUDITED: the advisory service did not answer" in done.stdout
