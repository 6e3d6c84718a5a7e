"""The real server in a process of its own, for tests and measurements; and what is left when it ends.

Independent of the app that is served and of what is asked of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from tests.support.paths import PROJECT

SECONDS = 60.0  # the longest that anything may take on a busy machine
Found = TypeVar("Found")
LOOK_SECONDS = 0.02  # between two looks at something that cannot be waited for
OWN_SETTINGS = ("YUE_", "AIP_", "HF_", "GOOGLE_CLOUD_PROJECT")


class RealServer:
    """gunicorn on a free port, with the project's own configuration, and its own app or another. A context manager."""

    def __init__(self, settings: Mapping[str, str], app: str | None = None, files: int | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        foreign = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
        self.url = f"http://127.0.0.1:{port}"
        self.key = ""  # that is sent with every request
        self.port = port
        command = [sys.executable, "-m", "gunicorn", *([app] if app else [])]
        # As many files as may be open at once; the shell makes way for the server.
        self._command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command] if files else command
        self._data = tempfile.TemporaryDirectory()
        here = {"PORT": str(port), "PYTHONUNBUFFERED": "1", "YUE_DATA": self._data.name}
        self._environment = {**foreign, **here, **settings}
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __enter__(self) -> RealServer:
        self._log: IO[bytes] = tempfile.TemporaryFile("a+b")  # appending: reading must not move its end
        self.process = subprocess.Popen(
            self._command,
            cwd=PROJECT,
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if error is not None:
            error.add_note(self.log())
        self._log.close()
        self._data.cleanup()

    def log(self) -> str:
        """All that the server has written."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def wait_until_answered(self, seconds: float = SECONDS) -> tuple[int, Any]:
        """The first answer of /health."""

        def answer() -> tuple[int, Any] | None:
            assert self.process.poll() is None, self.log()
            try:
                return self.ask("/health")
            except urllib.error.URLError:
                return None

        return until(answer, seconds)

    def ask(self, path: str, body: object = None, method: str | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-API-Key": self.key}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with self._open(request, timeout=SECONDS) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def models(self) -> Any:
        """What /models/status says."""
        return self.ask("/models/status")[1]

    def metrics(self) -> dict[str, float]:
        """What /metrics says, of what has no labels."""
        with self._open(f"{self.url}/metrics", timeout=SECONDS) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}

    def generate(self, **fields: object) -> tuple[int, Any]:
        """The status, and the prediction of one instance or its problem."""
        status, answer = self.ask("/predict", {"instances": [fields]})
        return status, answer["predictions"][0] if status == 200 else answer

    def children(self, module: str) -> list[int]:
        """The ids of the server's processes that run that module."""
        return [pid for pid in descendants(self.process.pid) if module in command_line(pid)]

    def kill(self) -> None:
        """End all its processes at once, as a machine does that is lost."""
        for pid in (self.process.pid, *descendants(self.process.pid)):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float = SECONDS) -> int:
        """Its exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def until(look: Callable[[], Found | None], seconds: float = SECONDS) -> Found:
    """What `look` finds, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(LOOK_SECONDS)
    return found


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have. Linux only."""
    listed = {int(folder.name): _state_and_parent(folder) for folder in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for known in found:
        found += [child for child, (_, parent) in listed.items() if parent == known]
    return found[1:]


def command_line(pid: int) -> str:
    """How a process was started; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """True while a process is there and no zombie."""
    return _state_and_parent(Path(f"/proc/{pid}"))[0] not in ("", "Z", "X")


def _state_and_parent(folder: Path) -> tuple[str, int]:
    """Of a process, by its folder in /proc: `pid (name) state parent …`, where the name may hold anything."""
    try:
        state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return state, int(parent)
