"""A stand-in for the Hub on this machine: a real HTTP server over folders, with faults that can be switched on.

Independent of what asks it. It holds no file of a repository in memory but the one that it sends.

    with serve_tiny(tiny_files) as hub:
        environment = hub.environment(tmp_path)                       # HF_ENDPOINT, HF_HOME, no token
        hub.fault("model.safetensors", effect="cut", times=2)         # twice half a body, then the connection ends
        hub.fault("/revision/", status=429, retry_after_s=0)          # once
        held = hub.fault("resolve", effect="hold")                    # held.reached.wait(), held.release()
        hub.count("resolve")                                          # requests whose path holds that
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import unquote

from inference import catalog
from inference.catalog import ModelFiles

Effect = Literal["", "drop", "cut", "corrupt", "hold", "slow"]
LFS_SUFFIXES = (".safetensors", ".pth", ".model")
CHUNK_BYTES = 1 << 16
SLOW_CHUNKS = 50  # a slow body comes in so many pieces
SLOW_PIECE_S = 0.02
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time: the other side sees a reset
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Fault:
    """What happens to the next `times` requests (None: to all) whose path holds `path`, instead of a right answer.

    A `status` other than 0 is answered as it is; an `effect` spoils the connection or the body:
    drop (reset before an answer), cut (half the body), corrupt (right size, wrong bytes), hold (half the body, the rest
    after `release`), slow (a second or so for a body).
    """

    path: str
    times: int | None = 1
    method: str | None = None  # "HEAD" or "GET" only
    status: int = 0
    body: bytes | None = None  # a whole answer, with status 200
    error_code: str = ""  # X-Error-Code
    retry_after_s: int | None = None
    effect: Effect = ""
    reached: threading.Event = field(default_factory=threading.Event)  # a request met this fault
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let go what an effect "hold" holds back, now and later."""
        self.released.set()


@dataclass(frozen=True)
class Request:
    """One request that came in. `path` is decoded and has no query."""

    method: str
    path: str
    range: str | None
    token: str | None


class HubServer:
    """Serves `root/owner/name/…`, each folder a repository with one commit. A context manager.

    `commits` names the commits; where it does not, one is made from the repository's name.
    """

    def __init__(self, root: Path, commits: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.commits = dict(commits or {})
        self.prefix = ""  # of every path
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._tokens: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._digests: dict[Path, tuple[tuple[int, int], str, str]] = {}
        self._lock = threading.Lock()  # of all the above
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name="hub")

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.closing.set()
        for fault in self._faults:
            fault.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def environment(self, home: Path) -> dict[str, str]:
        """The variables that make a program use this Hub, with its cache under `home`."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}

    # -- what a test switches

    def fault(
        self,
        path: str,
        *,
        times: int | None = 1,
        method: str | None = None,
        status: int = 0,
        error_code: str = "",
        retry_after_s: int | None = None,
        effect: Effect = "",
        body: bytes | None = None,
    ) -> Fault:
        """Switch a fault on; the first one that fits a request and is not used up happens to it."""
        assert bool(status) + bool(effect) + (body is not None) == 1, "a fault is a status, an effect or a body"
        fault = Fault(path, times, method, status, body, error_code, retry_after_s, effect)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Switch all faults off."""
        with self._lock:
            healed, self._faults = self._faults, []
        for fault in healed:
            fault.release()

    def gate(self, repository: str, token: str) -> None:
        """From now on the repository's files need that token."""
        self._tokens[repository] = token

    def write(self, repository: str, path: str, content: bytes) -> None:
        """Put a file into a repository, in place of the one that is there."""
        target = self.root / repository / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # it may be a link to a file that others use
        target.write_bytes(content)

    # -- what a test asks

    def count(self, part: str = "", method: str | None = None) -> int:
        """How many requests held `part` in their path."""
        with self._lock:
            return sum(part in request.path and method in (None, request.method) for request in self.requests)

    def forget(self) -> None:
        """Count from here."""
        with self._lock:
            self.requests.clear()

    def commit(self, repository: str) -> str:
        """The commit of the repository's default branch."""
        return self.commits.get(repository) or hashlib.sha1(repository.encode()).hexdigest()

    def files(self, repository: str) -> dict[str, Path]:
        """Path in the repository -> file."""
        folder = self.root / repository
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def size_bytes(self, repository: str, *unwanted: str) -> int:
        """Of all its files but the unwanted."""
        return sum(path.stat().st_size for name, path in self.files(repository).items() if name not in unwanted)

    # -- what the request handlers ask

    def note(self, request: Request) -> Fault | None:
        """Count the request; the fault that happens to it, if any."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                fits = fault.path in request.path and fault.method in (None, request.method)
                if fits and fault.times != 0:
                    fault.times = fault.times and fault.times - 1
                    return fault
        return None

    def allows(self, repository: str, token: str | None) -> bool:
        """True when the token opens the repository's files."""
        return repository not in self._tokens or token == self._tokens[repository]

    def digests(self, path: Path) -> tuple[str, str]:
        """(git's blob id, sha256) of a file, computed once as long as it stays the same."""
        status = path.stat()
        key = (status.st_size, status.st_mtime_ns)
        with self._lock:
            if path not in self._digests or self._digests[path][0] != key:
                content = path.read_bytes()
                git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self._digests[path] = (key, git_id, hashlib.sha256(content).hexdigest())
            return self._digests[path][1:]


class TinyHub(HubServer):
    """The tiny model as three real repositories of English and of a second one, whose commit nobody has pinned.

    Its folder of links goes away with it.
    """

    def __init__(self, files: ModelFiles) -> None:
        root = Path(tempfile.mkdtemp(prefix="hub-"))
        pinned = catalog.find("en-cot")
        unpinned = catalog.find("zh-cot")
        folders = [
            (pinned.stage1, files.stage1),
            (unpinned.stage1, files.stage1),
            (pinned.stage2, files.stage2),
            (pinned.codec, files.codec),
        ]
        for repository, folder in folders:
            shutil.copytree(folder, root / repository.name, copy_function=_link)
            (root / repository.name / "README.md").write_text("Not needed to generate songs.\n")
        super().__init__(root, {to.name: to.revision for to, _ in folders if to.revision is not None})

    def __exit__(self, *reason: object) -> None:
        super().__exit__(None, None, None)
        shutil.rmtree(self.root)


def serve_tiny(tiny_files: ModelFiles) -> HubServer:
    """A Hub that holds the tiny set under the names of the real repositories (`en-cot` pinned, `zh-cot` not)."""
    return TinyHub(tiny_files)


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(Path(source).absolute())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed are part of the tests."""


class _Answer(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        path = unquote(self.path.split("?")[0])
        if not path.startswith(hub.prefix):
            self._refuse(404, "")
            return
        path = path.removeprefix(hub.prefix)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        fault = hub.note(Request(self.command, path, self.headers["Range"], token))
        if fault:
            fault.reached.set()
        if fault and fault.status:
            self._refuse(fault.status, fault.error_code, fault.retry_after_s)
        elif fault and fault.body is not None:
            self._send(fault.body, {}, "text/html")
        elif fault and fault.effect == "drop":
            self._drop()
        else:
            self._route(path, token, fault.effect if fault else "", fault)

    def _route(self, path: str, token: str | None, effect: Effect, fault: Fault | None) -> None:
        """/api/models/O/N[/revision/R], /api/models/O/N/tree/R, /O/N/resolve/R/FILE"""
        hub = self.server.hub
        asks_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/", 4)
        owner, name, what, revision, file = parts + [""] * (5 - len(parts))
        repository, revision = f"{owner}/{name}", revision or "main"
        if not name or not (hub.root / repository).is_dir():
            self._refuse(401, "RepoNotFound")
        elif revision not in ("main", hub.commit(repository)):
            self._refuse(404, "RevisionNotFound")
        elif asks_api and what == "tree":
            self._send(json.dumps(self._tree(repository)).encode(), {}, "application/json")
        elif asks_api:
            answer = {"id": repository, "sha": hub.commit(repository), "siblings": []}
            self._send(json.dumps(answer).encode(), {}, "application/json")
        elif not hub.allows(repository, token):
            self._refuse(403, "GatedRepo")
        else:
            self._send_file(repository, file, effect, fault)

    def _tree(self, repository: str) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for name, path in self.server.hub.files(repository).items():
            git_id, sha256 = self.server.hub.digests(path)
            size = path.stat().st_size
            entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": git_id}
            if name.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 135}
            entries.append(entry)
        return entries

    def _send_file(self, repository: str, name: str, effect: Effect, fault: Fault | None) -> None:
        path = self.server.hub.files(repository).get(name)
        if path is None:
            self._refuse(404, "EntryNotFound")
            return
        git_id, sha256 = self.server.hub.digests(path)
        etag = sha256 if name.endswith(LFS_SUFFIXES) else git_id
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.hub.commit(repository), "Accept-Ranges": "bytes"}
        if name.endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(path.stat().st_size)}
        self._send(path.read_bytes(), headers, "application/octet-stream", effect, fault)

    def _send(
        self, body: bytes, headers: Mapping[str, str], kind: str, effect: Effect = "", fault: Fault | None = None
    ) -> None:
        if effect == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        status = 200
        if match := _RANGE.fullmatch(self.headers["Range"] or ""):
            first, last = int(match[1]), int(match[2] or len(body) - 1)
            if first >= len(body):
                self._refuse(416, "")
                return
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        self._head(status, len(body), {**headers, "Content-Type": kind})
        if self.command == "GET":
            self._write(body, effect, fault)

    def _write(self, body: bytes, effect: Effect, fault: Fault | None) -> None:
        half = len(body) // 2
        if effect == "cut":
            self.wfile.write(body[:half])
            self.close_connection = True
        elif effect == "hold":
            assert fault is not None
            self.wfile.write(body[:half])
            fault.released.wait()
            self.wfile.write(body[half:])
        elif effect == "slow":
            for piece in _pieces(body, max(len(body) // SLOW_CHUNKS, 1)):
                self.wfile.write(piece)
                self.server.hub.closing.wait(SLOW_PIECE_S)
        else:
            for piece in _pieces(body, CHUNK_BYTES):
                self.wfile.write(piece)

    def _refuse(self, status: int, error_code: str, retry_after_s: int | None = None) -> None:
        headers = {"X-Error-Code": error_code} if error_code else {}
        if retry_after_s is not None:
            headers["Retry-After"] = str(retry_after_s)
        self._head(status, 0, headers)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _drop(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def _pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))
