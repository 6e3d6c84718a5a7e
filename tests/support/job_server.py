"""A small real HTTP server that plays the life of one song, for the tests of what talks to a server.

Independent of the real server's code; it shares only the shape of requests and answers with it.
Run as a program with a port, it plays a whole life on that port; with `endless` too, a song that never ends.
"""

from __future__ import annotations

import base64
import contextlib
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
STREAM = b"".join(b"%05d " % number for number in range(5_000))  # every part of it says where it is
STREAM_URL = f"/jobs/{JOB_ID}/stream/mix.mp3"
CHECKED: Json = {
    "ok": True,
    "sections": [
        {"number": 1, "tag": "intro", "line": 1, "lines": [], "generated": True, "expected_seconds": 15.0},
        {"number": 2, "tag": "verse", "line": 12, "lines": ["a", "b"], "generated": True, "expected_seconds": 25.4},
        {"number": 3, "tag": "outro", "line": 15, "lines": ["c"], "generated": False, "expected_seconds": 0.0},
    ],
    "expected_seconds": 40.4,
    "warnings": [{"line": 1, "lines": [1], "detail": "lyrics (line 1): [intro] comes first"}],
    "errors": [],
}
RESULT: Json = {**DONE, "audio": base64.b64encode(AUDIO).decode()}


def running(stage: str, fraction: float, section: int = 0, seconds_left: float | None = None) -> Json:
    progress = {"stage": stage, "section": section, "sections": 3, "fraction": fraction, "seconds_left": seconds_left}
    return {"job_id": JOB_ID, "status": "running", "progress": progress}


LIFE = (QUEUED, QUEUED, running("stage1", 0.2, 1, 41.0), running("stage1", 0.4, 2), running("stage2", 0.8), DONE)


class JobServer(ThreadingHTTPServer):
    """Answers from scripts: the last entry of each is repeated for ever.

    `submitted` answers a song (a Json with a `title` is a problem, sent with its status), `life` the looks at the
    job, `models` the looks at the models, `result` the fetching, `checked` the checks. `instances` holds all that was
    asked. STREAM is streamed, cut before each of the places in `cuts`, in `ranges` or always from its start.
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
        checked: Json = CHECKED,
        cuts: Sequence[int] = (),
        ranges: bool = True,
    ) -> None:
        super().__init__((host, port), _Handler)
        self.life, self.models, self.submitted, self.result = list(life), list(models), submitted, result
        self.checked, self.cuts, self.ranges = checked, list(cuts), ranges
        self.streamed: list[str | None] = []  # the header Range of each request for the stream
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
            case "check":
                return self.checked
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
        if self.path == STREAM_URL:
            self._stream(self.headers["Range"])
        else:
            self._send(200, "audio/mpeg", AUDIO)

    def _stream(self, wanted: str | None) -> None:
        """The stream in chunks, or the part of it that is there now, which ends at the next cut."""
        self.server.streamed.append(wanted)
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        end = self.server.cuts.pop(0) if self.server.cuts else len(STREAM)
        self.protocol_version, self.close_connection = "HTTP/1.1", True
        if begin:
            total = len(STREAM) if end == len(STREAM) else "*"
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{total}")
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            self.wfile.write(STREAM[begin:end])
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for at in range(0, end, 1_000):
                part = STREAM[at : min(end, at + 1_000)]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            if end == len(STREAM):
                self.wfile.write(b"0\r\n\r\n")


def _next(script: list[Json]) -> Json:
    return script.pop(0) if len(script) > 1 else script[0]


if __name__ == "__main__":
    life = (running("stage1", 0.2, 1),) if "endless" in sys.argv else LIFE
    JobServer(life, port=int(sys.argv[1])).serve_forever()
