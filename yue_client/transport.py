"""Sends requests to a YuE server, and sends them again while it is away or busy.

It is independent of what the requests ask for.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Protocol, TypeVar

from yue_client.address import root_of, server_address
from yue_client.connections import ELSEWHERE, Opener, unreachable
from yue_client.errors import (
    ClientError,
    Forgotten,
    Json,
    Misused,
    Refused,
    Unauthorized,
    Unreachable,
    of_answer,
    of_problem,
)

ANSWER_TIMEOUT_S = 120.0  # beyond what the request itself asks the server to wait
ELSEWHERE_TIMEOUT_S = 10.0  # a file that lies elsewhere waits for nothing
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # between two tries, each pause twice the one before
NO_SUCH_PATH = re.compile(r"no such path|/predict answered")  # the path itself is unknown, not a job
SPEAKS_TLS = re.compile(rb"[^{]*(HTTPS|SSL-enabled)")  # no JSON: what others answer to plain HTTP where they want TLS

Found = TypeVar("Found")
Read = Callable[[http.client.HTTPResponse], Found]


class Clock(Protocol):
    """The part of the module `time` that is used."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class Http:
    """Requests over HTTP, each sent again after temporary errors for up to `retry_s` seconds.

    A server that has never answered is not waited for. `on_pause` gets the error and the length of the pause.
    """

    def __init__(self, clock: Clock, retry_s: float, on_pause: Callable[[ClientError, float], None]) -> None:
        self.clock, self.retry_s, self._on_pause = clock, retry_s, on_pause
        self._answered = False
        self._opener = Opener()

    def ask(self, make: Callable[[], urllib.request.Request], read: Read[Found], wait_s: float = 0) -> Found:
        """What `read` returns for the response. `make` builds the request for each try. Raises ClientError."""
        failed_at, pause_s = None, FIRST_PAUSE_S
        while True:
            try:
                return self.ask_once(make(), read, ANSWER_TIMEOUT_S + wait_s)
            except ClientError as error:
                now = self.clock.monotonic()
                failed_at = now if failed_at is None else failed_at
                this_pause_s = getattr(error, "after_s", 0) or pause_s
                if not error.temporary or now + this_pause_s > failed_at + self.retry_s:
                    raise
                self._on_pause(error, this_pause_s)
            self.clock.sleep(this_pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def ask_once(self, request: urllib.request.Request, read: Read[Found], timeout_s: float) -> Found:
        """What `read` returns for the response, within `timeout_s`. Raises ClientError."""
        try:
            with self._opener.open(request, timeout_s) as response:
                found = read(response)
        except urllib.error.HTTPError as error:
            self._answered = True
            raise _error_in(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(request, error, self._answered) from error
        self._answered = True
        return found


class Server:
    """A YuE server at an address."""

    by_predict_alone = False  # True where only /predict can be reached
    poll_s = 0.5  # between two requests for a job's state

    def __init__(self, http: Http, address: str, api_key: str | None = None) -> None:
        self.http, self.address, self._api_key = http, address.rstrip("/"), api_key

    @property
    def predict_address(self) -> str:
        """The address of /predict."""
        return f"{self.address}/predict"

    def credentials(self) -> Mapping[str, str]:
        """The headers that authenticate this client."""
        return {"X-API-Key": self._api_key} if self._api_key else {}

    def predict(self, instance: Json) -> Json:
        """The prediction for one instance. Raises ClientError, also where the prediction is an error."""
        asked = dict(instance)
        wait_s = float(asked.get("wait_seconds") or 0)
        address = self.predict_address

        def make() -> urllib.request.Request:
            body = json.dumps({"instances": [asked]}).encode()
            if "wait_seconds" in asked:  # a wait that was cut once would be cut again
                asked["wait_seconds"] = 0
            return self.request(address, body)

        return self._let_in(lambda: self.http.ask(make, self._prediction, wait_s))

    def get(self, address: str, headers: Mapping[str, str], read: Read[Found]) -> Found:
        """What `read` returns for the file at an address or a path of the server. Raises ClientError."""
        return self._let_in(lambda: self.http.ask(lambda: self.request(self.absolute(address), None, headers), read))

    def get_elsewhere(self, address: str, headers: Mapping[str, str], read: Read[Found]) -> Found:
        """The same for an address on another host, which is tried once. Raises ClientError."""
        return self.http.ask_once(self.request(address, None, headers), read, ELSEWHERE_TIMEOUT_S)

    def absolute(self, address: str) -> str:
        """A path of the server's as an address."""
        return self.address + address if address.startswith("/") else address

    def request(self, address: str, body: bytes | None, headers: Mapping[str, str] = {}) -> urllib.request.Request:
        """A request. The credentials are for the server alone: not for other addresses, and not for redirections."""
        content = {"Content-Type": "application/json"} if body else {}
        request = urllib.request.Request(address, body, {**headers, **content})
        if address.startswith(f"{self.address}/"):
            for name, value in self.credentials().items():
                request.add_unredirected_header(name, value)
        return request

    def _let_in(self, ask: Callable[[], Found]) -> Found:
        try:
            return ask()
        except Unauthorized as error:
            error.hint = error.hint or "the server's key is given by --api-key or YUE_API_KEY"
            raise
        except Forgotten as error:
            root = root_of(self.address)
            if root != self.address and NO_SUCH_PATH.search(str(error)):
                error.hint = f"perhaps the server is at --url {root}"
            raise

    def _prediction(self, response: http.client.HTTPResponse) -> Json:
        answer = response.read()
        if not is_framed(response):
            raise Unreachable(f"the answer from {self.address} was cut")
        try:
            prediction: Json = json.loads(answer)["predictions"][0]
            problem = prediction.get("error")
        except (ValueError, LookupError, TypeError, AttributeError):
            detail = f"{self.address} does not answer like a YuE server: {answer[:80]!r}"
            raise Unreachable(detail, ELSEWHERE, temporary=False) from None
        if problem and not isinstance(prediction.get("status"), str):  # else it is a job that tells how it ended
            raise of_problem(problem if isinstance(problem, dict) else {"detail": str(problem)})
        return prediction


def is_framed(response: http.client.HTTPResponse) -> bool:
    """True if its headers state its length. They may not where they were cut."""
    return response.headers.get("Content-Length") is not None or bool(getattr(response, "chunked", False))


def _error_in(error: urllib.error.HTTPError) -> ClientError:
    try:
        with error:
            body = error.read()
    except (OSError, http.client.HTTPException):
        body = b""
    location = error.headers.get("Location")
    if location and error.code < HTTPStatus.BAD_REQUEST:
        return _redirected(error.url, urllib.parse.urljoin(error.url, location))
    found = of_answer(error.code, body, error.headers.get("Retry-After"), error.url)
    if error.url.startswith("http:") and error.code == HTTPStatus.BAD_REQUEST and SPEAKS_TLS.match(body):
        found.hint = f"it speaks TLS: --url https:{root_of(error.url).removeprefix('http:')}"
    return found


def _redirected(address: str, location: str) -> Refused:
    """A redirected request would lose its body, so a redirection is an error."""
    hint = ""
    with contextlib.suppress(Misused):
        hint = f"use that address: --url {server_address(location)}"
    return Refused(f"{address} is redirected to {location}", hint)
