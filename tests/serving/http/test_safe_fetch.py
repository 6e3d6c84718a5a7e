"""Files from addresses: only from allowed hosts, never from inside, and never more or longer than allowed."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serving.http.safe_fetch import Fetcher, Refused, Unreachable, is_public
from tests.support.threaded import answering

NAME, ELSEWHERE = "audio.test", "elsewhere.test"
LIMIT = 1_000
SECONDS = 30.0
AUDIO = bytes(range(200))

Answer = Callable[[BaseHTTPRequestHandler], None]


class FileServer(ThreadingHTTPServer):
    """Files over TLS, with a certificate for NAME alone. `answers` says what each path does."""

    daemon_threads = True

    def __init__(self, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.port = self.server_address[1]
        self.answers: dict[str, Answer] = {"/song.wav": send(AUDIO)}
        self.asked: list[tuple[str, str]] = []  # Host, path
        self.traces: list[str | None] = []
        self.over = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))
        self.server.traces.append(self.headers["traceparent"])
        self.server.answers[self.path.partition("?")[0]](self)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def send(content: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def redirect(location: str) -> Answer:
    return send(b"", 302, Location=location)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and its certificate for NAME, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    today = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(pem + built.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def server(certificate: Path) -> Iterator[FileServer]:
    with answering(FileServer(certificate)) as server:
        yield server
        server.over.set()


@pytest.fixture
def fetcher(server: FileServer, certificate: Path) -> Fetcher:
    """It takes this machine for the internet."""
    context = ssl.create_default_context(cafile=str(certificate))
    hosts = (f"{NAME}:{server.port}", f"{ELSEWHERE}:{server.port}")
    return Fetcher(hosts, LIMIT, SECONDS, lambda host, port: ["127.0.0.1"], lambda address: True, context)


def url(server: FileServer, path: str = "/song.wav", host: str = NAME) -> str:
    return f"https://{host}:{server.port}{path}"


def test_a_trace_is_passed_on_through_redirects_too(server: FileServer, fetcher: Fetcher) -> None:
    server.answers["/old"] = redirect("/song.wav")
    assert fetcher.fetch(url(server, "/old"), {"traceparent": "00-a-b-01"}) == AUDIO
    assert fetcher.fetch(url(server)) == AUDIO
    assert server.traces == ["00-a-b-01", "00-a-b-01", None]


def refused(fetcher: Fetcher, address: str) -> str:
    with pytest.raises(Refused) as caught:
        fetcher.fetch(address)
    return str(caught.value)


def unreachable(fetcher: Fetcher, address: str) -> str:
    with pytest.raises(Unreachable) as caught:
        fetcher.fetch(address)
    return str(caught.value)


def test_a_file_is_read_under_the_name_that_was_asked_for(server: FileServer, fetcher: Fetcher) -> None:
    assert fetcher.fetch(url(server, "/song.wav?signature=a%2Fb")) == AUDIO
    assert server.asked == [(f"{NAME}:{server.port}", "/song.wav?signature=a%2Fb")]


@pytest.mark.parametrize(
    "address",
    [
        "http://audio.test/song.wav",
        "ftp://audio.test/song.wav",
        "file:///etc/passwd",
        "https:///song.wav",
        "https://user:word@audio.test/song.wav",
        "https://audio.test@10.0.0.1/song.wav",
        "https://10.0.0.1\\@audio.test/song.wav",
        "https://audio.test:99999/song.wav",
        "https://audio.test:x/song.wav",
        "https://[::1/song.wav",
        "https://other.test/song.wav",
        "https://xaudio.test/song.wav",
        "https://audio.test.evil.test/song.wav",
        "https://audio.test./song.wav",
        "https://audio.test:444/song.wav",
        "https://audio.test/a song.wav",
        "https://audio.test/a\r\nHost: other",
        "https://audio.tést/song.wav",
    ],
)
def test_an_address_that_is_not_allowed_is_not_even_looked_up(address: str) -> None:
    looked_up: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        raise AssertionError(host)

    assert refused(Fetcher(["audio.test"], LIMIT, SECONDS, resolve), address)
    assert not looked_up


# One of each range that IANA's registries of special-purpose addresses list, and of those that carry another address.
SPECIAL = (
    *("192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1", "198.51.100.1", "203.0.113.1"),
    *("64:ff9b:1::808:808", "64:ff9b::c058:6301", "::ffff:192.88.99.1", "::ffff:0:808:808", "::808:808"),
    *("100::1", "100:0:0:1::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:1::1", "2001:4:112::1"),
    *("2002:808:808::1", "2620:4f:8000::1", "3ffe::1", "3fff::1", "3fff:fff::1", "5f00::1", "4000::1", "feb0::1"),
    *("2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:10.0.0.1", "2606:4700::200:5efe:8.8.8.8", "fe80::5efe:8.8.8.8"),
)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.0.192",
        "168.63.129.16",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "2002:7f00:1::",
        "2001::1",
        "64:ff9b::a9fe:a9fe",
        *SPECIAL,
    ],
)
def test_an_address_inside_is_never_connected_to(server: FileServer, fetcher: Fetcher, address: str) -> None:
    careful = replace(fetcher, resolve=lambda host, port: [address], may_connect=is_public)
    assert "not public" in refused(careful, url(server))


OF_THE_INTERNET = ("93.184.216.34", "192.88.98.1", "2606:4700::1111", "2001:4860:4860::8888", "3ffd::1", "2a00::5efe")


@pytest.mark.parametrize("address", [*OF_THE_INTERNET, "::ffff:93.184.216.34", "64:ff9b::5db8:d822"])
def test_an_address_of_the_internet_may_be_connected_to(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_one_address_inside_among_others_is_enough_to_refuse(server: FileServer, fetcher: Fetcher) -> None:
    both = replace(fetcher, resolve=lambda host, port: ["93.184.216.34", "127.0.0.1"], may_connect=is_public)
    assert "not public" in refused(both, url(server))
    assert not server.asked


def test_the_fetchers_own_rule_is_the_careful_one(server: FileServer) -> None:
    assert "not public" in refused(Fetcher([f"localhost:{server.port}"], LIMIT, SECONDS), url(server, host="localhost"))
    assert not server.asked


def test_a_name_that_changes_its_address_meanwhile_changes_nothing(server: FileServer, fetcher: Fetcher) -> None:
    answers = iter([["127.0.0.1"]])  # a second question would fail
    checked: list[str] = []

    def may_connect(address: object) -> bool:
        checked.append(str(address))
        return True

    assert (
        replace(fetcher, resolve=lambda host, port: next(answers), may_connect=may_connect).fetch(url(server)) == AUDIO
    )
    assert checked == ["127.0.0.1"]


def test_redirects_are_followed_to_allowed_hosts(server: FileServer, fetcher: Fetcher) -> None:
    server.answers |= {"/a": redirect("/b"), "/b": redirect("c"), "/c": redirect(url(server)), "/d": redirect("/a")}
    assert fetcher.fetch(url(server, "/a")) == AUDIO
    assert "redirects" in refused(fetcher, url(server, "/d"))


@pytest.mark.parametrize(
    "location",
    [
        "http://audio.test/song.wav",
        "https://127.0.0.1/latest",
        "https://metadata.google.internal/",
        "file:///etc/passwd",
    ],
)
def test_a_redirect_leads_to_no_other_place(server: FileServer, fetcher: Fetcher, location: str) -> None:
    server.answers["/a"] = redirect(location)
    assert refused(fetcher, url(server, "/a"))
    assert len(server.asked) == 1


def test_each_redirect_is_checked_anew(server: FileServer, fetcher: Fetcher) -> None:
    server.answers["/a"] = redirect("/song.wav")
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    outside = ipaddress.ip_address("127.0.0.1")
    careful = replace(fetcher, resolve=lambda host, port: next(answers), may_connect=lambda address: address == outside)
    assert "not public" in refused(careful, url(server, "/a"))


def test_a_host_must_prove_its_name(server: FileServer, fetcher: Fetcher) -> None:
    assert "certificate" in unreachable(fetcher, url(server, host=ELSEWHERE))
    assert not server.asked


@pytest.mark.parametrize("length", [{}, {"Content_Length": str(LIMIT + 1)}, {"Transfer_Encoding": "identity"}])
def test_no_more_is_read_than_allowed(server: FileServer, fetcher: Fetcher, length: dict[str, str]) -> None:
    server.answers["/large"] = send(b"x" * (LIMIT + 1), **length)
    server.answers["/largest"] = send(b"x" * LIMIT)
    assert f"{LIMIT} bytes" in refused(fetcher, url(server, "/large"))
    assert len(fetcher.fetch(url(server, "/largest"))) == LIMIT


def test_a_file_without_end_is_given_up_at_the_limit(server: FileServer, fetcher: Fetcher) -> None:
    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.over.is_set():
            handler.wfile.write(b"x" * 65_536)

    server.answers["/endless"] = pour
    assert f"{LIMIT} bytes" in refused(fetcher, url(server, "/endless"))


@pytest.mark.parametrize("start", [b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_bytes_that_drip_are_given_up_in_time(server: FileServer, fetcher: Fetcher, start: bytes) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while not server.over.wait(0.02):
            handler.wfile.write(b"x")

    server.answers["/drip"] = drip
    slow_fetcher = replace(fetcher, seconds=0.4, limit_bytes=1 << 30)
    assert "longer than 0.4 s" in unreachable(slow_fetcher, url(server, "/drip"))


def test_a_server_that_never_speaks_is_given_up(fetcher: Fetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hasty = replace(fetcher, hosts=[f"{NAME}:{port}"], seconds=0.2)
        assert "longer than 0.2 s" in unreachable(hasty, f"https://{NAME}:{port}/song.wav")


def test_who_is_not_there_is_told(fetcher: Fetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert "ConnectionRefusedError" in unreachable(
        replace(fetcher, hosts=[f"{NAME}:{port}"]), f"https://{NAME}:{port}/"
    )


def test_a_packed_answer_is_refused(server: FileServer, fetcher: Fetcher) -> None:
    server.answers["/packed"] = send(b"x", Content_Encoding="gzip")
    assert "encoding" in refused(fetcher, url(server, "/packed"))


def test_other_answers_are_told(server: FileServer, fetcher: Fetcher) -> None:
    server.answers |= {"/none": send(b"", 404), "/ill": send(b"", 503), "/lost": send(b"", 302)}
    assert "404" in refused(fetcher, url(server, "/none"))
    assert "302" in refused(fetcher, url(server, "/lost"))
    assert "503" in unreachable(fetcher, url(server, "/ill"))


def test_a_file_that_breaks_off_is_not_taken_for_whole(server: FileServer, fetcher: Fetcher) -> None:
    server.answers["/half"] = send(b"x" * 10, Content_Length="20")
    assert unreachable(fetcher, url(server, "/half"))
