"""How client.py finds its server: addresses as people write them, and what is said where there is none."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import ssl
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import client
from tests.support.fakes import FakeClock
from tests.support.job_server import JOB_ID, READY, JobServer, Json
from tests.support.threaded import answering
from yue_client.address import server_address
from yue_client.errors import Misused

ADDRESSES = {
    "localhost:8080": "http://localhost:8080",
    " http://127.0.0.1:8080\n": "http://127.0.0.1:8080",
    "HTTPS://Example.com/": "https://example.com",
    "http://here:8080/predict": "http://here:8080",
    "here:8080/predict/": "http://here:8080",
    "http://here/docs": "http://here",
    "http://here:8080/jobs/5d1c/audio/mix.mp3": "http://here:8080",
    "https://example.com/yue/predict": "https://example.com/yue",
    "https://example.com/v1/": "https://example.com/v1",
    "::1": "http://[::1]",
    "[::1]:8080": "http://[::1]:8080",
    "http://münchen.example/ä": "http://xn--mnchen-3ya.example/%C3%A4",
}
NO_ADDRESSES = (
    *("", "  ", "8080", ":8080", "http://", "http:/here", "ftp://here", "http://here:", "here:http", "here:80800"),
    *("http://::1:8080", "http://[::1", "http://a b", "http://.", "http://here/?key=1", "http://here/docs#jobs"),
    *("http://name:word@here", f"http://{'a' * 70}"),
)


@pytest.mark.parametrize("written", ADDRESSES)
def test_an_address_is_understood_as_people_write_it(written: str) -> None:
    assert server_address(written) == ADDRESSES[written]


@pytest.mark.parametrize("written", NO_ADDRESSES)
def test_what_is_no_address_is_refused(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["models", "--url", written]) == 2
    error = capsys.readouterr().err
    assert "--url: got " in error and "allowed: an address such as http://127.0.0.1:8080" in error
    assert "word" not in error


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("http://here/predict?x=1", "a query is not allowed: leave out ?x=1"),
        ("here:8080?x=1", "a query is not allowed: leave out ?x=1"),
        ("http://here/docs#jobs", "a fragment is not allowed: leave out #jobs"),
        ("ftp://here", "ftp: is no scheme of a server; allowed: http and https"),
        ("http://", "the name of the host is missing"),
        (":8080", "the name of the host is missing"),
        ("8080", "the name of the host is missing"),
        ("", "the name of the host is missing"),
        ("http://here:", "the port is missing behind the colon"),
        ("http://a b", "there is ' ' in it"),
        ("here:80800", "the reason: Port out of range 0-65535"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(written: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["models", "--url", written]) == 2
    assert f"\nhint: {reason}\n" in capsys.readouterr().err


def test_a_wrong_address_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("YUE_URL", "ftp://here")
    assert client.main(["models"]) == 2
    assert "YUE_URL: got 'ftp://here'" in capsys.readouterr().err


def test_an_empty_address_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_URL", " ")
    monkeypatch.setattr("yue_client.cli.DEFAULT_SERVER", _closed())
    assert client.main(["models"]) == 3


def test_an_endpoint_in_the_place_of_an_address_is_hinted_at() -> None:
    address = "https://12.prediction.vertexai.goog/v1/projects/p/locations/r/endpoints/3:predict"
    with pytest.raises(Misused) as refusal:
        server_address(address)
    assert "--endpoint projects/p/locations/r/endpoints/3" in refusal.value.hint


@pytest.mark.parametrize("behind", ["", "/", "/predict", "/jobs/5d1c"])
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_the_server_is_found(scheme: str, behind: str) -> None:
    with answering(JobServer(models=[READY])) as server:
        assert client.main(["models", "--url", scheme + server.address.removeprefix("http://") + behind]) == 0


def test_no_server_is_told_with_its_address_and_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    address, clock = _closed(), FakeClock()
    assert client.main(["sing", "--genres", "a", "--lyrics", "b", "--url", address], clock) == 3
    error = capsys.readouterr().err
    assert f"no answer from {address}: Connection refused\n" in error
    assert "./run_local.sh" in error and "--url" in error
    assert not clock.slept


def test_a_name_that_leads_nowhere_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["models", "--url", "http://yue.invalid"]) == 3
    assert "is the name of the host right?" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0"])
def test_a_proxy_is_not_asked_for_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_proxy(monkeypatch)
    server = JobServer(models=[READY], host="0.0.0.0")
    with answering(server):
        assert client.main(["models", "--url", f"http://{host}:{server.server_address[1]}"]) == 0


def test_a_proxy_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = _set_proxy(monkeypatch)
    assert client.main(["models", "--url", "http://yue.invalid:8080"]) == 3
    error = capsys.readouterr().err
    assert f"no answer from http://yue.invalid:8080 through the proxy {proxy}: Connection refused" in error
    assert "NO_PROXY" in error


def test_something_that_is_no_yue_server_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Other(JobServer):
        def prediction(self, instance: Json) -> Json:
            return "hello"  # type: ignore[return-value]

    with answering(Other()) as server:
        assert client.main(["models", "--url", server.address]) == 3
    error = capsys.readouterr().err
    assert "does not answer like a YuE server" in error and "--url" in error


class WebServer(ThreadingHTTPServer):
    """Answers every POST with that status, page and header."""

    daemon_threads = True

    def __init__(self, status: int, page: str = "<html>no</html>", location: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.status, self.page, self.location, self.posts = status, page, location, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Page(BaseHTTPRequestHandler):
    server: WebServer

    def do_POST(self) -> None:
        self.server.posts += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(self.server.page)))
        self.end_headers()
        self.wfile.write(self.server.page.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.mark.parametrize("status", [200, 400, 404, 405, 501])
def test_a_web_page_is_no_yue_server(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(WebServer(status)) as server:
        assert client.main(["models", "--url", server.url]) > 0
    error = capsys.readouterr().err
    assert server.url in error and "YuE server" in error and "--url" in error
    assert len(error.splitlines()) == 2


def test_a_path_that_the_server_does_not_know_is_hinted_at(capsys: pytest.CaptureFixture[str]) -> None:
    page = json.dumps({"title": "Not found", "status": 404, "detail": "there is no such path; see /docs"})
    with answering(WebServer(404, page)) as server:
        assert client.main(["models", "--url", f"{server.url}/v1"]) == 4
    assert f"hint: perhaps the server is at --url {server.url}\n" in capsys.readouterr().err


def test_a_song_does_not_follow_a_redirection_that_would_lose_it(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(JobServer(models=[READY])) as server:
        for status in (301, 302, 303, 307, 308):
            with answering(WebServer(status, location=f"{server.address}/predict")) as old:
                assert client.main(["models", "--url", old.url]) == 4
            assert f"hint: use that address: --url {server.address}\n" in capsys.readouterr().err
    assert not server.instances


@pytest.mark.parametrize(
    "page",
    ["The plain HTTP request was sent to HTTPS port", "Client sent an HTTP request to an HTTPS server.\n"],
)
def test_a_server_that_asks_for_https_is_hinted_at(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(WebServer(400, page)) as server:
        assert client.main(["models", "--url", server.url]) == 4
    assert f"hint: it speaks TLS: --url {server.url.replace('http', 'https')}\n" in capsys.readouterr().err


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=here"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(["openssl", "req", "-x509", *options, *files], check=True, capture_output=True)
    return folder


@contextlib.contextmanager
def over_tls(server: JobServer, certificate: Path) -> Iterator[str]:
    """The server's host and port; it tells TLS from what is none only after a connection is accepted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with answering(server):
        yield server.address.removeprefix("http://")


def test_http_to_a_port_of_https_is_hinted_at(certificate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    with over_tls(JobServer(), certificate) as place:
        assert client.main(["result", JOB_ID, "--url", place], clock) == 3
    assert f"hint: it speaks TLS: --url https://{place}\n" in capsys.readouterr().err
    assert not clock.slept


class HangsUpOnTls(_Page):
    """Closes the connection at the first byte of TLS, as some servers do."""

    def handle_one_request(self) -> None:
        self.close_connection = True
        if self.connection.recv(1, socket.MSG_PEEK) != b"\x16":
            super().handle_one_request()


@pytest.mark.parametrize("handler", [None, HangsUpOnTls])
def test_https_to_a_port_of_http_is_told(handler: type[_Page] | None, capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    server = JobServer()
    if handler:
        server.RequestHandlerClass = handler
    with answering(server):
        place = server.address.removeprefix("http://")
        assert client.main(["result", JOB_ID, "--url", f"https://{place}"], clock) == 3
    error = capsys.readouterr().err
    assert f"no answer from https://{place}: it speaks http, not https\n" in error
    assert f"hint: use http: --url http://{place}\n" in error
    assert not clock.slept


class Banner(socketserver.BaseRequestHandler):
    """Speaks first, and neither http nor TLS."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        while self.request.recv(4_096):
            """Until the client hangs up."""


def test_https_to_what_is_neither_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    with answering(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Banner)) as server:
        assert client.main(["result", JOB_ID, "--url", f"https://127.0.0.1:{server.server_address[1]}"], clock) == 3
    assert ": it does not speak TLS\n" in capsys.readouterr().err
    assert not clock.slept


def test_a_certificate_that_is_not_trusted_is_told(certificate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with over_tls(JobServer(), certificate) as place:
        assert client.main(["models", "--url", f"https://{place}"]) == 3
    error = capsys.readouterr().err
    assert "its certificate is not trusted: self-signed certificate" in error and "SSL_CERT_FILE" in error


def _closed() -> str:
    """An address where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def _set_proxy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a proxy that is away; its host and port."""
    proxy = _closed()
    monkeypatch.setenv("http_proxy", proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return proxy.removeprefix("http://")
