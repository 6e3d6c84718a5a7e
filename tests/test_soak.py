"""Two servers are killed all the while clients come, vanish, ask again and cancel; the long form is a benchmark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.soak import report, soak
from benchmarks.soak_audit import LATE_SECONDS, audit_folder
from benchmarks.soak_clients import Found
from inference.song import SongRequest
from serving.job import Job
from serving.job_record import cancelled
from serving.job_store import JobStore
from storage import Storage

SONGS = 40
SECONDS = 35.0


def test_every_accepted_song_comes_to_one_end_whoever_is_killed(tmp_path: Path) -> None:
    found = soak(tmp_path, SONGS, SECONDS, seed=1)
    assert not found.violations, report(found)
    ended = sum(count for what, count in found.counts.items() if what.startswith("ended "))
    kills = sum(count for what, count in found.counts.items() if what.startswith("kills: "))
    assert (ended, len(found.jobs)) == (SONGS, SONGS)
    assert kills >= 4 and found.counts["ended succeeded"] >= SONGS / 2, report(found)
    assert found.counts["who vanishes"] and found.counts["retries"] and found.counts["ended cancelled"], report(found)


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
