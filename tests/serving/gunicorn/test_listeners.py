"""Listeners of a real server: however they behave, and however they leave, nothing of them is left."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.support.real_server import RealServer, until

pytestmark = pytest.mark.slow

SONG = {"genres": "pop", "lyrics": "[verse]\nla la la", "seed": 1, "wait_seconds": 0}
LISTENERS, TOGETHER = 200, 40
SECONDS = 60.0


@pytest.fixture
def server() -> Iterator[RealServer]:
    with RealServer({}, "tests.support.fakes:fake_app(may_generate=False)") as server:
        server.wait_until_answered()
        yield server
        if server.process.poll() is None:  # it would wait for its song
            server.ask("/release", method="POST")
        assert "Traceback" not in server.log()


def begun(server: RealServer, n_parts: int) -> str:
    """A running song, of which so many parts can be heard."""
    job_id: str = server.generate(**SONG)[1]["job_id"]
    until(lambda: server.ask(f"/jobs/{job_id}")[1]["progress"])
    for _ in range(n_parts):
        assert server.ask("/part", method="POST")[0] == 200
    until(lambda: server.ask(f"/jobs/{job_id}")[1]["progress"]["playable_seconds"] == n_parts)
    return job_id


@contextmanager
def listening(server: RealServer, job_id: str, name: str = "mix.mp3") -> Iterator[http.client.HTTPResponse]:
    """A stream whose first bytes have arrived."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        connection.request("GET", f"/jobs/{job_id}/stream/{name}")
        with connection.getresponse() as response:
            assert response.status == 200 and response.chunked
            assert response.read1(100)
            yield response


def worker(server: RealServer) -> int:
    """The process that answers: gunicorn's only child that is no engine."""
    return next(pid for pid in server.children("gunicorn") if pid != server.process.pid)


def used(pid: int) -> tuple[int, int]:
    """The threads and the descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def test_listeners_who_leave_take_no_thread_descriptor_or_slot_with_them(server: RealServer) -> None:
    job_id, pid = begun(server, 2), worker(server)

    def come_and_go(n: int) -> None:
        with ExitStack() as listeners:
            for _ in range(n):
                listeners.enter_context(listening(server, job_id, "mix.wav"))
        until(lambda: server.ask("/waiters")[1] == 0)

    come_and_go(TOGETHER)  # after this every thread of the pool that is needed is there
    before = until(lambda: used(pid))
    for _ in range(LISTENERS // TOGETHER):
        come_and_go(TOGETHER)
    until(lambda: all(now <= then + 2 for now, then in zip(used(pid), before, strict=True)))
    server.ask("/release", method="POST")
    until(lambda: server.ask(f"/jobs/{job_id}")[1]["status"] == "succeeded")


def test_a_listener_who_leaves_before_the_first_part_gives_the_slot_back(server: RealServer) -> None:
    job_id = begun(server, 0)
    with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", f"/jobs/{job_id}/stream/mix.ogg")
        until(lambda: server.ask("/waiters")[1] == 1)
    until(lambda: server.ask("/waiters")[1] == 0)


def test_a_listener_who_does_not_read_delays_no_song_and_no_other_listener(server: RealServer) -> None:
    job_id = begun(server, 30)
    with listening(server, job_id, "mix.wav"):  # 2.6 MB, more than the buffers between, and nobody reads them
        assert server.ask("/part", method="POST")[0] == 200
        server.ask("/release", method="POST")
        until(lambda: server.ask(f"/jobs/{job_id}")[1]["status"] == "succeeded")
        with listening(server, job_id, "mix.wav") as other:
            assert len(other.read()) > 2_600_000
    until(lambda: server.ask("/waiters")[1] == 0)


def test_a_song_that_ends_too_early_ends_its_stream_without_the_last_chunk(server: RealServer) -> None:
    job_id = begun(server, 1)
    with listening(server, job_id) as response:
        server.ask(f"/jobs/{job_id}/cancel", method="POST")
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            response.read()
    until(lambda: server.ask("/waiters")[1] == 0)


def test_a_server_that_stops_lets_its_song_be_heard_to_the_end(server: RealServer) -> None:
    with listening(server, begun(server, 2)) as response:
        server.process.terminate()
        until(lambda: server.ask("/health")[1]["status"] == "draining")
        server.ask("/release", method="POST")
        assert len(response.read()) > 24_000
    assert server.process.wait(SECONDS) == 0
