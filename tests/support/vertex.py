"""A stand-in for Vertex AI: starts a container's command as the platform does, probes it, and passes requests on.

It knows the platform's contract and nothing of the server behind it. It needs no project and no network:

    python -m tests.support.vertex -- ./entrypoint.sh
    python -m tests.support.vertex --dedicated --listen 9000 -- docker run --network host -e AIP_HTTP_PORT … yue-server
    python -m tests.support.vertex --invoke -- ./entrypoint.sh

What it keeps to: liveness, health and routing; what survives of a prediction; each endpoint's limits of time and size.
What it takes for granted, as it is not documented: the statuses of its own refusals, that of a client's headers only
the content type reaches the container, and that one whose every path is reached is told of no predict route.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

from tests.support.threaded import answering

ENDPOINT_ID, DEPLOYED_MODEL_ID, PROJECT_NUMBER = "4211", "9001", "123456"
ENDPOINT_PATH = f"/v1/projects/{PROJECT_NUMBER}/locations/here/endpoints/{ENDPOINT_ID}"
HEALTH_ROUTE = f"/v1/endpoints/{ENDPOINT_ID}/deployedModels/{DEPLOYED_MODEL_ID}"
PREDICT_ROUTE = f"{HEALTH_ROUTE}:predict"
INVOKE = "/invoke/"  # what follows is a path of the container's, but for its root
HOST = "127.0.0.1"
JSON = "application/json"
SURVIVES = ("predictions", "metadata")  # of a prediction's answer; the rest never reaches the client


@dataclass(frozen=True)
class Probes:
    """How often the platform looks at a container, and how much it forgives."""

    liveness_period_s: float = 10.0
    liveness_tries: int = 4  # then the container is restarted
    health_period_s: float = 10.0
    health_timeout_s: float = 10.0
    health_tries: int = 4  # then it gets no more requests, until the next 200
    grace_s: float = 30.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Limits:
    """What an endpoint puts up with."""

    timeout_s: float
    payload_bytes: int  # each way


SHARED = Limits(60.0, 1_500_000)
DEDICATED = Limits(3_600.0, 10_000_000)


@dataclass(frozen=True)
class Answer:
    """A response, on its way back."""

    status: int
    content_type: str
    body: bytes


class Deployment:
    """One container under the platform's eyes, from `with` to its end.

    `command` is started with Vertex AI's variables over `environment` and must listen on AIP_HTTP_PORT.
    SIGTERM goes to the command, or to the process that `find_main` names, given the command's id. With `invoked` every
    path of the container is reached, as for models that are uploaded with `invokeRoutePrefix: "/*"`, not one alone.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        probes: Probes = Probes(),
        output: IO[bytes] | None = None,
        find_main: Callable[[int], int] = lambda pid: pid,
        invoked: bool = False,
    ) -> None:
        self.port = free_port()
        self.invoked = invoked
        self.starts = 0
        self.left_behind = False  # True: something had to be killed after SIGTERM
        self._command, self._probes, self._output, self._find_main = list(command), probes, output, find_main
        self._environment = {**environment, **variables(self.port, invoked)}
        self._changed = threading.Condition()  # of the three fields below
        self._alive = False  # somebody listens
        self._routed = False
        self._health: int | None = None  # the last status; None: no answer
        self._ending = threading.Event()
        self._container: subprocess.Popen[bytes] | None = None
        self._code = 0

    def __enter__(self) -> Deployment:
        self._start()
        self._watchers = [threading.Thread(target=watch) for watch in (self._watch_life, self._watch_health)]
        for watcher in self._watchers:
            watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def routed(self) -> bool:
        """True while requests reach the container."""
        with self._changed:
            return self._routed

    def wait_until_alive(self, timeout_s: float) -> bool:
        """True when the container listened in time."""
        return self._wait(lambda: self._alive, timeout_s)

    def wait_until_health(self, status: int, timeout_s: float) -> bool:
        """True when a probe was answered with that status in time."""
        return self._wait(lambda: self._health == status, timeout_s)

    def wait_until_routed(self, timeout_s: float, routed: bool = True) -> bool:
        """True when requests reach the container (or no longer do), in time."""
        return self._wait(lambda: self._routed == routed, timeout_s)

    def wait_until_restarted(self, starts: int, timeout_s: float) -> bool:
        """True when the container was started so many times, in time."""
        return self._wait(lambda: self.starts >= starts, timeout_s)

    def end(self) -> int:
        """Take the deployment away, as undeploying does; the container's exit code, negative for a signal's number."""
        if not self._ending.is_set():
            self._ending.set()
            for watcher in self._watchers:
                watcher.join()
            self._code = self._stop()
        return self._code

    def call(self, body: bytes, content_type: str, timeout_s: float, path: str = PREDICT_ROUTE) -> Answer:
        """What the container answers at that path. Raises OSError, TimeoutError among them."""
        headers = {"Content-Type": content_type}
        return _request(self.port, "POST", path, timeout_s, body, headers)

    def _start(self) -> None:
        environment = self._environment
        self._container = subprocess.Popen(
            self._command, env=environment, stdout=self._output, stderr=self._output, start_new_session=True
        )
        self._note(starts=self.starts + 1)

    def _stop(self) -> int:
        """SIGTERM, then SIGKILL for all that is left: a container ends with everything in it."""
        container = self._container
        assert container is not None
        try:
            if container.poll() is None:
                os.kill(self._find_main(container.pid), signal.SIGTERM)
                container.wait(self._probes.grace_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass  # it has ended meanwhile, or will not by itself
        finally:
            with suppress(ProcessLookupError):
                os.killpg(container.pid, signal.SIGKILL)
                self.left_behind = True
        return container.wait()

    def _watch_life(self) -> None:
        """Restart what does not listen, or has ended."""
        failures = 0
        while not self._ending.wait(self._probes.liveness_period_s):
            assert self._container is not None
            alive = _listens(self.port)
            self._note(_alive=alive)
            failures = 0 if alive else failures + 1
            if failures == self._probes.liveness_tries or self._container.poll() is not None:
                self._note(_alive=False, _routed=False, _health=None)
                self._stop()
                self._start()
                failures = 0

    def _watch_health(self) -> None:
        """Route requests to what is healthy."""
        failures = 0
        while not self._ending.wait(self._probes.health_period_s):
            status = self._probe_health()
            failures = 0 if status == http.HTTPStatus.OK else failures + 1
            if not failures:
                self._note(_health=status, _routed=True)
            elif failures >= self._probes.health_tries:
                self._note(_health=status, _routed=False)
            else:
                self._note(_health=status)

    def _probe_health(self) -> int | None:
        try:
            return _request(self.port, "GET", HEALTH_ROUTE, self._probes.health_timeout_s).status
        except (OSError, http.client.HTTPException):
            return None

    def _note(self, **fields: object) -> None:
        with self._changed:
            for name, value in fields.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)


class Endpoint(ThreadingHTTPServer):
    """Where clients send `POST …/endpoints/E:predict` and `:rawPredict`, or else `POST …/endpoints/E/invoke/<path>`.

    Several may stand before one deployment.
    """

    daemon_threads = True

    def __init__(self, deployment: Deployment, limits: Limits, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.deployment, self.limits = deployment, limits
        self.token: str | None = None  # that clients need; None: none
        self.url = f"http://{HOST}:{self.server_address[1]}{ENDPOINT_PATH}"

    def predict(self, body: bytes) -> Answer:
        """JSON in, JSON out, and of that only what the platform lets through."""
        try:
            asked = json.loads(body)
        except ValueError as error:
            return _refusal(400, f"the body is no JSON: {error}")
        if not isinstance(asked, dict) or not isinstance(asked.get("instances"), list):
            return _refusal(400, "the body has no list of instances")
        answer = self.raw_predict(body, JSON)
        if answer.status != http.HTTPStatus.OK:
            return _refusal(answer.status, answer.body.decode(errors="replace"))
        try:
            predictions = json.loads(answer.body)
            kept = {name: predictions[name] for name in SURVIVES if name in predictions}
        except (ValueError, TypeError):
            return _refusal(500, "the container's answer is no JSON object")
        if not isinstance(kept.get("predictions"), list):
            return _refusal(500, "the container's answer has no list of predictions")
        return Answer(200, JSON, json.dumps({**kept, "deployedModelId": DEPLOYED_MODEL_ID}).encode())

    def raw_predict(self, body: bytes, content_type: str, path: str = PREDICT_ROUTE) -> Answer:
        """Any body in, the container's answer as it is."""
        limit = self.limits.payload_bytes
        if not self.deployment.routed:
            return _refusal(503, "no replica is healthy")
        if len(body) > limit:
            return self.too_large(len(body))
        try:
            answer = self.deployment.call(body, content_type, self.limits.timeout_s, path)
        except TimeoutError:  # the container goes on working
            return _refusal(504, f"no answer within {self.limits.timeout_s:g} s")
        except (OSError, http.client.HTTPException) as error:
            return _refusal(503, f"the container hung up: {error}")
        if len(answer.body) > limit:
            return _refusal(400, f"the answer has {len(answer.body)} bytes; allowed: up to {limit}")
        return answer

    def too_large(self, size_bytes: int) -> Answer:
        """The refusal of a request's size."""
        status = 400 if self.limits == SHARED else 413
        return _refusal(status, f"the request has {size_bytes} bytes; allowed: up to {self.limits.payload_bytes}")


@contextmanager
def endpoint(deployment: Deployment, limits: Limits, port: int = 0) -> Iterator[Endpoint]:
    """An endpoint that answers until the end of `with`."""
    with answering(Endpoint(deployment, limits, port)) as server:
        yield server


def variables(port: int, invoked: bool = False) -> dict[str, str]:
    """What Vertex AI sets in a container."""
    predict_route = {} if invoked else {"AIP_PREDICT_ROUTE": PREDICT_ROUTE}
    return {
        **predict_route,
        "AIP_HTTP_PORT": str(port),
        "AIP_HEALTH_ROUTE": HEALTH_ROUTE,
        "AIP_MODE": "PREDICTION",
        "AIP_ENDPOINT_ID": ENDPOINT_ID,
        "AIP_DEPLOYED_MODEL_ID": DEPLOYED_MODEL_ID,
        "AIP_PROJECT_NUMBER": PROJECT_NUMBER,
        "AIP_MACHINE_TYPE": "here",
        "AIP_ACCELERATOR_TYPE": "NONE",
    }


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        size_bytes = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size_bytes)
        content_type = self.headers.get("Content-Type", JSON)
        token, given = self.server.token, self.headers.get("Authorization")
        invoked = self.server.deployment.invoked
        match self.path.removeprefix(ENDPOINT_PATH):
            case _ if token and given != f"Bearer {token}":
                answer = _refusal(401, "Request had invalid authentication credentials.")
            case ":predict" if not invoked:
                answer = self.server.predict(body)
            case ":rawPredict" if not invoked:
                answer = self.server.raw_predict(body, content_type)
            case method if invoked and len(method) > len(INVOKE) and method.startswith(INVOKE):
                answer = self.server.raw_predict(body, content_type, method.removeprefix(INVOKE.rstrip("/")))
            case _:
                allowed = f"{INVOKE}<path>" if invoked else ":predict and :rawPredict"
                answer = _refusal(404, f"path: got {self.path}; allowed: {ENDPOINT_PATH}{allowed}")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """The container's log is what is of interest."""


def _request(
    port: int, method: str, path: str, timeout_s: float, body: bytes | None = None, headers: Mapping[str, str] = {}
) -> Answer:
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return Answer(response.status, response.getheader("Content-Type", ""), response.read())
    finally:
        connection.close()


def _refusal(status: int, message: str) -> Answer:
    body: dict[str, Any] = {"error": {"code": status, "message": message}}
    return Answer(status, JSON, json.dumps(body).encode())


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def main(arguments: list[str]) -> int:
    """Deploy the command behind one endpoint until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.vertex", description="A stand-in for Vertex AI.")
    parser.add_argument(
        "--dedicated", action="store_true", help="a dedicated endpoint: 3600 s, 10 MB; else 60 s, 1.5 MB"
    )
    parser.add_argument(
        "--invoke", action="store_true", help="every path is reached, at …/invoke/<path>: a dedicated endpoint, too"
    )
    parser.add_argument("--listen", type=int, default=0, metavar="PORT", help="of the endpoint (default: any)")
    parser.add_argument("command", nargs="+", help="what starts the container, after --")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    limits = DEDICATED if options.dedicated or options.invoke else SHARED
    began = time.monotonic()
    with ExitStack() as stack:
        deployment = stack.enter_context(Deployment(options.command, os.environ, invoked=options.invoke))
        front = stack.enter_context(endpoint(deployment, limits, options.listen))
        print(f"Endpoint: {front.url}{f'{INVOKE}<path>' if options.invoke else ':predict and :rawPredict'}", flush=True)
        routed = True
        with suppress(KeyboardInterrupt):
            while True:
                if deployment.wait_until_routed(threading.TIMEOUT_MAX, routed):
                    print(f"{time.monotonic() - began:.0f} s: {'routed' if routed else 'not routed'}", flush=True)
                    routed = not routed
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
