"""Measures how soon a song is heard while it is generated: on the real server with the demo model.

    python -m benchmarks.listen

A listener opens the stream as soon as the song is accepted, while another client follows the song's events. Stage 2
has done the first piece of both tracks when the events say two rows; decoding, mixing, storing and encoding come after
that.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from typing import Any

from tests.support.real_server import RealServer

LYRICS = "\n\n".join(f"[{tag}]\nThe kettle hums, the window glows" for tag in ("verse", "chorus", "verse", "outro"))
SONG = {"genres": "folk calm", "lyrics": LYRICS, "max_new_tokens": 1_800}
FORMATS = ("mp3", "ogg", "wav")
SECONDS = 600.0
HEADINGS = (
    "format",
    "first piece after, s",
    "first byte after the piece, s",
    "song done after, s",
    "stream done after, s",
)


@dataclass
class Times:
    """Moments of one song, in seconds since it was accepted."""

    first_piece: float = 0.0
    first_byte: float = 0.0
    song: float = 0.0
    stream: float = 0.0


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    print(f"{date.today()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}\n")
    print(f"| {' | '.join(HEADINGS)} |\n|---|{'---:|' * (len(HEADINGS) - 1)}")
    with RealServer({"YUE_MODEL": "tiny", "YUE_LOADING": "startup"}) as server:
        while server.wait_until_answered()[0] != 200:
            time.sleep(1.0)
        for seed in range(options.songs):
            for audio_format in FORMATS:
                times = measure(server, {**SONG, "seed": seed, "wait_seconds": 0}, audio_format)
                seconds = times.first_piece, times.first_byte - times.first_piece, times.song, times.stream
                print(f"| {audio_format} | {' | '.join(f'{each:.2f}' for each in seconds)} |", flush=True)


def measure(server: RealServer, song: dict[str, object], audio_format: str) -> Times:
    """Generate one song with a listener."""
    began, times = time.perf_counter(), Times()
    job_id = server.generate(**song)[1]["job_id"]

    def follow() -> None:
        for event in _events(server, job_id):
            now = time.perf_counter() - began
            if not times.first_piece and event["progress"] and event["progress"]["rows"] >= 2:
                times.first_piece = now
        times.song = time.perf_counter() - began

    follower = threading.Thread(target=follow)
    follower.start()
    with closing(_asked(server, f"/jobs/{job_id}/stream/mix.{audio_format}")) as response:
        assert response.status == 200, response.read()
        response.read(1)
        times.first_byte = time.perf_counter() - began
        response.read()
        times.stream = time.perf_counter() - began
    follower.join()
    return times


def _events(server: RealServer, job_id: str) -> Iterator[Any]:
    with closing(_asked(server, f"/jobs/{job_id}/events")) as response:
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


def _asked(server: RealServer, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    connection.request("GET", path, headers={"Connection": "close"})
    return connection.getresponse()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=3, help="songs for each format")
    return parser


if __name__ == "__main__":
    main()
