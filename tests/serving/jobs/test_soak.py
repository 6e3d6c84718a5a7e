"""Two servers are killed all the while clients come, vanish, ask again and cancel; the long form is a benchmark."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import report, resident_bytes, soak, weighed
from benchmarks.soak_audit import LATE_SECONDS, PLACES, audit_folder, audit_places, audit_process
from benchmarks.soak_clients import Found, ServerSlot
from inference.song import SongRequest
from serving.jobs.job import Job
from serving.jobs.records import cancelled
from serving.jobs.store import JobStore
from storage import Storage
from tests.support.real_server import RealServer

pytestmark = pytest.mark.slow

SONGS = 28
SECONDS = 24.0


def test_every_accepted_song_comes_to_one_end_whoever_is_killed(tmp_path: Path) -> None:
    found = soak(tmp_path, SONGS, SECONDS, seed=1)
    assert not found.violations, report(found)
    ended = sum(count for what, count in found.counts.items() if what.startswith("ended "))
    kills = sum(count for what, count in found.counts.items() if what.startswith("kills: "))
    assert (ended, len(found.jobs)) == (SONGS, SONGS)
    assert kills >= 4 and found.counts["ended succeeded"] >= SONGS / 2, report(found)
    assert found.counts["MB of the spared server, in the beginning"] > 10, report(found)
    assert found.counts["who disconnects"] and found.counts["retries"] and found.counts["ended cancelled"], report(
        found
    )


def test_a_key_that_is_answered_with_two_jobs_is_noticed() -> None:
    found = Found()
    for job_id in ("a", "a", "b"):
        found.accepted(7, job_id)
    assert found.violations == ["song 7: its key was job a, and is job b now"]


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A folder with one job that is over, and the job's id."""
    monkeypatch.setattr("benchmarks.soak_audit.LATE_SECONDS", 0.0)
    assert LATE_SECONDS > 0
    store = JobStore(Storage.at(tmp_path))
    job = Job(SongRequest("pop", "[verse]\nla", 1), "tiny", request_id="key", fingerprint="1")
    assert store.create(job) and store.end(job, cancelled(RuntimeError("enough")))
    return tmp_path, job.id


def test_a_folder_with_nothing_but_ended_jobs_is_in_order(ended: tuple[Path, str]) -> None:
    folder, job_id = ended
    assert audit_folder(folder, {job_id: "cancelled"}, servers=1) == []


@pytest.mark.parametrize(
    "leftover",
    ["live/cancel/x", "live/open/y/x", "live/replicas/y", "jobs/{}/job.json#1", "jobs/{}/reference-mix",
     "jobs/{}/audio-3/mix.mp3", "keys/y.json", "jobs/y/job.json"],
)  # fmt: skip
def test_whatever_is_left_beside_ended_jobs_is_noticed(ended: tuple[Path, str], leftover: str) -> None:
    folder, job_id = ended
    path = folder / leftover.format(job_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"job_id": "y"}))
    assert audit_folder(folder, {job_id: "cancelled"}, servers=1)


@pytest.mark.parametrize("missing", ["jobs/{}/end.json", "jobs/{}", "keys", "ended"])
def test_whatever_an_ended_job_lacks_is_noticed(ended: tuple[Path, str], missing: str) -> None:
    folder, job_id = ended
    path = folder / missing.format(job_id)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert audit_folder(folder, {job_id: "cancelled"}, servers=1)


class IdleServer(RealServer):
    """Answers from this very process; `keep` is called with every request."""

    def __init__(self, keep: Callable[[], object] = lambda: None, **metrics: float) -> None:
        self._retention, self._metrics = keep, metrics

    def ask(self, path: str, body: object = None, method: str | None = None) -> tuple[int, Any]:
        self._retention()
        return 200, {"status": "healthy"}

    def metrics(self) -> dict[str, float]:
        return {**dict.fromkeys(PLACES, 0.0), **self._metrics}


class SparedServer(ServerSlot):
    """Its servers are those processes, one after the other."""

    def __init__(self, *workers: int) -> None:
        self._workers = list(workers)

    @property
    def worker(self) -> int:
        return self._workers.pop(0) if len(self._workers) > 1 else self._workers[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.soak_audit.QUIET_SECONDS", 0.1)
    monkeypatch.setattr("benchmarks.soak_audit.LOOK_SECONDS", 0.001)
    monkeypatch.setattr("benchmarks.soak_audit.REQUESTS", 2)


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    """Those that tests leave behind, until their end."""
    begun: list[threading.Thread] = []
    yield begun
    for thread in begun:
        thread.join()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_keeps_nothing_of_its_requests_is_in_order() -> None:
    assert audit_process(IdleServer(), os.getpid()) == []
    assert audit_places(IdleServer()) == []


@pytest.mark.usefixtures("impatient")
def test_descriptors_that_stay_are_noticed() -> None:
    kept: list[int] = []
    try:
        (wrong,) = audit_process(IdleServer(lambda: kept.append(os.open("/dev/null", os.O_RDONLY))), os.getpid())
    finally:
        for descriptor in kept:
            os.close(descriptor)
    assert "more stays" in wrong and "descriptors" in wrong


@pytest.mark.usefixtures("impatient")
def test_threads_that_stay_are_noticed(threads: list[threading.Thread]) -> None:
    end = threading.Event()

    def keep() -> None:
        threads.append(threading.Thread(target=end.wait))
        threads[-1].start()

    try:
        (wrong,) = audit_process(IdleServer(keep), os.getpid())
    finally:
        end.set()
    assert "more stays" in wrong and "threads" in wrong


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_stays_taken_is_noticed(place: str) -> None:
    assert audit_places(IdleServer(**{place: 1.0})) == [f"all songs have ended, and {place} is 1.0"]


def test_memory_that_grows_while_a_server_is_spared_is_noticed() -> None:
    found = Found()
    with weighed(SparedServer(os.getpid()), found):
        kept = b"x" * resident_bytes(os.getpid())
    assert kept and "memory grew from" in "".join(found.violations)
    before, after = (found.counts[f"MB of the spared server, in the {when}"] for when in ("beginning", "end"))
    assert after > before > 0


def test_a_spared_server_that_ends_is_noticed() -> None:
    found = Found()
    with weighed(SparedServer(os.getpid(), os.getppid()), found):
        pass
    assert found.violations == ["the server that was spared has ended by itself"]
