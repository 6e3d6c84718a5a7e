"""Measures how long clients with the key wait while others without it flood the real server.

    python -m benchmarks.flood

It uses HTTP alone. The flood comes from a process of its own; songs are a light engine's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date

from tests.support.real_server import RealServer

KEY = "a-key-that-is-long-enough"
PROBE_SECONDS = 0.05  # between an answer and the next request
BURST = 1_000
PER_SECOND = 40
HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
HALF_BODY = HEAD + b"Content-Length: 100000\r\n\r\n["
REQUESTS = {
    "half a head": HEAD[:40],
    "half a body": HALF_BODY,
    "half a body in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n[",
    "a body still to be sent": HEAD + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n",
    "no HTTP": b"GET\r\n\r\n",
    "200 requests": b"GET /jobs HTTP/1.1\r\nHost: here\r\n\r\n" * 200,
    "nothing": b"",
}
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection
Probe = tuple[str, object]
PROBES: tuple[Probe, ...] = (
    ("/jobs", None),
    ("/models/status", None),
    ("/predict", {"instances": [{"operation": "models/status"}]}),
)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="How long clients with the key wait while others flood the server.")
    parser.add_argument("--seconds", type=float, default=20, help="how long each flood lasts (default: 20)")
    seconds = parser.parse_args().seconds
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{date.today()}, {machine}\n\n    python -m benchmarks.flood --seconds {seconds:g}\n")
    print("| flood | requests with the key | p50, ms | max, ms |\n|---|---:|---:|---:|")
    for name, content in REQUESTS.items():
        print(row(f"{BURST} at once: {name}", burst, content, seconds), flush=True)
        print(row(f"{PER_SECOND} a second: {name}", stream, content, seconds, PER_SECOND), flush=True)
    print(row(f"{BURST} a second, reset at once: half a body", reset, HALF_BODY, seconds, BURST), flush=True)


def row(name: str, flood: Callable[..., None], *arguments: object) -> str:
    """One server, one flood, and the answers that clients with the key got."""
    with RealServer({"YUE_API_KEY": KEY}, "tests.support.light_engine:light_app()") as server:
        server.key = KEY
        server.wait_until_answered()
        milliseconds: list[float] = []
        stop = threading.Event()
        threads = [threading.Thread(target=probe, args=(server, *each, milliseconds, stop)) for each in PROBES]
        flooding = multiprocessing.get_context("spawn").Process(target=flood, args=(server.port, *arguments))
        flooding.start()
        for thread in threads:
            thread.start()
        flooding.join()
        stop.set()
        for thread in threads:
            thread.join()
        server.kill()
    milliseconds.sort()
    return f"| {name} | {len(milliseconds)} | {milliseconds[len(milliseconds) // 2]:.1f} | {milliseconds[-1]:.0f} |"


def probe(server: RealServer, path: str, body: object, milliseconds: list[float], stop: threading.Event) -> None:
    """Send requests with the key, over a new connection each time, until stopped."""
    while not stop.wait(PROBE_SECONDS):
        began = time.perf_counter()
        status, answer = server.ask(path, body)
        milliseconds.append(1_000 * (time.perf_counter() - began))
        assert status == 200, answer


def burst(port: int, content: bytes, seconds: float) -> None:
    """All at once, over connections that stay open."""
    connections = [connect(port) for _ in range(BURST)]
    for connection in connections:
        send(connection, content)
    time.sleep(seconds)


def stream(port: int, content: bytes, seconds: float, per_second: int) -> None:
    """So many a second, over connections that stay open."""
    held = []
    for due in ticks(seconds, per_second):
        held.append(connect(port))
        send(held[-1], content)
        time.sleep(max(0.0, due - time.monotonic()))


def reset(port: int, content: bytes, seconds: float, per_second: int) -> None:
    """Send `content` so many times a second, each over a connection that is reset afterwards."""
    for due in ticks(seconds, per_second):
        with connect(port) as connection:
            send(connection, content)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        time.sleep(max(0.0, due - time.monotonic()))


def ticks(seconds: float, per_second: int) -> list[float]:
    """The moments at which the next one is due."""
    began = time.monotonic()
    return [began + number / per_second for number in range(1, round(seconds * per_second) + 1)]


def connect(port: int) -> socket.socket:
    """A connection, with as many open files allowed as possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    return socket.create_connection(("127.0.0.1", port))


def send(connection: socket.socket, content: bytes) -> None:
    """Send what can be sent without waiting; ignore a closed connection."""
    connection.setblocking(False)
    with suppress(OSError):
        connection.send(content)


if __name__ == "__main__":
    main()
