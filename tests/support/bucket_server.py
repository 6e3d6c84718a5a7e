"""A stand-in for Google's bucket service, as far as its XML API is used: objects, preconditions, ranges, pages.

Independent of jobs. What the real service refuses is refused here too.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from obstore.store import GCSStore

from storage import Storage
from tests.support.threaded import answering

BUCKET = "songs"
PAGE = 50  # far fewer than the real 1000, so that there are several


class BucketServer(ThreadingHTTPServer):
    """One bucket in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}  # name -> content, generation
        self.generation = 0
        self.refusal = 0  # the status that every request is answered with; 0: what it asks for
        self.lock = threading.Lock()

    def storage(self, folder: str) -> Storage:
        """That folder of the bucket, through the client that the server uses."""
        account = {"gcs_base_url": f"http://127.0.0.1:{self.server_address[1]}", "disable_oauth": True}
        key = json.dumps({**account, "client_email": "", "private_key": "", "private_key_id": ""})
        store = GCSStore(
            BUCKET,
            prefix=folder,
            service_account_key=key,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        return Storage(store, f"gs://{BUCKET}/{folder}")


@contextmanager
def bucket_server() -> Iterator[BucketServer]:
    with answering(BucketServer()) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    server: BucketServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet, or it waits for the other side's word

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed and self.server.refusal:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._refuse(self.server.refusal, "AccessDenied" if self.server.refusal == 403 else "NoSuchBucket")
            self.wfile.flush()
            return False
        return parsed

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        condition = self.headers.get("x-goog-if-generation-match")
        with self.server.lock:
            _, generation = self.server.objects.get(self._name(), (b"", 0))
            if condition is not None and int(condition) != generation:
                return self._refuse(412, "PreconditionFailed")
            self.server.generation += 1
            self.server.objects[self._name()] = content, self.server.generation
        self._answer(200, b"", {"ETag": f'"{self.server.generation}"'})

    def do_GET(self) -> None:
        if not self._name():
            return self._list()
        found = self.server.objects.get(self._name())
        if found is None:
            return self._refuse(404, "NoSuchKey")
        content, generation = found
        wanted, status, headers = content, 200, {"ETag": f'"{generation}"', "Last-Modified": formatdate(usegmt=True)}
        if spoken := self.headers.get("Range"):
            first, _, last = spoken.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            if int(first) >= len(content):
                return self._refuse(416, "InvalidRange")
            wanted, status = content[int(first) : end], 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        self._answer(status, wanted, headers)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        with self.server.lock:
            found = self.server.objects.pop(self._name(), None)
        if found is None:
            return self._refuse(404, "NoSuchKey")
        self._answer(204, b"", {})

    def _list(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        with self.server.lock:
            objects = sorted(self.server.objects.items())
        after = asked.get("continuation-token", "")
        found = [item for item in objects if item[0].startswith(asked.get("prefix", "")) and item[0] > after]
        page, more = found[:PAGE], len(found) > PAGE
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(content)}</Size><ETag>{_etag(content, generation)}</ETag>"
            "<LastModified>2026-01-02T03:04:05.678Z</LastModified></Contents>"
            for name, (content, generation) in page
        )
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        truncated = "true" if more else "false"
        body = f"<ListBucketResult>{contents}{token}<IsTruncated>{truncated}</IsTruncated></ListBucketResult>"
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _name(self) -> str:
        """The object's name; nothing for the bucket itself."""
        bucket, _, name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        assert bucket == BUCKET, self.path
        return name

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if status != 204 or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The tests' output is theirs."""


def _etag(content: bytes, generation: int) -> str:
    return f"&quot;{hashlib.md5(content, usedforsecurity=False).hexdigest()}-{generation}&quot;"
