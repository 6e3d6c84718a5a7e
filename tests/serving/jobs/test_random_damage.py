"""Random damage to a storage raises no unforeseen error and keeps no server busy forever."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from inference.song import Reference, SongRequest
from serving.jobs.errors import JobError
from serving.jobs.job import FINISHED, Job
from storage import Storage, StorageError
from tests.support.fakes import LYRICS, FakeClock, Served, new_folder
from tests.support.replicas import Replica, lose

ROUNDS = 4


def whole_storage() -> Iterator[str]:
    """The paths of a storage in which every kind of file is."""
    storage, clock = Storage.at(new_folder()), FakeClock()
    lost, other = Replica(storage, clock), Replica(storage, clock)
    done, running, handed, waiting = (lost.submit(name) for name in ("a", "b", "c", None))
    lost.begin()
    lost.finish()
    lost.begin()
    lost.store.note(running)
    lost.store.leaving(running)
    lost.store.hand_over(handed)
    lost.jobs.submit(Job(SongRequest("pop", LYRICS, 1, reference=Reference(mix=b"audio")), "tiny"))
    other.jobs.cancel(waiting.id)
    assert done.state == "succeeded"
    storage.put(f"jobs/{waiting.id}/claim-1", lost.store.replica.encode())
    for entry in storage.entries():
        yield entry.path
    yield storage.name


def random_json(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind < 6:
        return chance.choice([None, True, -1, 0, 10**30, 1.5, "", "x", "a" * 32, "é\u2028", "succeeded", "2026-01-01"])
    if kind < 7:
        return [random_json(chance, depth + 1) for _ in range(chance.randrange(3))]
    names = ["id", "request", "state", "song", "error", "claim", "replica", "bytes", "job_id", "progress", "pid", "x"]
    return {chance.choice(names): random_json(chance, depth + 1) for _ in range(chance.randrange(6))}


def damage(chance: random.Random, content: bytes) -> bytes:
    """Other bytes, other JSON, or the same JSON with another value somewhere."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(60))
    if kind == 1:
        return json.dumps(random_json(chance)).encode()
    if kind == 2:
        cut = chance.randrange(len(content) + 1)
        return content[:cut] + chance.randbytes(chance.randrange(3)) + content[cut + 1 :]
    try:
        record = json.loads(content)
    except ValueError:
        return b"{}"
    place = record
    while isinstance(place, dict) and place:
        name = chance.choice(sorted(place))
        if not isinstance(place[name], dict) or not place[name] or chance.random() < 0.5:
            place[name] = random_json(chance)
            break
        place = place[name]
    return json.dumps(record).encode()


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_never_unforeseen_and_never_endless(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """One file of every third kind is damaged; the servers go on, generate what is whole, and report what is not."""
    chance = random.Random(seed)
    random.seed(seed)
    *paths, name = whole_storage()
    storage, clock = Storage.at(name), FakeClock()
    for path in chance.sample(paths, max(1, len(paths) // 3)):
        storage.put(path, damage(chance, storage.get(path)))
    server = Replica(storage, clock, max_queue=99)
    lose(clock, server)
    lose(clock, server)
    caplog.clear()
    for _ in range(ROUNDS):
        lose(clock, server)
        for _ in range(3):
            server.begin()
            server.finish()
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    for job_id in {path.split("/")[1] for path in paths if path.startswith("jobs/")}:
        with suppress(JobError, StorageError):  # it is nowhere, or nobody can read it
            assert server.jobs.get(job_id).state in FINISHED
    assert isinstance(server.jobs.list(), list)
    for key in ("a", "b", "c"):
        try:
            server.submit(key)
        except JobError as error:
            assert error.kind == "conflict"
    served = Served(data=name)
    caplog.set_level(logging.ERROR)
    caplog.clear()
    assert served.client.get("/jobs").status_code == 200
    for job in served.client.get("/jobs").json["jobs"]:
        assert served.client.get(f"/jobs/{job['job_id']}").status_code in (200, 404, 503)
    served.app.extensions["yue"].jobs.close()
    assert not [record for record in caplog.records if record.exc_info], caplog.text
