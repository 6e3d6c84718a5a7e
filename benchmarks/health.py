"""Measures how soon the real server answers /health while it downloads, loads and sings.

    python -m benchmarks.health

It knows nothing of how the server does it: a prober asks over HTTP, a new connection each time, as platforms do. The
weights are the tiny model's, from a slow stand-in for the Hub on the same machine.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from inference import tiny
from tests.hub_server import serve_tiny
from tests.real_server import RealServer, until

PROBES_PER_SECOND = 20
SONG = {"genres": "pop", "lyrics": "[verse]\nla la la\n\n[chorus]\nla", "max_new_tokens": 1_500}
PHASES = ("nothing loaded", "downloading", "loading", "ready", "singing")


class Prober:
    """Asks /health at a steady pace until it is stopped; what the server said it was doing sorts the answers."""

    def __init__(self, server: RealServer) -> None:
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.singing = False
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
            began = time.perf_counter()
            status, health = self._server.ask("/health")
            milliseconds = 1_000 * (time.perf_counter() - began)
            assert status == 200, health
            self.milliseconds[self._phase(health["models"]["status"])].append(milliseconds)
            due += 1 / PROBES_PER_SECOND

    def _phase(self, status: str) -> str:
        if status == "ready" and self.singing:
            return "singing"
        return "nothing loaded" if status == "not_loaded" else status


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="How soon /health is answered, whatever the server does.")
    parser.add_argument("--rounds", type=int, default=3, help="servers to start, one after the other (default: 3)")
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="health-") as folder:
        for number in range(rounds):
            for phase, milliseconds in one_life(Path(folder) / str(number)).items():
                found[phase] += milliseconds
    print(table(found, rounds))


def one_life(folder: Path) -> Mapping[str, Sequence[float]]:
    """Phase -> milliseconds of each answer, from a server's first answer to the end of its first song."""
    files = tiny.ensure(folder / "tiny")
    with serve_tiny(files) as hub:
        hub.fault("/resolve/", times=None, method="GET", effect="slow")
        settings = {**hub.environment(folder), "XDG_CACHE_HOME": str(folder / "cache"), "YUE_MODEL": "en-cot"}
        with RealServer(settings) as server:
            server.wait_until_answered()
            with Prober(server) as prober:
                until(lambda: len(prober.milliseconds["nothing loaded"]) >= PROBES_PER_SECOND)
                status, answer = server.ask("/download-models", {})
                assert status == 200, answer
                prober.singing = True
                status, prediction = server.sing(**SONG)
                assert status == 200, prediction
                prober.singing = False
    return prober.milliseconds


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
    return "\n".join(lines)


if __name__ == "__main__":
    main()
