"""Whoever sends half requests, too much, or nothing holds up nobody else; and everybody hears their answer."""

from __future__ import annotations

import http.client
import json
import resource
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from serving.gunicorn.client_socket import BYTES_PER_SECOND, ClientSocket, SlowConnections
from tests.support.real_server import RealServer, until

pytestmark = pytest.mark.slow

LIGHT_APP = "tests.support.light_engine:light_app()"
KEY = "a-key-that-is-long-enough"
SONG = {"genres": "pop", "lyrics": "[verse]\nla la la", "seed": 1}
BODY = json.dumps({"instances": [SONG]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
FLOODS = {
    "half bodies": HEAD % 100_000 + b"[",
    "half chunks": (HEAD % 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"9\r\n[",
    "bodies still to be sent": (HEAD % 100_000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
    "no HTTP": b"GET\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "many requests at once": b"GET /jobs HTTP/1.1\r\nHost: here\r\n\r\n" * 10,
}
CONNECTIONS = 300  # more than there are threads
PROMPT_SECONDS = 2.0  # no more than any timeout of gunicorn's, and more than a busy machine takes
SECONDS = 60.0
TOO_LARGE_BYTES = 30_000_000  # more than any buffers between
Connect = Callable[[RealServer], socket.socket]


@pytest.fixture(scope="module")
def locked() -> Iterator[RealServer]:
    """A server with a key, which is asked by who has it."""
    with RealServer({"YUE_API_KEY": KEY, "YUE_NETWORK_SECONDS": "3600"}, LIGHT_APP) as server:
        server.key = KEY
        server.wait_until_answered()
        yield server
        assert "Traceback" not in server.log()
        assert server.end() == 0


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connections that are closed in the end."""
    with ExitStack() as connections:

        def connect(server: RealServer) -> socket.socket:
            return connections.enter_context(socket.create_connection(("127.0.0.1", server.port), SECONDS))

        yield connect


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the connections of a test need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4_096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Floods


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_without_the_key_holds_up_nobody_who_has_it(locked: RealServer, connect: Connect, flood: str) -> None:
    for connection in [connect(locked) for _ in range(CONNECTIONS)]:
        connection.sendall(FLOODS[flood])
    began = time.monotonic()
    assert locked.ask("/jobs")[0] == locked.ask("/models/status")[0] == 200
    assert time.monotonic() - began < PROMPT_SECONDS


def test_few_files_are_kept_for_songs_and_not_given_to_silent_connections(connect: Connect) -> None:
    with RealServer({}, LIGHT_APP, files=256) as server:
        server.wait_until_answered()
        for _ in range(320):
            connect(server)
        assert server.ask("/jobs")[0] == 200
        status, song = server.generate(**SONG)  # with an engine that starts only now
        assert (status, song["status"]) == (200, "succeeded")
        (warning,) = (line for line in server.log().splitlines() if "ulimit" in line)
        assert "only 256 files" in warning and "128 connections" in warning
        assert "cannot accept a connection" not in server.log()


def test_with_few_files_those_who_wait_leave_room_for_others(connect: Connect) -> None:
    with RealServer({}, "tests.support.fakes:fake_app(may_generate=False)", files=80) as server:
        server.wait_until_answered()
        for _ in range(60):
            connect(server).sendall(HEAD % len(BODY) + BODY)
        assert server.ask("/health")[0] == server.ask("/jobs")[0] == 200
        server.kill()


# What is no HTTP


@pytest.mark.parametrize("first", [b"\x16", FLOODS["TLS"], b"\x80\x2e\x01\x03\x01", b"\0", b"{", b"\xef\xbb\xbfGET"])
@pytest.mark.parametrize("before", [b"", b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"])
def test_what_begins_like_no_request_is_refused_at_its_first_byte(
    locked: RealServer, connect: Connect, before: bytes, first: bytes
) -> None:
    connection = connect(locked)
    if before:
        connection.sendall(before)
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            answer.read()
    connection.sendall(first)  # though the server would wait for an hour for the rest of a request
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        problem = json.load(answer)
    assert (problem["status"], problem["type"]) == (400, "urn:yue:problem:bad-request")
    assert ("http, not https" in problem["detail"]) == first.startswith(b"\x16")
    assert connection.recv(1) == b""


# Bodies that are too large


def pieces() -> Iterator[bytes]:
    """A body of unknown length."""
    for _ in range(TOO_LARGE_BYTES // 50_000):
        yield b"[" * 50_000


@pytest.mark.parametrize("key", [KEY, "another"])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_whoever_sends_too_much_hears_why(locked: RealServer, in_chunks: bool, key: str) -> None:
    headers = {"Content-Type": "application/json", "X-API-Key": key}
    status = 413 if key == KEY else 401
    body = pieces if in_chunks else lambda: b"[" * TOO_LARGE_BYTES
    request = urllib.request.Request(f"{locked.url}/predict", body(), headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=SECONDS)
    with refused.value as answer:
        assert (answer.code, json.load(answer)["status"]) == (status, status)
    assert requests.post(request.full_url, body(), headers=headers, timeout=SECONDS).status_code == status


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
@pytest.mark.parametrize("header", ["Expect: 100-continue", "Expect:", "Transfer-Encoding: chunked"])
def test_curl_hears_that_it_sends_too_much(locked: RealServer, header: str, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"[" * TOO_LARGE_BYTES)
    command = ["curl", "-s", "-o", tmp_path / "answer", "-w", "%{http_code}", "--data-binary", f"@{tmp_path}/body"]
    command += ["-H", f"X-API-Key: {KEY}", "-H", header, f"{locked.url}/predict"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (told.returncode, told.stdout) == (0, "413")


def test_a_short_body_that_is_refused_unread_leaves_the_connection_open(locked: RealServer, connect: Connect) -> None:
    connection = connect(locked)
    for _ in range(2):
        connection.sendall(HEAD % len(BODY) + BODY)
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            assert (answer.status, answer.headers["Connection"]) == (401, "keep-alive")
            answer.read()


# Waiting


class Pair:
    """Two ends of a connection, the server's of which is read until nothing more comes. A context manager."""

    def __init__(self, wait_slots: SlowConnections) -> None:
        self.client, server = socket.socketpair()
        self.server = ClientSocket(server, wait_slots, 3_600)
        self.size = 0
        self.reader = threading.Thread(target=self._read)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.reader.join()
        self.server.close()

    def _read(self) -> None:
        while data := self.server.recv(65_536):
            self.size += len(data)


def test_a_slot_is_freed_whatever_timeout_a_socket_was_given() -> None:
    wait_slots = SlowConnections(1)
    with Pair(wait_slots) as silent, Pair(wait_slots) as newcomer:
        silent.server.settimeout(3_600)
        silent.reader.start()
        until(lambda: wait_slots.in_use == 1)
        newcomer.reader.start()
        silent.reader.join(SECONDS)
        assert not silent.reader.is_alive() and newcomer.reader.is_alive()


def test_one_that_keeps_pace_stays_and_a_silent_one_makes_way() -> None:
    wait_slots = SlowConnections(2)
    with Pair(wait_slots) as steady, Pair(wait_slots) as silent, Pair(wait_slots) as newcomer:
        steady.reader.start()  # and so it has waited for longest
        until(lambda: wait_slots.in_use == 1)
        silent.reader.start()
        until(lambda: wait_slots.in_use == 2)
        steady.client.sendall(b"x" * BYTES_PER_SECOND * 60)
        until(lambda: steady.size == BYTES_PER_SECOND * 60 and wait_slots.in_use == 2)
        newcomer.reader.start()
        silent.reader.join(SECONDS)
        assert not silent.reader.is_alive() and steady.reader.is_alive()
