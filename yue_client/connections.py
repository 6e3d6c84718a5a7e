"""Opens connections within a short timeout, and explains in one line and a hint why one failed.

It is independent of what is sent over them.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from yue_client.address import DEFAULT_SERVER, is_this_machine, root_of
from yue_client.early_answers import EarlyAnswers
from yue_client.errors import Unreachable

CONNECT_TIMEOUT_S = 20.0  # a server that is there is connected to at once, however long its answers take
PROBE_TIMEOUT_S = 3.0
NO_WAY = (errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")
ELSEWHERE = "another address is given by --url or YUE_URL"


class _Connection(EarlyAnswers):
    def connect(self) -> None:
        """Connect within `CONNECT_TIMEOUT_S`; what follows has the time that the request is given."""
        timeout_s, self.timeout = self.timeout, min(self.timeout or CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S)
        try:
            super().connect()
        except TimeoutError as error:
            raise TimeoutError(errno.ETIMEDOUT, f"no connection within {self.timeout:g} s") from error
        self.sock.settimeout(timeout_s)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same over TLS, whose handshake is a part of connecting."""


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request)


class _Redirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        """Follow for files alone: a redirected POST would become a GET without its body."""
        return None if request.data else super().redirect_request(request, *answer)


class Opener:
    """Opens requests, through the proxies of the environment where they lead to other machines."""

    def __init__(self) -> None:
        handlers = (_Handler, _SecureHandler, _Redirections)
        self._proxied = urllib.request.build_opener(*handlers)
        self._direct = urllib.request.build_opener(*handlers, urllib.request.ProxyHandler({}))

    def open(self, request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse:
        """The response. Raises OSError or HTTPException."""
        local = is_this_machine(urllib.parse.urlsplit(request.full_url).hostname)
        response: http.client.HTTPResponse = (self._direct if local else self._proxied).open(request, timeout=timeout_s)
        return response


def unreachable(request: urllib.request.Request, error: Exception, answered: bool) -> Unreachable:
    """Why no answer came; temporary unless it is the first request and no server is found there."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error  # an SSLError has one of its own
    parts = urllib.parse.urlsplit(request.full_url)
    proxy = request.host if request.host != parts.netloc else ""  # urllib puts the proxy there
    through = f" through the proxy {proxy}" if proxy else ""
    text, hint = _words(reason), ""
    if not answered:
        hint = _PROXY if proxy else _hint(parts, reason)
        if not proxy and parts.scheme == "https" and _may_lack_tls(reason) and _speaks_http(parts):
            text, hint = "it speaks http, not https", f"use http: --url http://{parts.netloc}"
    missing = bool(hint) or isinstance(reason, str | ssl.SSLCertVerificationError)
    return Unreachable(f"no answer from {root_of(request.full_url)}{through}: {text}", hint, temporary=not missing)


_PROXY = "the proxy is set by http_proxy and https_proxy; NO_PROXY names hosts that are reached without it"


def _words(reason: object) -> str:
    """The reason in the system's words, without numbers and brackets."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message}"
    if isinstance(reason, ssl.SSLError):
        return "it does not speak TLS" if reason.reason in NO_TLS else f"no TLS with it ({reason.reason or reason})"
    if isinstance(reason, http.client.BadStatusLine) and not isinstance(reason, http.client.RemoteDisconnected):
        return "its answer is not HTTP"
    return (getattr(reason, "strerror", None) or str(reason) or type(reason).__name__).rstrip(".")


def _hint(parts: urllib.parse.SplitResult, reason: object) -> str:
    """What may help where the server has never answered; nothing where it may just be away."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "SSL_CERT_FILE names a file with the certificates to trust"
    if isinstance(reason, ssl.SSLError) and reason.reason in NO_TLS:
        return f"is that a YuE server? {ELSEWHERE}"
    if isinstance(reason, ConnectionRefusedError):
        port = "" if parts.port else f"; this address has no port, as in {DEFAULT_SERVER}"
        return f"is the server running? Start it with ./run_local.sh; {ELSEWHERE}{port}"
    if isinstance(reason, socket.gaierror):
        return f"is the name of the host right? It is given by --url or YUE_URL, as in {DEFAULT_SERVER}"
    if isinstance(reason, ConnectionResetError | http.client.BadStatusLine):
        return f"it speaks TLS: --url https://{parts.netloc}" if parts.scheme == "http" and _speaks_tls(parts) else ""
    if isinstance(reason, OSError) and reason.errno in NO_WAY:
        tls = (
            f"; a server without TLS is reached by http: --url http://{parts.netloc}" if parts.scheme == "https" else ""
        )
        return f"is the machine reachable from here, and the port right? {ELSEWHERE}{tls}"
    return ""


def _may_lack_tls(reason: object) -> bool:
    """True where the handshake may have failed because the server has no TLS: some hang up, and some wait."""
    if isinstance(reason, ssl.SSLError):
        return not isinstance(reason, ssl.SSLCertVerificationError)
    return isinstance(reason, ConnectionResetError | TimeoutError)


def _speaks_http(parts: urllib.parse.SplitResult) -> bool:
    with contextlib.suppress(OSError):
        address = (parts.hostname or "", parts.port or http.client.HTTPS_PORT)
        with socket.create_connection(address, PROBE_TIMEOUT_S) as plain:
            plain.sendall(b"HEAD /livez HTTP/1.0\r\n\r\n")
            return plain.recv(5) == b"HTTP/"
    return False


def _speaks_tls(parts: urllib.parse.SplitResult) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent
    with contextlib.suppress(OSError):
        address = (parts.hostname or "", parts.port or http.client.HTTP_PORT)
        with (
            socket.create_connection(address, PROBE_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname),
        ):
            return True
    return False
