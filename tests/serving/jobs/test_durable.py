"""Whole servers end in every way, and no song that they accepted is lost or generated twice."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving.jobs.job import FINISHED
from tests.support.real_server import RealServer, until

pytestmark = pytest.mark.slow

LYRICS = "[verse]\nla la la\n\n[chorus]\nla"
SHORT = {"genres": "pop", "lyrics": LYRICS, "segments": 1, "max_new_tokens": 200, "wait_seconds": 0}
DEADLINE_S = 240.0  # for a few songs on a busy machine
Start = Callable[..., RealServer]


@pytest.fixture
def start(tmp_path: Path, tiny_cache: Path) -> Iterator[Start]:
    """Starts real servers with the tiny model, all on one folder."""
    with ExitStack() as servers:

        def start(**settings: str) -> RealServer:
            here = {"YUE_DATA": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tiny_cache), "YUE_DEVICE": "cpu"}
            server = servers.enter_context(
                RealServer({**here, "YUE_DTYPE": "float32", "YUE_MAX_SONGS": "1", **settings})
            )
            server.wait_until_answered()
            return server

        yield start


def status(server: RealServer, job_id: str) -> Any:
    return server.ask(f"/jobs/{job_id}")[1]["status"]


def folders(tmp_path: Path) -> set[str]:
    return {folder.name for folder in (tmp_path / "data" / "jobs").iterdir()}


def ask_for_songs(server: RealServer) -> dict[str, str]:
    """Songs that are generated one after the other, the first of them started: key -> job id."""
    songs = {f"key-{seed}": server.generate(**SHORT, seed=seed, request_id=f"key-{seed}")[1] for seed in range(2)}
    ids = {key: song["job_id"] for key, song in songs.items()}
    until(lambda: status(server, ids["key-0"]) != "queued", DEADLINE_S)
    return ids


def check_that_each_is_one_song(server: RealServer, ids: dict[str, str], tmp_path: Path) -> None:
    for seed, (key, job_id) in enumerate(ids.items()):
        assert server.generate(**SHORT, seed=seed, request_id=key)[1]["job_id"] == job_id
        until(lambda job_id=job_id: status(server, job_id) in FINISHED, DEADLINE_S)
        song = server.generate(job_id=job_id, operation="result")[1]
        assert song["status"] == "succeeded", song
        assert base64.b64decode(song["audio"])
    assert folders(tmp_path) == set(ids.values())


def test_a_server_that_is_killed_finishes_its_songs_when_it_is_started_again(start: Start, tmp_path: Path) -> None:
    server = start()
    ids = ask_for_songs(server)
    server.kill()
    check_that_each_is_one_song(start(), ids, tmp_path)


def test_a_worker_that_is_killed_is_followed_by_one_that_finishes_its_songs(start: Start, tmp_path: Path) -> None:
    server = start()
    ids = ask_for_songs(server)
    (worker,) = [pid for pid in server.children("gunicorn") if pid != server.process.pid]
    os.kill(worker, signal.SIGKILL)
    server.wait_until_answered()
    check_that_each_is_one_song(server, ids, tmp_path)


def test_a_server_that_is_told_to_stop_leaves_its_songs_to_the_next(start: Start, tmp_path: Path) -> None:
    server = start(YUE_WAIT_SECONDS="0")
    ids = ask_for_songs(server)
    assert server.end() == 0, server.log()
    check_that_each_is_one_song(start(), ids, tmp_path)


def test_two_servers_on_one_folder_answer_for_each_other(start: Start) -> None:
    one, other = start(), start()
    job_id = one.generate(**SHORT, seed=1, request_id="key")[1]["job_id"]
    until(lambda: status(one, job_id) in FINISHED, DEADLINE_S)
    generated = one.generate(job_id=job_id, operation="result")[1]
    result = other.generate(job_id=generated["job_id"], operation="result")[1]
    assert (result["audio"], result["seed"]) == (generated["audio"], 1)
    assert other.generate(**SHORT, seed=1, request_id="key")[1]["job_id"] == generated["job_id"]
    refused, problem = other.generate(**SHORT, seed=2, request_id="key")
    assert (refused, problem["type"]) == (409, "urn:yue:problem:conflict")

    assert {job["job_id"] for job in other.ask("/jobs")[1]["jobs"]} == {generated["job_id"]}


def test_a_song_that_one_server_generates_is_cancelled_at_another(start: Start) -> None:
    one, other = start(), start()
    one.ask("/download-models", {})
    (engine,) = one.children("inference.process.engine_process")
    os.kill(engine, signal.SIGSTOP)  # so that the song cannot end before the cancel request is seen, however fast it is
    job_id = one.generate(**SHORT)[1]["job_id"]
    until(lambda: status(other, job_id) == "running")
    assert other.generate(job_id=job_id, operation="cancel")[1]["cancel_requested"]
    until(lambda: one.ask(f"/jobs/{job_id}")[1]["cancel_requested"])
    os.kill(engine, signal.SIGCONT)
    until(lambda: status(one, job_id) == "cancelled")
    assert status(other, job_id) == "cancelled"


def test_a_song_whose_server_is_killed_is_finished_by_another(start: Start, tmp_path: Path) -> None:
    one, other = start(), start()
    ids = ask_for_songs(one)
    one.kill()
    check_that_each_is_one_song(other, ids, tmp_path)
