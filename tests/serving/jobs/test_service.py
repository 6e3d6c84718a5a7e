"""Jobs: admission, order, cancelling, idempotency, and failures that stay with their song."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference.errors import CheckpointError, DownloadError, EngineError
from inference.song import Reference, SongRequest
from serving.jobs.errors import JobError
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from storage import Storage
from tests.support.fakes import LYRICS, SECONDS, FakeModels, audio_of, new_folder
from tests.support.jobs import finished, new_store, song


@pytest.fixture
def jobs(models: FakeModels) -> Iterator[Jobs]:
    jobs = Jobs(models.manager(), new_store(), max_queue=3)
    yield jobs
    jobs.close()


@pytest.fixture
def held_jobs(held_models: FakeModels) -> Iterator[Jobs]:
    manager = held_models.manager()
    manager.ensure_models_available()
    jobs = Jobs(manager, new_store(), max_queue=3)
    yield jobs
    jobs.close()


def test_a_job_ends_in_its_song(jobs: Jobs) -> None:
    job = finished(jobs, jobs.submit(song()))
    assert job.state == "succeeded"
    assert job.song is not None and job.song.audio == {"mix": audio_of(job.request, "mix")}
    assert job.started_at and job.finished_at and job.created_at <= job.started_at <= job.finished_at
    assert jobs.get(job.id).song == job.song


def test_songs_are_generated_in_the_order_they_came(held_jobs: Jobs, held_models: FakeModels) -> None:
    submitted = [held_jobs.submit(song(seed)) for seed in range(3)]
    held_models.engine.release()
    for job in submitted:
        finished(held_jobs, job)
    assert held_models.engine.generated == [job.id for job in submitted]


def test_a_running_job_shows_its_progress(held_jobs: Jobs, held_models: FakeModels) -> None:
    job = held_jobs.submit(song())
    held_models.engine.wait_until_begun(1)
    assert job.state == "running"
    assert job.progress is not None and job.progress.stage == "stage1"


def test_a_full_queue_says_when_to_come_back(held_jobs: Jobs, held_models: FakeModels) -> None:
    held_jobs.submit(song())
    held_models.engine.wait_until_begun(1)
    for seed in range(3):
        held_jobs.submit(song(seed))
    with pytest.raises(JobError) as caught:
        held_jobs.submit(song())
    assert caught.value.kind == "queue-full"
    assert caught.value.retry_seconds
    assert len(held_jobs.list()) == 4


def test_a_queued_job_is_cancelled_at_once(held_jobs: Jobs, held_models: FakeModels) -> None:
    held_jobs.submit(song())
    held_models.engine.wait_until_begun(1)
    waiting = held_jobs.submit(song(2))
    assert held_jobs.cancel(waiting.id).state == "cancelled"
    held_models.engine.release()
    after = finished(held_jobs, held_jobs.submit(song(3)))
    assert after.state == "succeeded"
    assert waiting.id not in held_models.engine.generated


def test_a_job_is_cancelled_while_its_models_are_downloaded() -> None:
    models = FakeModels(may_fetch=False)
    jobs = Jobs(models.manager(), new_store(), max_queue=3)
    first, second = jobs.submit(song()), jobs.submit(song(2))
    assert jobs.cancel(first.id).state == "cancelled"
    models.may_fetch.set()
    assert finished(jobs, second).state == "succeeded"
    assert models.engine.generated == [second.id]
    jobs.close()


def test_a_running_job_is_cancelled_and_the_next_one_generates(held_jobs: Jobs, held_models: FakeModels) -> None:
    first, second = held_jobs.submit(song()), held_jobs.submit(song(2))
    held_models.engine.wait_until_begun(1)
    held_jobs.cancel(first.id)
    assert finished(held_jobs, first).state == "cancelled"
    held_jobs.cancel(first.id)  # too late, and it must not reach the second
    held_models.engine.release()
    assert finished(held_jobs, second).state == "succeeded"
    assert held_models.engine.cancelled == [first.id]


def test_a_cancel_before_the_engine_knows_the_song_is_not_lost(held_models: FakeModels) -> None:
    manager = held_models.manager()
    engine = manager.ensure_models_available()
    jobs = Jobs(manager, new_store(), max_queue=3)
    real_generate = engine.generate

    def generate_after_the_cancel(song_id, *given):
        jobs.cancel(song_id)
        engine.cancelled.clear()  # the engine did not know that song yet
        return real_generate(song_id, *given)

    engine.generate = generate_after_the_cancel
    assert finished(jobs, jobs.submit(song())).state == "cancelled"
    jobs.close()


def test_cancelling_a_finished_job_changes_nothing(jobs: Jobs) -> None:
    job = finished(jobs, jobs.submit(song()))
    assert jobs.cancel(job.id).state == "succeeded"
    assert not job.cancel_requested


def test_a_song_that_fails_leaves_the_next_one_alone(held_jobs: Jobs, held_models: FakeModels) -> None:
    held_models.engine.error = CheckpointError("stage1", "cut short")
    first = held_jobs.submit(song())
    held_models.engine.release()
    assert finished(held_jobs, first).state == "failed"
    assert isinstance(first.error, CheckpointError)
    held_models.engine.error = None
    assert finished(held_jobs, held_jobs.submit(song())).state == "succeeded"


def test_a_song_whose_engine_dies_is_generated_by_the_next_one(held_jobs: Jobs, held_models: FakeModels) -> None:
    first = held_jobs.submit(song())
    held_models.engine.wait_until_begun(1)
    held_models.may_generate = True  # the next engine
    held_models.engine.die()
    assert finished(held_jobs, first).state == "succeeded"
    assert finished(held_jobs, held_jobs.submit(song())).state == "succeeded"
    assert len(held_models.engines) == 2


def test_a_song_that_ends_two_engines_fails_and_the_next_job_gets_a_third(
    held_jobs: Jobs, held_models: FakeModels
) -> None:
    first = held_jobs.submit(song())
    for engines in (1, 2):
        assert held_jobs.queue.wait_until(lambda engines=engines: first.attempts == engines, SECONDS)
        held_models.engine.wait_until_begun(1)
        held_models.may_generate = engines == 2  # of the next engine
        held_models.engine.die()
    assert isinstance(finished(held_jobs, first).error, EngineError)
    held_models.notice_the_end()
    held_models.clock.advance(5)  # the pause after two engines in a row
    assert finished(held_jobs, held_jobs.submit(song())).state == "succeeded"
    assert len(held_models.engines) == 3


def test_songs_are_generated_together_as_far_as_the_engine_takes_them(held_jobs: Jobs, held_models: FakeModels) -> None:
    held_models.engine.max_songs = 2
    songs = [held_jobs.submit(song(seed)) for seed in range(3)]
    assert held_jobs.queue.wait_until(lambda: [job.state for job in songs] == ["running", "running", "queued"], SECONDS)
    held_models.engine.release()
    assert [finished(held_jobs, job).state for job in songs] == ["succeeded"] * 3


def test_a_download_that_fails_fails_all_who_waited_for_it_and_no_later_one() -> None:
    models = FakeModels(may_fetch=False)
    models.errors.append(DownloadError("no network"))
    jobs = Jobs(models.manager(), new_store(), max_queue=3)
    waited = [jobs.submit(song(seed)) for seed in range(3)]
    models.may_fetch.set()
    assert all(isinstance(finished(jobs, job).error, DownloadError) for job in waited)
    assert len(models.fetches) == 1
    assert finished(jobs, jobs.submit(song())).state == "succeeded"
    jobs.close()


def test_a_cancelled_download_cancels_the_songs_that_waited() -> None:
    models = FakeModels(may_fetch=False)
    manager = models.manager()
    jobs = Jobs(manager, new_store(), max_queue=3)
    waited = [jobs.submit(song(seed)) for seed in range(3)]
    assert manager.models_downloading.wait(SECONDS)
    manager.cancel()
    assert {finished(jobs, job).state for job in waited} == {"cancelled"}
    assert "tiny was cancelled" in str(waited[2].error)
    assert len(models.fetches) == 1
    jobs.close()


def test_a_song_for_one_model_is_not_generated_by_the_next(held_jobs: Jobs, held_models: FakeModels) -> None:
    first = held_jobs.submit(song())
    held_models.engine.wait_until_begun(1)
    any_model = held_jobs.submit(song(2))
    this_model = held_jobs.submit(Job(SongRequest("pop", LYRICS, 3), "tiny", wanted_model="tiny"))
    old = held_models.engine
    held_models.may_generate = True  # the next engine
    held_jobs._models.load("en-cot").result(SECONDS)
    old.release()
    assert (finished(held_jobs, first).model, finished(held_jobs, any_model).model) == ("tiny", "en-cot")
    assert finished(held_jobs, this_model).state == "failed"
    assert "model: got 'tiny'; allowed: en-cot" in str(this_model.error)


def test_an_unforeseen_error_ends_the_job_and_not_the_thread(held_models: FakeModels) -> None:
    manager = held_models.manager()
    engine = manager.ensure_models_available()
    real_generate = engine.generate
    jobs = Jobs(manager, new_store(), max_queue=3)

    def fail(song_id, request, on_progress):
        raise RuntimeError("a mistake of ours")

    engine.generate = fail
    error = finished(jobs, jobs.submit(song())).error
    assert isinstance(error, JobError) and error.kind == "internal-error" and "its log has error" in error.detail
    engine.generate = real_generate
    engine.release()
    assert finished(jobs, jobs.submit(song())).state == "succeeded"
    jobs.close()


def test_the_same_request_id_is_the_same_job_even_when_it_is_done(jobs: Jobs, models: FakeModels) -> None:
    job = finished(jobs, jobs.submit(song(request_id="a")))
    assert jobs.submit(song(request_id="a")).id == job.id
    assert len(models.engine.generated) == 1


def test_a_request_id_of_another_request_is_a_conflict(jobs: Jobs) -> None:
    jobs.submit(song(1, request_id="a"))
    with pytest.raises(JobError) as caught:
        jobs.submit(song(2, request_id="a"))
    assert caught.value.kind == "conflict"


def test_who_sends_a_request_id_again_does_not_wait_for_ever_for_the_first(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.jobs.service.ACCEPTED_SECONDS", 0.01)
    reading, read = threading.Event(), threading.Event()

    def complete(job: Job) -> None:
        reading.set()
        assert read.wait(SECONDS)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(jobs.submit, song(request_id="a"), complete)
        assert reading.wait(SECONDS)
        with pytest.raises(JobError, match="send this one again") as caught:
            jobs.submit(song(request_id="a"))
        assert caught.value.kind == "being-accepted" and caught.value.retry_seconds
        read.set()
        accepted = first.result(SECONDS)
    assert jobs.submit(song(request_id="a")).id == accepted.id


def test_a_request_id_sent_many_times_at_once_makes_one_job(jobs: Jobs) -> None:
    ids: set[str] = set()
    threads = [threading.Thread(target=lambda: ids.add(jobs.submit(song(request_id="a")).id)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(ids) == 1


def test_a_finished_job_lets_go_of_its_reference_audio(jobs: Jobs) -> None:
    request = SongRequest("pop", LYRICS, 1, reference=Reference(mix=b"audio"))
    assert finished(jobs, jobs.submit(Job(request, "tiny"))).request.reference is None


def test_reference_audio_is_held_in_memory_by_no_job_that_waits_and_reaches_its_song(
    held_jobs: Jobs, held_models: FakeModels
) -> None:
    request = SongRequest("pop", LYRICS, 1, reference=Reference(vocal=b"v", instrumental=b"i", start_seconds=1.5))
    submitted = [held_jobs.submit(Job(request, "tiny")) for _ in range(2)]
    assert [job.request.reference for job in submitted] == [Reference(start_seconds=1.5)] * 2
    held_models.engine.wait_until_begun(1)
    held_models.engine.release()
    assert {finished(held_jobs, job).state for job in submitted} == {"succeeded"}
    assert held_models.engine.requests == [request] * 2


def test_a_song_whose_reference_audio_was_deleted_fails(held_models: FakeModels) -> None:
    store = new_store()
    jobs = Jobs(held_models.manager(), store, max_queue=3)
    jobs.submit(song(1))
    job = jobs.submit(Job(SongRequest("pop", LYRICS, 1, reference=Reference(mix=b"audio")), "tiny"))
    store.storage.delete(f"jobs/{job.id}/reference-mix")
    jobs.queue.wait_until(lambda: bool(held_models.engines), SECONDS)
    held_models.engine.release()
    assert "reference audio is lost" in str(finished(jobs, job).error)
    jobs.close()


def test_close_gives_every_job_to_the_next_server(held_models: FakeModels) -> None:
    manager = held_models.manager()
    manager.ensure_models_available()
    storage = Storage.at(new_folder())
    others = set(threading.enumerate())
    jobs = Jobs(manager, JobStore(storage), max_queue=3)
    left = [jobs.submit(song(seed)) for seed in range(2)]
    held_models.engine.wait_until_begun(1)
    jobs.close()
    assert [job.state for job in left] == ["queued", "queued"]
    assert not held_models.engine.alive
    assert "jobs-dispatcher" not in {thread.name for thread in set(threading.enumerate()) - others}
    with pytest.raises(JobError, match="stopping"):
        jobs.submit(song())
    following = Jobs(FakeModels().manager(), JobStore(storage), max_queue=3)
    following.maintenance.run_round()
    for job in left:
        assert finished(following, following.get(job.id)).state == "succeeded"
        assert following.get(job.id).attempts == 1  # that it was begun before does not count
    following.close()


def test_songs_that_are_generated_get_the_time_that_close_gives_them(held_jobs: Jobs, held_models: FakeModels) -> None:
    running, queued = held_jobs.submit(song(1)), held_jobs.submit(song(2))
    held_models.engine.wait_until_begun(1)
    held_jobs.drain()
    assert not held_jobs.wait(queued, SECONDS)  # nobody waits for a song that no longer runs here
    held_models.engine.release()
    held_jobs.close(SECONDS)
    assert (running.state, queued.state) == ("succeeded", "queued")


def test_close_while_the_models_are_downloaded_keeps_the_job() -> None:
    models = FakeModels(may_fetch=False)
    manager = models.manager()
    jobs = Jobs(manager, new_store(), max_queue=3)
    job = jobs.submit(song())
    assert manager.models_downloading.wait(SECONDS)
    jobs.close()
    assert job.state == "queued"


def test_waiting_ends_when_the_time_is_over(held_jobs: Jobs) -> None:
    assert not held_jobs.wait(held_jobs.submit(song()), 0)
