"""A keeper's rounds go on past whatever is full, broken or foreign: it costs the one job that it belongs to, if any."""

from __future__ import annotations

import pytest

from serving.keeper import Keep
from serving.problems import Problem
from serving.replica import LOST_SECONDS
from storage import Storage
from tests.fakes import FakeClock, FakeEngine, new_folder
from tests.replicas import Replica


@pytest.fixture
def storage() -> Storage:
    return Storage.at(new_folder())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def lose(clock: FakeClock, *watchers: Replica) -> None:
    """Let so much time pass that whoever is silent counts as lost."""
    for pause in (0, LOST_SECONDS + 1):
        clock.advance(pause)
        for watcher in watchers:
            watcher.look_after()


def sing(server: Replica) -> str:
    """One song from its beginning to its end; its job's id."""
    job = server.submit(None)
    server.begin()
    server.finish()
    assert job.state == "succeeded"
    return job.id


def test_a_song_that_finds_no_room_keeps_no_other_from_its_end(storage: Storage, clock: FakeClock) -> None:
    server, other, lost = Replica(storage, clock, Keep(limit_bytes=1)), Replica(storage, clock), Replica(storage, clock)
    old = sing(server)
    stuck, unwanted, orphan = server.submit(None), server.submit(None), lost.submit(None)
    server.begin()
    server.storage.too_large = "/audio-"
    server.finish()
    other.jobs.cancel(unwanted.id)
    lose(clock, server)
    assert unwanted.state == "cancelled"
    assert server.backlog.find(orphan.id)
    with pytest.raises(Problem, match="forgotten"):  # which makes room
        server.jobs.get(old)
    server.storage.too_large = ""
    server.look_after()
    assert other.jobs.get(stuck.id).state == "succeeded"


def test_a_song_that_finds_no_room_keeps_no_other_from_the_next_server(storage: Storage, clock: FakeClock) -> None:
    server, other, engine = Replica(storage, clock), Replica(storage, clock), FakeEngine()
    _, running, queued = (server.submit(None) for _ in range(3))
    server.begin()
    server.begin()
    running.engine = engine
    server.storage.too_large = "/audio-"
    server.finish()
    server.jobs.drain()
    server.look_after()
    other.look_after()
    assert [job.id for job in other.backlog.living()] == [queued.id]
    lose(clock, other)  # the server is killed while it sings
    adopted = other.backlog.find(running.id)
    assert adopted and adopted.attempts == 0  # it was told to stop, so that it was begun does not count
    engine.close()
