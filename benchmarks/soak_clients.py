"""Clients of two servers that come and go: some wait, some disconnect, some ask again, some cancel.

They are independent of who ends the servers, and when.
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tests.support.real_server import RealServer, descendants

SONG = {"genres": "pop", "lyrics": "[verse]\nla la la", "segments": 1, "max_new_tokens": 100}
HABITS = ("waits", "waits", "disconnects", "asks again", "cancels")  # one for each song, in turn
ASK_SECONDS = 60.0
PAUSE_SECONDS = 0.1
WAIT_SECONDS = 3
Json = dict[str, Any]


@dataclass
class Found:
    """All that was seen. Any thread may add to it."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    jobs: dict[int, str] = field(default_factory=dict)  # song -> the job that its key was answered with
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def violation(self, what: str) -> None:
        with self.lock:
            self.violations.append(what)

    def accepted(self, number: int, job_id: str) -> None:
        """A server has answered the song's key with that job: it must be the same for ever."""
        with self.lock:
            known = self.jobs.setdefault(number, job_id)
            if known != job_id:
                self.violations.append(f"song {number}: its key was job {known}, and is job {job_id} now")


class ServerSlot:
    """One server of the soak test, started again whenever it has ended."""

    def __init__(self, name: str, settings: Json, app: str | None) -> None:
        self._settings, self._app = settings, app
        self.name = name
        self.logs: list[str] = []
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        self.server = self._stack.enter_context(RealServer(self._settings, self._app))
        self.server.wait_until_answered()

    def leave(self) -> None:
        self.logs.append(self.server.log())
        self._stack.close()

    @property
    def worker(self) -> int:
        """The process that answers; 0 while there is none."""
        children = [pid for pid in self.server.children("gunicorn") if pid != self.server.process.pid]
        return children[0] if children else 0

    @property
    def engines(self) -> list[int]:
        return [pid for pid in descendants(self.server.process.pid) if pid != self.worker]


class Client:
    """Clients, one after the other, each with a habit."""

    def __init__(self, slots: Sequence[ServerSlot], found: Found, seed: int) -> None:
        self._slots, self._found, self._seed = slots, found, seed

    def take_all(self, numbers: queue.Queue[int | None]) -> None:
        """Request the songs of the queue until there is a None."""
        while (number := numbers.get()) is not None:
            try:
                self._order(number)
            except Exception as error:
                self._found.violation(f"song {number}: {error!r}")

    def _order(self, number: int) -> None:
        draw = random.Random(f"{self._seed}-{number}")
        habit = HABITS[number % len(HABITS)]
        slot = draw.choice(self._slots)
        self._found.count(f"who {habit}")
        if habit == "disconnects":
            disconnect(slot, self.body(number, WAIT_SECONDS), draw.choice((0.0, 0.05, 0.3)), draw.random() < 0.3)
            return
        first = self.submit(number, slot, 0 if habit == "cancels" else WAIT_SECONDS)
        other = draw.choice(self._slots)
        if habit == "asks again":
            self._found.count("retries")
            self.submit(number, other, 0)
        elif habit == "cancels":
            time.sleep(draw.choice((0.0, 0.2, 0.5)))
            self.persist(other, f"/jobs/{first['job_id']}/cancel", method="POST")

    def submit(self, number: int, slot: ServerSlot, wait_seconds: float) -> Json:
        """Send the song, with its key, until it is accepted; what is known of it then."""
        answer = self.persist(slot, "/predict", self.body(number, wait_seconds), accept=number)
        prediction = answer.get("predictions", [answer])[0]
        prediction = prediction.get("error", prediction)
        self._found.accepted(number, prediction["job_id"])
        return dict(prediction)

    def body(self, number: int, wait_seconds: float) -> Json:
        key = f"soak-{self._seed}-{number}"
        return {"instances": [{**SONG, "seed": number, "request_id": key, "wait_seconds": wait_seconds}]}

    def persist(
        self,
        slot: ServerSlot,
        path: str,
        body: Json | None = None,
        method: str | None = None,
        accept: int | None = None,
    ) -> Json:
        """Ask until there is an answer that is no refusal, at that server or, when it does not answer, the other."""
        end = time.monotonic() + ASK_SECONDS
        while time.monotonic() < end:
            try:
                status, answer = slot.server.ask(path, body, method)
            except (OSError, http.client.HTTPException, ValueError):
                self._found.count("no connection")
                slot = next(each for each in self._slots if each is not slot)
            else:
                if status < 300 or (accept is not None and "job_id" in answer):  # the job's own end
                    return dict(answer)
                self._found.count(f"refusal {status} {answer['type'].rsplit(':', 1)[-1]}")
                if status == 500:
                    raise AssertionError(f"{path} was answered with {answer}")
            time.sleep(PAUSE_SECONDS)
        raise AssertionError(f"{path} was not answered in {ASK_SECONDS} s")


def disconnect(slot: ServerSlot, body: Json, seconds: float, half: bool) -> None:
    """Send the request, or half of it, and hang up."""
    content = json.dumps(body).encode()
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", slot.server.port), ASK_SECONDS) as connection:
            connection.sendall(head.encode() + content[: len(content) // 2 if half else len(content)])
            time.sleep(seconds)
    except OSError:
        pass  # the server has gone before
