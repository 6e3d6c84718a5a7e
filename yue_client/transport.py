"""Sends requests, and sends them again while the server is away or busy; a YuE server at an address.

It does not know what the requests are about.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from yue_client.early_answers import HTTPHandler, HTTPSHandler
from yue_client.errors import ClientError, Json, Unauthorized, Unreachable, of_answer, of_problem

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ANSWER_TIMEOUT_S = 120.0  # beyond what the request itself asks the server to wait
ELSEWHERE_TIMEOUT_S = 10.0  # a file that lies elsewhere waits for nothing
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # between two tries, each pause twice the one before
NOT_THERE = (ConnectionRefusedError, socket.gaierror)

Found = TypeVar("Found")
Read = Callable[[http.client.HTTPResponse], Found]


class Clock(Protocol):
    """What the module `time` has."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class Http:
    """Requests over HTTP, each tried until it is answered, can only fail again, or `patience_s` are over.

    A server that nobody has heard of yet is not waited for. `on_pause` is told the error and how long the pause is.
    """

    def __init__(self, clock: Clock, patience_s: float, on_pause: Callable[[ClientError, float], None]) -> None:
        self.clock, self.patience_s, self._on_pause = clock, patience_s, on_pause
        self._answered = False
        self._opener = urllib.request.build_opener(HTTPHandler, HTTPSHandler)
        self._direct_opener = urllib.request.build_opener(HTTPHandler, HTTPSHandler, urllib.request.ProxyHandler({}))

    def ask(self, make: Callable[[], urllib.request.Request], read: Read[Found], wait_s: float = 0) -> Found:
        """What `read` makes of the response to what `make` makes, anew for each try. Raises ClientError."""
        failed_at, pause_s = None, FIRST_PAUSE_S
        while True:
            try:
                return self.ask_once(make(), read, ANSWER_TIMEOUT_S + wait_s)
            except ClientError as error:
                now = self.clock.monotonic()
                failed_at = now if failed_at is None else failed_at
                this_pause_s = getattr(error, "after_s", 0) or pause_s
                if not error.temporary or now + this_pause_s > failed_at + self.patience_s:
                    raise
                self._on_pause(error, this_pause_s)
            self.clock.sleep(this_pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def ask_once(self, request: urllib.request.Request, read: Read[Found], timeout_s: float) -> Found:
        """What `read` makes of the response, which is waited for so long. Raises ClientError."""
        # A proxy meant for the outside world cannot reach this very machine.
        local = urllib.parse.urlsplit(request.full_url).hostname in LOOPBACK_HOSTS
        opener = self._direct_opener if local else self._opener
        try:
            with opener.open(request, timeout=timeout_s) as response:
                found = read(response)
        except urllib.error.HTTPError as error:
            self._answered = True
            raise _error_in(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(request, error) from error
        self._answered = True
        return found

    def _unreachable(self, request: urllib.request.Request, error: Exception) -> Unreachable:
        reason = getattr(error, "reason", None) or error
        missing = isinstance(reason, NOT_THERE) and not self._answered
        parts = urllib.parse.urlsplit(request.full_url)
        hint = "is the server running? Another address is given by --url or YUE_URL" if missing else ""
        temporary = not missing and not isinstance(reason, ssl.SSLCertVerificationError)
        text = str(reason) or type(reason).__name__
        return Unreachable(f"no answer from {parts.scheme}://{parts.netloc}: {text}", hint, temporary=temporary)


class Server:
    """A YuE server at an address."""

    by_predict_alone = False  # whether all else than /predict is out of reach
    poll_s = 0.5  # between two looks at a job

    def __init__(self, http: Http, address: str, api_key: str | None = None) -> None:
        self.http, self.address, self._api_key = http, address.rstrip("/"), api_key

    @property
    def predict_address(self) -> str:
        """Where instances are sent to."""
        return f"{self.address}/predict"

    def credentials(self) -> Mapping[str, str]:
        """The headers that let this client in."""
        return {"X-API-Key": self._api_key} if self._api_key else {}

    def predict(self, instance: Json) -> Json:
        """The prediction for one instance. Raises ClientError, also where the prediction is an error."""
        asked = dict(instance)
        wait_s = float(asked.get("wait_seconds") or 0)
        address = self.predict_address

        def make() -> urllib.request.Request:
            body = json.dumps({"instances": [asked]}).encode()
            if "wait_seconds" in asked:  # what is cut once is cut again: from then on only the job is asked for
                asked["wait_seconds"] = 0
            return self.request(address, body)

        return self._let_in(lambda: self.http.ask(make, self._prediction, wait_s))

    def get(self, address: str, headers: Mapping[str, str], read: Read[Found]) -> Found:
        """What `read` makes of the file at an address, which may be the server's own path. Raises ClientError."""
        return self._let_in(lambda: self.http.ask(lambda: self.request(self.absolute(address), None, headers), read))

    def get_elsewhere(self, address: str, headers: Mapping[str, str], read: Read[Found]) -> Found:
        """The same of an address that may be out of reach from here: it is asked once. Raises ClientError."""
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

    def _prediction(self, response: http.client.HTTPResponse) -> Json:
        answer = response.read()
        if not is_framed(response):
            raise Unreachable(f"the answer from {self.address} was cut")
        try:
            prediction: Json = json.loads(answer)["predictions"][0]
            problem = prediction.get("error")
        except (ValueError, LookupError, TypeError, AttributeError):
            detail = f"{self.address} does not answer like a YuE server: {answer[:80]!r}"
            raise Unreachable(detail, temporary=False) from None
        if problem and not isinstance(prediction.get("status"), str):  # else it is a job that tells how it ended
            raise of_problem(problem if isinstance(problem, dict) else {"detail": str(problem)})
        return prediction


def is_framed(response: http.client.HTTPResponse) -> bool:
    """Whether its head says how long it is; one that was cut within its head may not."""
    return response.headers.get("Content-Length") is not None or bool(getattr(response, "chunked", False))


def _error_in(error: urllib.error.HTTPError) -> ClientError:
    try:
        with error:
            body = error.read()
    except (OSError, http.client.HTTPException):
        body = b""
    return of_answer(error.code, body, error.headers.get("Retry-After"), error.url)
