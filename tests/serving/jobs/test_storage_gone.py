"""Whoever waits for a song is told soon when the storage is deleted, replaced, or refuses the server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.http import events
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from storage import Storage, StorageError
from tests.support.bucket_server import BucketServer, bucket_server
from tests.support.fakes import INSTANCE, SECONDS, FakeModels, Served, problem
from tests.support.jobs import song

LONG_S = 600


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Its engine begins songs, but ends none until told."""
    served = Served(may_generate=False, data=tmp_path / "data")
    served.client.post("/download-models")
    yield served
    served.models.engine.release()
    served.app.extensions["yue"].jobs.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "jobs").mkdir(parents=True)
    (folder / "README").write_text("another volume")


def delete_one_job(folder: Path) -> None:
    for job in (folder / "jobs").iterdir():
        shutil.rmtree(job)
    shutil.rmtree(folder / "live" / "open")


@pytest.mark.parametrize("change", [delete, replace, delete_one_job])
def test_whoever_waits_is_told_that_the_jobs_are_gone(
    served: Served, pool: ThreadPoolExecutor, change: Callable[[Path], None]
) -> None:
    jobs, folder = served.app.extensions["yue"].jobs, Path(served.app.extensions["yue"].settings.data)
    running = pool.submit(served.predict, INSTANCE)
    served.models.engine.wait_until_begun(1)
    queued = pool.submit(served.predict, {**INSTANCE, "request_id": "key", "wait_seconds": LONG_S})
    assert jobs.queue.wait_until(lambda: jobs.queue.counts().queued == 1, SECONDS)
    job_ids = [job.id for job in jobs.queue.living()]
    followed = pool.submit(lambda: served.client.get(f"/jobs/{job_ids[1]}/events").get_data(as_text=True))
    elsewhere = Jobs(FakeModels().manager(), JobStore(Storage.at(folder)), max_queue=3)
    seen_elsewhere = pool.submit(elsewhere.wait, elsewhere.get(job_ids[1]), LONG_S)
    change(folder)
    jobs.maintenance.wake()
    for waiting in (running, queued):
        answer = problem(waiting.result(SECONDS), 503)
        assert "no longer in the storage" in answer["detail"] and answer["job_id"] in job_ids
    assert seen_elsewhere.result(SECONDS)
    (end,) = (line for line in followed.result(SECONDS).splitlines() if '"failed"' in line)
    assert "no longer in the storage" in json.loads(end.removeprefix("data: "))["error"]["detail"]
    text = served.client.get("/metrics").get_data(as_text=True)
    assert 'yue_jobs_ended_total{state="failed"} 2.0' in text
    served.models.engine.release()
    assert served.one(request_id="key")["status"] == "succeeded"
    elsewhere.close()


class Refusing(Storage):
    """A storage that can be read, and refuses every write when told to."""

    refuses = False

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        if self.refuses:
            raise StorageError(f"{self.name}/{path} may not be used with these credentials", "denied")
        super().put(path, content, create=create)


def jobs_on(storage: Storage) -> tuple[Jobs, FakeModels]:
    models = FakeModels(may_fetch=False)
    return Jobs(models.manager(), JobStore(storage), max_queue=3), models


def check_that_waiting_ends(jobs: Jobs, refuse: Callable[[], None], allow: Callable[[], None]) -> None:
    """Clients that wait for a song that has not started are told; when the storage is back, the song is generated."""
    job = jobs.submit(song())
    told: Future[Any] = Future()

    def wait() -> None:
        try:
            told.set_result(jobs.wait(job, LONG_S))
        except StorageError as error:
            told.set_exception(error)

    threading.Thread(target=wait).start()
    refuse()
    for step in (jobs.maintenance.beat, jobs.maintenance.run_round):
        with pytest.raises(StorageError) as refusal:
            step()
            raise StorageError("as the next step does", "denied")
        assert refusal.value.kind in ("denied", "missing")
    assert isinstance(told.exception(SECONDS), StorageError)
    (stream,) = (chunk for chunk in events.stream(jobs, job, None, lambda: False) if "event: problem" in chunk)
    assert job.id in stream and "storage-failed" in stream
    allow()
    jobs.maintenance.beat()
    jobs.maintenance.run_round()


def test_whoever_waits_is_told_that_the_storage_takes_no_writes(tmp_path: Path) -> None:
    storage = Refusing(Storage.at(tmp_path)._store, str(tmp_path))
    jobs, models = jobs_on(storage)
    check_that_waiting_ends(jobs, lambda: setattr(storage, "refuses", True), lambda: setattr(storage, "refuses", False))
    models.may_fetch.set()
    (job,) = jobs.queue.living()
    assert jobs.wait(job, SECONDS) and job.state == "succeeded"
    jobs.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[BucketServer]:
    with bucket_server() as bucket:
        yield bucket


@pytest.mark.parametrize("status", [403, 404])
def test_whoever_waits_is_told_that_the_bucket_refuses_the_server(bucket: BucketServer, status: int) -> None:
    jobs, models = jobs_on(bucket.storage(f"refused-{status}"))
    check_that_waiting_ends(jobs, lambda: setattr(bucket, "refusal", status), lambda: setattr(bucket, "refusal", 0))
    models.may_fetch.set()
    (job,) = jobs.queue.living()
    assert jobs.wait(job, SECONDS) and job.state == "succeeded"
    jobs.close()


def test_a_storage_that_refuses_is_a_503_that_names_the_job(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    storage = Refusing(Storage.at(tmp_path)._store, str(tmp_path))
    served = Served(may_fetch=False, data=tmp_path)
    jobs = served.app.extensions["yue"].jobs
    jobs._store.storage = storage
    waiting = pool.submit(served.predict, INSTANCE, INSTANCE)
    assert jobs.queue.wait_until(lambda: jobs.queue.counts().queued == 2, SECONDS)
    storage.refuses = True
    with pytest.raises(StorageError):
        jobs.maintenance.beat()
    answer = problem(waiting.result(SECONDS), 503)
    assert {error["job_id"] for error in answer["errors"]} == {job.id for job in jobs.queue.living()}
    storage.refuses = False
    jobs.close()
