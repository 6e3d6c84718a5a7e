"""Measures how fast the real server answers /health, whatever else it does.

    python -m benchmarks.health

A prober calls it over HTTP, on a new connection each time, as platforms do. The
weights are the tiny model's, from a slow stand-in for the Hub on the same machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import selectors
import socket
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from inference.tiny import model_files
from serving.gunicorn.worker import SLOW_CONNECTIONS
from serving.settings import RESERVED_THREADS
from tests.support.hub_server import serve_tiny
from tests.support.real_server import RealServer, until

PROBES_PER_SECOND = 20
SONG = {"genres": "pop", "lyrics": "[verse]\nla la la\n\n[chorus]\nla", "max_new_tokens": 1_500}
LONG_SONG = {**SONG, "max_new_tokens": 6_000}
BURST = "called by many at once"
PHASES = (
    "nothing loaded",
    "downloading",
    "loading",
    "generating",
    BURST,
    "called without pause",
    "full of waiters",
    "held by slow clients",
    "draining",
)
THREADS = 40  # of which all that may wait for songs do so in the end
ASKERS = 256
QUESTION = b"GET /models/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_REQUEST = (
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n["
)
LONGEST_DRAIN_SECONDS = 20


class Prober:
    """Calls /health at a steady rate until it is stopped, and sorts the answers by the server's state."""

    def __init__(self, server: RealServer) -> None:
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.phase = ""  # what the server does, if it is ready
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            phase, began = self.phase, time.perf_counter()
            try:
                status, health = self._server.ask("/health")
            except OSError:
                assert phase == "draining", f"no answer while {phase}"
                return  # it has ended
            milliseconds = 1_000 * (time.perf_counter() - began)
            assert status == 200 or phase == "draining", health
            self.milliseconds[self._phase(health["models"]["status"], phase)].append(milliseconds)
            due += 1 / PROBES_PER_SECOND

    def _phase(self, status: str, phase: str) -> str:
        if status == "ready" and phase:
            return phase
        return "nothing loaded" if status == "not_loaded" else status


class Askers:
    """Many clients, each of which requests the models' status again as soon as it has an answer."""

    def __init__(self, port: int) -> None:
        self._selector = selectors.DefaultSelector()
        for _ in range(ASKERS):
            self._selector.register(socket.create_connection(("127.0.0.1", port)), selectors.EVENT_READ)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Askers:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _ask(self) -> None:
        for key in self._selector.get_map().values():
            key.fileobj.sendall(QUESTION)  # type: ignore[union-attr]
        while not self._stop.is_set():
            for key, _ in self._selector.select(timeout=1.0):
                answer = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                assert answer.startswith(b"HTTP/1.1 200 "), answer
                key.fileobj.sendall(QUESTION)  # type: ignore[union-attr]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="How fast /health answers, whatever the server does.")
    parser.add_argument("--rounds", type=int, default=3, help="servers to start, one after the other (default: 3)")
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="health-") as folder:
        for number in range(rounds):
            for phase, milliseconds in one_life(Path(folder) / str(number)).items():
                found[phase] += milliseconds
    print(table(found, rounds))


def one_life(folder: Path) -> Mapping[str, Sequence[float]]:
    """Phase -> milliseconds of each answer, from a server's first answer to its last."""
    files = model_files.ensure(folder / "tiny")
    with serve_tiny(files) as hub:
        hub.fault("/resolve/", times=None, method="GET", effect="slow")
        settings = {**hub.environment(folder), "XDG_CACHE_HOME": str(folder / "cache"), "YUE_MODEL": "en-cot"}
        settings |= {"YUE_THREADS": str(THREADS), "YUE_WAIT_SECONDS": str(LONGEST_DRAIN_SECONDS)}
        with RealServer(settings) as server:
            server.wait_until_answered()
            with Prober(server) as prober:
                until(lambda: len(prober.milliseconds["nothing loaded"]) >= PROBES_PER_SECOND)
                status, answer = server.ask("/download-models", {})
                assert status == 200, answer
                prober.phase = "generating"
                status, prediction = server.generate(**SONG)
                assert status == 200, prediction
                prober.phase = BURST
                with Askers(server.port):
                    watch(prober, BURST, seconds=1)
                    watch(prober, "called without pause")
                with ExitStack() as crowd:
                    crowd_out(server, prober, crowd)
                    prober.phase = "draining"
                    assert server.end() == 0, server.log()
    return prober.milliseconds


def crowd_out(server: RealServer, prober: Prober, crowd: ExitStack) -> None:
    """As many requests as may wait for songs, one of which runs; then clients that stop within their requests."""
    for number in range(THREADS - RESERVED_THREADS):
        body = json.dumps({"instances": [{**LONG_SONG, "seed": number}]}).encode()
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        send(server, crowd, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    until(lambda: len(server.ask("/jobs")[1]["jobs"]) > THREADS - RESERVED_THREADS)
    watch(prober, "full of waiters")
    prober.phase = BURST
    for _ in range(2 * SLOW_CONNECTIONS):
        send(server, crowd, HALF_REQUEST)
    watch(prober, BURST, seconds=1)
    watch(prober, "held by slow clients")


def send(server: RealServer, crowd: ExitStack, content: bytes) -> None:
    """Send it over a connection that stays open, and wait for no answer."""
    crowd.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(content)


def watch(prober: Prober, phase: str, seconds: int = 3) -> None:
    """Probe the server for so long."""
    prober.phase = phase
    enough = len(prober.milliseconds[phase]) + seconds * PROBES_PER_SECOND
    until(lambda: len(prober.milliseconds[phase]) >= enough)


def table(found: Mapping[str, Sequence[float]], rounds: int) -> str:
    """The result as Markdown."""
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
    lines = [
        f"{date.today()}, {machine}, {PROBES_PER_SECOND} probes a second.",
        "",
        f"    python -m benchmarks.health --rounds {rounds}",
        "",
        "| the server is | probes | p50, ms | p99, ms | max, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for phase in PHASES:
        if times := sorted(found.get(phase, ())):
            p50, p99 = (times[math.ceil(share * len(times)) - 1] for share in (0.5, 0.99))
            lines.append(f"| {phase} | {len(times)} | {p50:.1f} | {p99:.1f} | {times[-1]:.1f} |")
        else:
            lines.append(f"| {phase} | 0 | not answered | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
