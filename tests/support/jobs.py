"""Jobs to submit in tests, where they are stored, and how to wait for their end."""

from __future__ import annotations

from inference.song import SongRequest
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from storage import Storage
from tests.support.fakes import LYRICS, SECONDS, new_folder


def new_store() -> JobStore:
    return JobStore(Storage.at(new_folder()))


def song(seed: int = 1, request_id: str | None = None) -> Job:
    request = SongRequest("pop", LYRICS, seed)
    return Job(request, "tiny", request_id=request_id, fingerprint=str(seed))


def finished(jobs: Jobs, job: Job) -> Job:
    assert jobs.wait(job, SECONDS), f"job is still {job.state}"
    return job
