"""Finished jobs are forgotten by their age and their bytes; others never."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from serving.jobs.errors import JobError
from serving.jobs.job import now
from serving.jobs.maintenance import Retention
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from storage import Storage
from tests.support.fakes import FakeModels, audio_of, new_folder
from tests.support.jobs import finished, new_store, song


def test_the_oldest_finished_jobs_are_forgotten_by_age(models: FakeModels) -> None:
    folder = Path(new_folder())
    jobs = Jobs(models.manager(), JobStore(Storage.at(folder)), 9, Retention(hours=1), models.clock)
    done = [finished(jobs, jobs.submit(song(seed, request_id=str(seed)))) for seed in range(3)]
    two_hours_ago = time.time() - 7_200
    for file in (folder / "ended").iterdir():
        os.utime(file, (two_hours_ago, two_hours_ago))
    jobs.maintenance.run_round()
    assert [job.id for job in jobs.list()] == [done[2].id]  # the newest stays
    with pytest.raises(JobError) as caught:
        jobs.get(done[0].id)
    assert caught.value.kind == "not-found"
    assert jobs.submit(song(0, request_id="0")).id != done[0].id
    jobs.close()


def test_the_oldest_finished_jobs_are_forgotten_by_bytes(models: FakeModels) -> None:
    one_song = len(audio_of(song(1).request, "mix"))
    jobs = Jobs(models.manager(), new_store(), 9, Retention(limit_bytes=2 * one_song))
    done = [finished(jobs, jobs.submit(song(seed))) for seed in range(4)]
    jobs.maintenance.run_round()
    assert [job.id for job in jobs.list()] == [done[3].id, done[2].id]
    jobs.close()


def test_a_song_larger_than_the_bound_is_kept_until_the_next(models: FakeModels) -> None:
    jobs = Jobs(models.manager(), new_store(), 9, Retention(limit_bytes=1))
    done = finished(jobs, jobs.submit(song(1)))
    jobs.maintenance.run_round()
    assert jobs.get(done.id).song == done.song
    jobs.close()


def test_jobs_that_wait_are_never_forgotten(held_models: FakeModels) -> None:
    manager = held_models.manager()
    manager.ensure_models_available()
    jobs = Jobs(manager, new_store(), 9, Retention(limit_bytes=1, hours=1e-9), held_models.clock)
    submitted = [jobs.submit(song(seed)) for seed in range(3)]
    held_models.clock.advance(3_600)
    jobs.maintenance.run_round()
    assert {job.id for job in jobs.list()} == {job.id for job in submitted}
    jobs.close()


def test_a_clock_that_jumps_ahead_makes_no_song_old(models: FakeModels, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(models.manager(), new_store(), 9, Retention(hours=1), models.clock)
    done = [finished(jobs, jobs.submit(song(seed))) for seed in range(2)]
    monkeypatch.setattr("serving.jobs.maintenance.now", lambda: now() + timedelta(days=400))
    jobs.maintenance.run_round()
    assert {job.id for job in jobs.list()} == {job.id for job in done}
    jobs.close()
