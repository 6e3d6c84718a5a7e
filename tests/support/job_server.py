"""A small real HTTP server that plays the life of one song, for the tests of what talks to a server.

Independent of the real server's code; it shares only the shape of requests and answers with it.
Run as a program with a port, it plays a whole life on that port; with `endless` too, a song that never ends.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from typing import Any

from tests.support.http_handler import QuietHandler

Json = dict[str, Any]

JOB_ID = "job-1"
AUDIO = b"ID3 the bytes of a song"
QUEUED: Json = {"job_id": JOB_ID, "status": "queued"}
DOWNLOADING: Json = {"status": "downloading", "download": {"bytes_done": 12, "bytes_total": 100}, "loading": None}
LOADING: Json = {"status": "loading", "download": {}, "loading": "stage1"}
READY: Json = {"status": "ready"}
DONE: Json = {
    "job_id": JOB_ID,
    "status": "succeeded",
    "progress": {"stage": "encode", "fraction": 1.0},
    "mime_type": "audio/mpeg",
    "format": "mp3",
    "sample_rate": 44_100,
    "duration_seconds": 12.34,
    "seed": 7,
    "warnings": ["lyrics: [intro] comes first"],
    "tracks": {"mix": {"mime_type": "audio/mpeg", "bytes": len(AUDIO), "url": f"/jobs/{JOB_ID}/audio/mix.mp3"}},
}
RESULT: Json = {**DONE, "audio": base64.b64encode(AUDIO).decode()}


def running(stage: str, fraction: float, section: int = 0, seconds_left: float | None = None) -> Json:
    progress = {"stage": stage, "section": section, "sections": 3, "fraction": fraction, "seconds_left": seconds_left}
    return {"job_id": JOB_ID, "status": "running", "progress": progress}


LIFE = (QUEUED, QUEUED, running("stage1", 0.2, 1, 41.0), running("stage1", 0.4, 2), running("stage2", 0.8), DONE)


class JobServer(ThreadingHTTPServer):
    """Answers from scripts: the last entry of each is repeated for ever.

    `submitted` answers a song (a Json with a `title` is a problem, sent with its status), `life` the looks at the
    job, `models` the looks at the models, `result` the fetching. `instances` holds all that was asked.
    """

    daemon_threads = True

    def __init__(
        self,
        life: Sequence[Json] = LIFE,
        models: Sequence[Json] = (DOWNLOADING, LOADING, READY),
        submitted: Json = QUEUED,
        result: Json = RESULT,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__((host, port), _Handler)
        self.life, self.models, self.submitted, self.result = list(life), list(models), submitted, result
        self.instances: list[Json] = []
        self.keys: list[str | None] = []  # those that requests came with
        self.looked = threading.Event()  # set by the first look at the job

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def prediction(self, instance: Json) -> Json:
        self.instances.append(instance)
        match instance.get("operation"):
            case None:
                return self.submitted
            case "models/status":
                return _next(self.models)
            case "status":
                self.looked.set()
                return _next(self.life)
            case "result":
                return self.result
            case "cancel":
                self.life = [{"job_id": JOB_ID, "status": "cancelled"}]
                return self.life[0]
            case "download-models":
                return {"status": "accepted", "message": "begun", "models": DOWNLOADING}
            case other:
                return {"error": {"title": "Unknown operation", "detail": f"operation: got {other!r}"}}


class _Handler(QuietHandler):
    server: JobServer

    def do_POST(self) -> None:
        assert self.path == "/predict"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        (instance,) = json.loads(body)["instances"]
        self.server.keys.append(self.headers["X-API-Key"])
        answer = self.server.prediction(instance)
        if "title" in answer:
            self._send(answer["status"], "application/problem+json", json.dumps(answer).encode())
        else:
            self._send(200, "application/json", json.dumps({"predictions": [answer]}).encode())

    def do_GET(self) -> None:
        self._send(200, "audio/mpeg", AUDIO)


def _next(script: list[Json]) -> Json:
    return script.pop(0) if len(script) > 1 else script[0]


if __name__ == "__main__":
    life = (running("stage1", 0.2, 1),) if "endless" in sys.argv else LIFE
    JobServer(life, port=int(sys.argv[1])).serve_forever()
