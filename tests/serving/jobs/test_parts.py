"""The parts of a song are stored while it is generated, cost it nothing, and last as long as the song."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from inference.song import SectionSpan, Song, SongPart
from serving.jobs import records
from serving.jobs.job import Job
from serving.jobs.part_writer import MOST_WAITING
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from storage import Storage, StorageError
from tests.support.fakes import SECONDS, FakeModels, new_folder
from tests.support.jobs import finished, new_store, song
from tests.support.real_server import until


class PartStorage(Storage):
    """A storage that takes its time over parts, or refuses them."""

    def __init__(self) -> None:
        folder = new_folder()
        super().__init__(Storage.at(folder)._store, folder)
        self.may_write = threading.Event()
        self.may_write.set()
        self.refuses = False
        self.room_bytes: int | None = None

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        if "/parts-" in path:
            assert self.may_write.wait(SECONDS)
            if self.refuses:
                raise StorageError(f"{path}: the bucket is away", "unavailable")
        used_bytes = sum(entry.size_bytes for entry in self.entries("jobs"))
        if self.room_bytes is not None and used_bytes + len(content) > self.room_bytes:
            raise StorageError(f"{path}: no space left", "full")
        super().put(path, content, create=create)

    @property
    def parts(self) -> list[str]:
        return [entry.path.split("/", 2)[2] for entry in self.entries("jobs") if "/parts-" in entry.path]


@pytest.fixture
def storage() -> PartStorage:
    return PartStorage()


@pytest.fixture
def jobs(storage: PartStorage, held_models: FakeModels) -> Iterator[Jobs]:
    manager = held_models.manager()
    manager.ensure_models_available()
    jobs = Jobs(manager, JobStore(storage), max_queue=3)
    yield jobs
    storage.may_write.set()
    jobs.close()


def running(jobs: Jobs, models: FakeModels, n_parts: int = 0) -> Job:
    """A song of which so many parts are decoded."""
    job = jobs.submit(song())
    models.engine.wait_until_begun(1)
    for _ in range(n_parts):
        models.engine.send_part(job.id)
    return job


def is_playable(job: Job, seconds: float) -> bool:
    return job.progress is not None and job.progress.playable_seconds == seconds


def test_only_what_is_stored_is_playable(jobs: Jobs, held_models: FakeModels, storage: PartStorage) -> None:
    storage.may_write.clear()
    job = running(jobs, held_models, 2)
    assert is_playable(job, 0.0)
    storage.may_write.set()
    until(lambda: is_playable(job, 2.0), SECONDS)
    assert storage.parts == ["parts-0/0-mix.flac", "parts-0/1-mix.flac"]
    seen = JobStore(storage).read(job.id)
    assert seen and is_playable(seen, 2.0), "other servers know it at once"
    assert seen.sections == job.sections == (SectionSpan("verse", 0.0, 2.0),)


def test_the_parts_of_a_finished_song_stay_and_count(jobs: Jobs, held_models: FakeModels, storage: PartStorage) -> None:
    job = running(jobs, held_models, 2)
    held_models.engine.release()
    finished(jobs, job)
    assert job.song and job.song.parts == 2 and is_playable(job, 2.0)
    size_bytes = sum(entry.size_bytes for entry in storage.entries("jobs") if "-mix.flac" in entry.path)
    (ended,) = JobStore(storage).ended()
    assert ended.size_bytes == size_bytes + len(job.song.audio["mix"])
    jobs.delete(job.id)
    assert not storage.entries("jobs")


def test_a_storage_that_refuses_parts_fails_no_song(jobs: Jobs, held_models: FakeModels, storage: PartStorage) -> None:
    job = running(jobs, held_models, 1)
    until(lambda: is_playable(job, 1.0), SECONDS)
    storage.refuses = True
    held_models.engine.send_part(job.id)
    held_models.engine.send_part(job.id)
    held_models.engine.release()
    finished(jobs, job)
    assert job.state == "succeeded" and job.song and job.song.parts == 0
    assert is_playable(job, 0.0)
    assert not storage.parts


def test_a_full_storage_keeps_the_song_rather_than_its_parts(
    jobs: Jobs, held_models: FakeModels, storage: PartStorage
) -> None:
    job = running(jobs, held_models, 2)
    until(lambda: is_playable(job, 2.0), SECONDS)
    storage.room_bytes = sum(entry.size_bytes for entry in storage.entries("jobs"))
    held_models.engine.send_part(job.id)
    held_models.engine.release()
    finished(jobs, job)
    assert job.state == "succeeded" and job.song and job.song.parts == 0
    assert not storage.parts


def test_a_storage_that_hangs_delays_no_song(
    jobs: Jobs, held_models: FakeModels, storage: PartStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.jobs.dispatcher.PARTS_SECONDS", 0.05)
    storage.may_write.clear()
    job = running(jobs, held_models, MOST_WAITING + 5)
    held_models.engine.release()
    finished(jobs, job)
    assert job.state == "succeeded" and job.song and job.song.parts == 0
    storage.may_write.set()
    until(lambda: not any(thread.name == "jobs-parts" for thread in threading.enumerate()), SECONDS)
    assert not storage.parts, "what is written too late is removed"


@pytest.mark.parametrize("n_parts", [1, 3, 5])
def test_a_song_that_starts_again_replaces_its_parts(
    jobs: Jobs, held_models: FakeModels, storage: PartStorage, n_parts: int
) -> None:
    job = running(jobs, held_models, 3)
    until(lambda: is_playable(job, 3.0), SECONDS)
    first = held_models.engine
    first.die()
    until(lambda: held_models.engine is not first and held_models.engine.generated, SECONDS)
    assert len(jobs.parts(job, "mix")) == 3, "until there are others, those of the first attempt are heard"
    for _ in range(n_parts):
        held_models.engine.send_part(job.id)
    held_models.engine.release()
    finished(jobs, job)
    assert job.song and job.song.parts == n_parts == len(jobs.parts(job, "mix")) == len(storage.parts)


def part(index: int, content: bytes) -> SongPart:
    return SongPart(index, 6.0, {"mix": content, "vocal": b"vocal"})


def test_of_several_servers_the_newest_part_is_heard() -> None:
    store = new_store()
    job = song()
    assert store.create(job)
    for claim, indices in ((0, (0, 1, 2)), (1, (0,)), (2, (0, 1, 4))):
        for index in indices:
            store.parts.write(job.id, claim, part(index, b"%d" % claim))
    heard = [store.parts.get(entry.path) for entry in store.parts.listed(job.id, "mix")]
    assert heard == [b"2", b"2", b"0"]
    job.claim = 2
    assert store.end(job, records.succeeded(Song({"mix": b"all"}, "mp3", 44_100, 12.0, 1, (), parts=2)))
    names = {entry.path.split("/", 2)[2] for entry in store.storage.entries("jobs") if "parts" in entry.path}
    assert names == {f"parts-2/{index}-{track}.flac" for index in (0, 1) for track in ("mix", "vocal")}


def test_a_song_of_another_server_is_hurried_there(held_models: FakeModels, storage: PartStorage) -> None:
    manager = held_models.manager()
    manager.ensure_models_available()
    owner, other = (Jobs(manager, JobStore(storage), max_queue=3) for _ in range(2))
    job = owner.submit(song())
    held_models.engine.wait_until_begun(1)
    other.listen(other.get(job.id))
    owner.maintenance.run_round()
    owner.maintenance.run_round()
    assert held_models.engine.listened == [job.id]
    held_models.engine.release()
    finished(owner, job)
    assert not storage.entries("live/listen")
    for each in (owner, other):
        each.close()
