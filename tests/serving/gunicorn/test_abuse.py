"""A whole server is treated badly, by its clients and by its machine, and goes on answering the others."""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving.gunicorn.worker import SLOW_CONNECTIONS
from tests.support.light_engine import audio_of
from tests.support.real_server import RealServer, until

pytestmark = pytest.mark.slow

THREADS = 17
ALL_THREADS = THREADS + SLOW_CONNECTIONS
SECONDS = 60.0
LOUD_BYTES = 30_000_000  # far more than the system keeps for a connection
LOUD_APP = f"tests.support.light_engine:light_app({LOUD_BYTES})"
SONG = {"genres": "pop", "lyrics": "[verse]\nla la la", "seed": 1}
BODY = json.dumps({"instances": [SONG]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
HALVES = {"nothing": b"", "half a head": HEAD[:40], "half a body": HEAD % len(BODY) + BODY[: len(BODY) // 2]}
Start = Callable[..., RealServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts real servers over a light engine."""
    with ExitStack() as servers:

        def start(app: str = "tests.support.light_engine:light_app()", **settings: str) -> RealServer:
            here = {"YUE_DATA": str(tmp_path / "data"), "YUE_THREADS": str(THREADS)}
            server = servers.enter_context(RealServer({**here, **settings}, app))
            server.wait_until_answered()
            return server

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[[RealServer], socket.socket]]:
    """Connections that are closed in the end."""
    with ExitStack() as connections:

        def connect(server: RealServer) -> socket.socket:
            connection = socket.socket()
            connection.settimeout(SECONDS)
            connection.connect(("127.0.0.1", server.port))
            return connections.enter_context(connection)

        yield connect


Connect = Callable[[RealServer], socket.socket]


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as thousands of connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4_096:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    received = b""
    try:
        while data := connection.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


def is_healthy(connection: socket.socket) -> bool:
    """True when the server says so on that connection, which stays open."""
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = b""
    while not received.endswith(b"}\n"):
        data = connection.recv(65_536)
        assert data, f"the server hung up after {received!r}"
        received += data
    return received.startswith(b"HTTP/1.1 200 ") and b'"status":"healthy"' in received


def check_that_it_generates(server: RealServer) -> None:
    status, song = server.generate(**SONG)
    assert (status, song["status"]) == (200, "succeeded"), song


# Clients


@pytest.mark.parametrize("half", HALVES)
def test_health_is_answered_while_half_requests_would_hold_every_thread(
    start: Start, connect: Connect, half: str
) -> None:
    server = start(YUE_NETWORK_SECONDS="3600")
    for _ in range(ALL_THREADS + 20):
        connect(server).sendall(HALVES[half])
    assert server.ask("/health")[0] == 200
    check_that_it_generates(server)


def test_health_is_answered_while_every_thread_is_stuck(start: Start, connect: Connect) -> None:
    server = start("tests.support.fakes:app_that_gets_stuck()", AIP_HEALTH_ROUTE="/ping")
    connections = [connect(server) for _ in range(ALL_THREADS)]
    for connection in connections:
        connection.sendall(b"GET /stuck HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: server.log().count("stuck") == ALL_THREADS)
    assert server.ask("/health")[0] == server.ask("/ping")[0] == 200
    for head in (b"GET /livez", b"GET /readyz", b"HEAD /health", b"HEAD /livez"):
        probe = connect(server)
        probe.sendall(head + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert probe.recv(1_000).startswith(b"HTTP/1.1 200 ")
    server.kill()


@pytest.mark.usefixtures("many_files")
def test_at_the_limit_of_connections_the_oldest_idle_one_makes_way(start: Start, connect: Connect) -> None:
    server = start(GUNICORN_CMD_ARGS="--worker-connections=1")  # the worker makes it twice its threads
    workers = server.children("gunicorn")
    for _ in range(8):  # each time the oldest ask just when they have to make way
        connections = [connect(server) for _ in range(2 * ALL_THREADS)]
        for connection in connections[: ALL_THREADS // 2]:
            connection.sendall(b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connect(server)
    assert server.ask("/health")[0] == 200
    assert server.children("gunicorn") == workers


@pytest.mark.parametrize("half", HALVES)
def test_a_client_that_never_sends_the_rest_is_hung_up_on(start: Start, connect: Connect, half: str) -> None:
    server = start(YUE_NETWORK_SECONDS="0.5")
    connections = [connect(server) for _ in range(ALL_THREADS)]
    for connection in connections:
        connection.sendall(HALVES[half])
    for connection in connections:
        assert b"predictions" not in all_of(connection)
    assert server.ask("/jobs")[1]["jobs"] == []
    assert "Traceback" not in server.log()


def test_a_client_that_stops_in_its_body_is_told_that_it_took_too_long(start: Start, connect: Connect) -> None:
    connection = connect(start(YUE_NETWORK_SECONDS="0.5"))
    connection.sendall(HALVES["half a body"])
    answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b"urn:yue:problem:request-timeout" in answer


def test_a_body_that_comes_in_many_pieces_is_read(start: Start, connect: Connect) -> None:
    connection = connect(start())
    request = (HEAD % len(BODY)).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + BODY
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for place in range(len(request)):
        connection.sendall(request[place : place + 1])
    answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"status":"succeeded"' in answer, answer[:500]


def test_those_who_do_not_read_their_audio_hold_nobody_up_and_the_slowest_are_hung_up_on(
    start: Start, connect: Connect
) -> None:
    server = start(LOUD_APP, YUE_MAX_RESPONSE_BYTES="100000000")
    job_id = order(server)
    connections = [connect(server) for _ in range(ALL_THREADS)]
    for connection in connections:
        connection.sendall(f"GET /jobs/{job_id}/audio/mix.mp3 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    until(lambda: opened(server, connections) <= SLOW_CONNECTIONS)
    status, song = server.ask("/predict", {"instances": [{"job_id": job_id, "operation": "result"}]})
    assert (status, song["predictions"][0]["status"]) == (200, "succeeded")
    closed = next(connection for connection in connections if opened(server, [connection]) == 0)
    assert len(all_of(closed)) < LOUD_BYTES


def test_a_slow_reader_gets_all_of_a_large_song(start: Start, connect: Connect) -> None:
    server = start(LOUD_APP)
    connection = connect(server)
    job_id = order(server)
    connection.sendall(
        f"GET /jobs/{job_id}/audio/mix.mp3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert server.ask("/health")[0] == 200  # its buffers are full by now, and it has read nothing
    head, _, audio = all_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert audio == audio_of(1, LOUD_BYTES)


def test_a_thousand_idle_connections_keep_nobody_out(start: Start, connect: Connect, many_files: None) -> None:
    server = start()
    idle = [connect(server) for _ in range(1_000)]
    for connection in idle:
        assert is_healthy(connection)
    silent = [connect(server) for _ in range(1_000)]
    assert server.ask("/health")[0] == 200
    check_that_it_generates(server)
    for connection in (idle[0], idle[-1], silent[-1]):  # and they are served, too
        assert is_healthy(connection)


def test_more_connections_than_files_may_be_open_do_not_end_the_server(
    start: Start, connect: Connect, many_files: None
) -> None:
    server = start()
    worker = worker_of(server)
    _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (200, hard))
    for _ in range(400):
        connect(server)
    assert server.ask("/health")[0] == 200
    assert worker_of(server) == worker


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"\r\n" * 1_000 + b"\0" * 1_000,
    ],
)
def test_what_is_no_http_is_refused_and_forgotten(start: Start, connect: Connect, noise: bytes) -> None:
    server = start(YUE_NETWORK_SECONDS="1")
    connection = connect(server)
    connection.sendall(noise)
    connection.shutdown(socket.SHUT_WR)
    status = all_of(connection).partition(b"\r\n")[0].split(b" ")[1:2]
    assert not status or status[0].startswith((b"4", b"505")), status
    assert server.ask("/health")[0] == 200


# The machine


def test_a_full_disk_refuses_songs_and_takes_them_when_there_is_room(start: Start) -> None:
    server = start()
    check_that_it_generates(server)
    worker = worker_of(server)
    limits = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, limits[1]))  # no file can be written, as on a full disk
    status, refused = server.generate(**SONG)
    assert (status, refused["type"]) == (507, "urn:yue:problem:storage-full"), refused
    assert server.ask("/health")[0] == 200
    assert len(server.ask("/jobs")[1]["jobs"]) == 1  # what is there can be read
    resource.prlimit(worker, resource.RLIMIT_FSIZE, limits)
    check_that_it_generates(server)
    assert worker_of(server) == worker


def test_a_read_only_folder_refuses_songs_and_shows_those_that_are_there(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if subprocess.run(["mount", "--bind", str(data), str(data)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        server = start()
        status, generated = server.generate(**SONG)
        assert status == 200
        until(lambda: not list((data / "live" / "open").rglob("*/*")) or not (data / "live" / "open").exists())
        remount = ["mount", "-o", "remount,bind,ro", str(data)]
        subprocess.run(remount, check=True)
        status, refused = server.generate(**SONG)
        assert (status, refused["type"]) == (503, "urn:yue:problem:storage-failed"), refused
        assert server.ask("/health")[0] == 200
        _, result = server.generate(job_id=generated["job_id"], operation="result")
        assert base64.b64decode(result["audio"]) == audio_of(1)
        remount[2] = "remount,bind,rw"
        subprocess.run(remount, check=True)
        check_that_it_generates(server)
        assert server.end() == 0
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
int clock_gettime(clockid_t which, struct timespec *moment) {
    static int (*real)(clockid_t, struct timespec *);
    struct stat ahead;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, moment);
    if (which == CLOCK_REALTIME) {
        if (!stat(getenv("AHEAD"), &ahead)) moment->tv_sec += 315360000;
        else if (!stat(getenv("BEHIND"), &ahead)) moment->tv_sec -= 315360000;
    }
    return result;
}
"""


@pytest.mark.parametrize("way", ["AHEAD", "BEHIND"])
def test_a_clock_that_jumps_ten_years_loses_no_song_and_no_server(start: Start, tmp_path: Path, way: str) -> None:
    files = {name: tmp_path / name for name in ("AHEAD", "BEHIND")}
    environment = {name: str(path) for name, path in files.items()}
    server = start(LD_PRELOAD=jumping_clock(tmp_path), YUE_KEEP_HOURS="1", **environment)
    other = start(LD_PRELOAD="", **environment)
    before = order(server)
    year = created(server, before)
    files[way].touch()
    after = order(server)
    assert abs(created(server, after) - year) in range(9, 12), "the clock has not jumped"
    for each in (server, other):
        jobs = {job["job_id"]: job["status"] for job in each.ask("/jobs")[1]["jobs"]}
        assert jobs == {before: "succeeded", after: "succeeded"}
    files[way].unlink()  # and back
    check_that_it_generates(server)
    assert server.end() == 0 and other.end() == 0


def jumping_clock(folder: Path) -> str:
    """A library that moves the wall clock of a process that is started with it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler here")
    (folder / "clock.c").write_text(CLOCK)
    library = str(folder / "clock.so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, str(folder / "clock.c"), "-ldl"], check=True)
    return library


def created(server: RealServer, job_id: str) -> int:
    """The year in which a job was created."""
    moment: str = server.ask(f"/jobs/{job_id}")[1]["created_at"]
    return int(moment[:4])


def order(server: RealServer) -> str:
    """The id of a song that is generated."""
    job_id: str = server.generate(**SONG, wait_seconds=0)[1]["job_id"]
    until(lambda: server.ask(f"/jobs/{job_id}")[1]["status"] == "succeeded")
    return job_id


def worker_of(server: RealServer) -> int:
    """The process that answers."""
    (worker,) = [pid for pid in server.children("gunicorn") if pid != server.process.pid]
    return worker


def opened(server: RealServer, connections: list[Any]) -> int:
    """How many of those connections the server still has open."""
    ports = {f"{connection.getsockname()[1]:04X}" for connection in connections}
    own = f"{server.port:04X}"
    inodes = {os.readlink(link) for link in Path(f"/proc/{worker_of(server)}/fd").iterdir() if link.is_symlink()}
    held = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(own) and words[2].rpartition(":")[2] in ports:
            held += f"socket:[{words[9]}]" in inodes
    return held
