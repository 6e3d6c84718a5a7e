"""What Prometheus gets to see: songs, requests, models, and never more series than there are kinds of things."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Response
from prometheus_client.parser import text_string_to_metric_families

from inference.errors import DownloadError, EngineError
from server import close_app
from serving.settings import RESERVED_THREADS
from storage import Storage
from tests.support.fakes import SECONDS, FakeClock, Served
from tests.support.paths import PROJECT
from tests.support.replicas import Replica

DASHBOARD = PROJECT / "docs" / "grafana.json"
Numbers = dict[str, float]


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


@pytest.fixture
def held() -> Iterator[Served]:
    """Its engine begins songs, but ends none until told."""
    served = Served(may_generate=False, threads=RESERVED_THREADS + 1)
    served.client.post("/download-models")
    yield served
    close_app(served.app)


def numbers(served: Served) -> Numbers:
    """Every series, by its name and the values of its labels, in the order of their names."""
    text = served.client.get("/metrics").get_data(as_text=True)
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_song_is_counted_with_its_stages(served: Served) -> None:
    assert numbers(served)["yue_jobs_ended_total,succeeded"] == 0
    served.one()
    found = numbers(served)
    assert found["yue_jobs_ended_total,succeeded"] == 1
    assert found["yue_song_stage_seconds_sum,stage1"] == 0.1
    assert found["yue_audio_seconds_total"] == 1.5
    assert found["yue_real_time_factor_sum"] == pytest.approx(15)  # 1.5 s of audio in 0.1 s
    assert found["yue_job_waiting_seconds_count"] == 1
    assert found["yue_http_requests_total,POST,/predict,2xx"] == 1
    assert found["yue_http_request_seconds_count,POST,/predict"] == 1


def test_songs_that_wait_and_are_generated_are_seen_now(held: Served) -> None:
    for _ in range(3):
        held.one(wait_seconds=0)
    held.models.engine.wait_until_begun(1)
    found = numbers(held)
    assert (found["yue_jobs_running"], found["yue_jobs_queued"]) == (1, 2)
    held.models.engine.release()


def test_requests_that_wait_take_slots(held: Served) -> None:
    waiting = threading.Thread(target=held.one)
    waiting.start()
    held.models.engine.wait_until_begun(1)
    found = numbers(held)
    assert (found["yue_seats_taken"], found["yue_seats"]) == (1, 1)
    held.models.engine.release()
    waiting.join(SECONDS)
    assert numbers(held)["yue_seats_taken"] == 0


def test_failed_and_cancelled_songs_are_told_apart(held: Served) -> None:
    first, second = (held.one(wait_seconds=0)["job_id"] for _ in range(2))
    held.models.engine.wait_until_begun(1)
    held.client.delete(f"/jobs/{second}")
    held.models.engine.error = EngineError("the boiler burst")
    held.models.engine.release()
    held.wait_for(first)
    found = numbers(held)
    assert (found["yue_jobs_ended_total,failed"], found["yue_jobs_ended_total,cancelled"]) == (1, 1)


def test_what_a_maintenance_round_ends_is_counted(tmp_path: Path) -> None:
    lost = Replica(Storage.at(tmp_path), FakeClock())
    cancelled, unread = lost.submit(None), lost.submit(None)
    Replica(Storage.at(tmp_path), FakeClock()).jobs.cancel(cancelled.id)
    (tmp_path / "jobs" / unread.id / "job.json").write_bytes(b"")
    lost.jobs.close()
    served = Served(data=tmp_path)
    deadline = time.monotonic() + SECONDS
    while (ended := ends(served)) != {"failed": 1, "cancelled": 1} and time.monotonic() < deadline:
        served.app.extensions["yue"].jobs.maintenance.wake()
    close_app(served.app)
    assert ended == {"failed": 1, "cancelled": 1}


def ends(served: Served) -> Numbers:
    """How many jobs ended in which state, but for states in which none did."""
    found = {name.split(",")[-1]: count for name, count in numbers(served).items() if "yue_jobs_ended" in name}
    return {state: count for state, count in found.items() if count}


def test_the_models_state_is_one_of_five(served: Served) -> None:
    def states() -> Numbers:
        return {name.split(",")[1]: on for name, on in numbers(served).items() if name.startswith("yue_models_state,")}

    assert states() == {"not_loaded": 1, "downloading": 0, "loading": 0, "ready": 0, "error": 0}
    assert numbers(served)["yue_engine_ready"] == 0
    served.models.errors.append(DownloadError("the cable was cut"))
    served.client.post("/download-models")
    assert states()["error"] == 1 and numbers(served)["yue_models_failures_total"] == 1
    served.client.post("/download-models")
    assert states()["ready"] == 1 and numbers(served)["yue_engine_ready"] == 1
    assert numbers(served)["yue_engine_info,fake,,tiny,"] == 1


def test_a_download_is_seen_in_bytes() -> None:
    served = Served(may_fetch=False)
    served.client.post("/download-models", json={"wait": False})
    assert served.models.fetches[0].began.wait(SECONDS)
    found = numbers(served)
    assert (found["yue_download_done_bytes"], found["yue_download_wanted_bytes"]) == (1, 2)
    served.models.may_fetch.set()
    close_app(served.app)


def test_a_dead_engine_is_not_ready_though_nobody_has_noticed_and_is_counted_once(served: Served) -> None:
    served.one()
    served.models.engine.die()
    assert numbers(served)["yue_engine_ready"] == 0
    served.one()
    found = numbers(served)
    assert (found["yue_engine_crashes_total"], found["yue_engine_starts_total"], found["yue_engine_ready"]) == (1, 2, 1)


def test_gpu_memory_is_told_where_there_is_a_gpu(served: Served) -> None:
    served.one()
    assert "yue_gpu_memory_bytes" not in numbers(served)
    served.models.on_a_gpu = True
    served.client.post("/download-models", json={"force": True})
    assert numbers(served)["yue_gpu_memory_bytes"] == 1_000


def test_event_streams_are_counted_while_they_are_open(served: Served) -> None:
    served.app.add_url_rule(
        "/events", "events", lambda: Response(iter(["data: 1\n\n"] * 3), mimetype="text/event-stream")
    )
    stream = served.client.get("/events")
    assert numbers(served)["yue_event_streams"] == 1
    stream.close()
    assert numbers(served)["yue_event_streams"] == 0


def test_random_paths_and_methods_add_no_series(served: Served) -> None:
    def ask(n: int) -> None:
        for _ in range(n):
            word = uuid.uuid4().hex
            served.client.get(f"/{word}")
            served.client.get(f"/jobs/{word}")
            served.client.get(f"/jobs/{word}/audio/{word}.{word}")
            served.client.delete(f"/jobs/{word}")
            served.client.open(f"/{word}", method=word.upper())

    ask(2)
    numbers(served)
    before = numbers(served).keys()
    ask(100)
    assert numbers(served).keys() == before
    assert not [name for name in before if not name.startswith(("yue_",))]


def test_a_look_waits_neither_for_who_manages_models_nor_for_the_storage(served: Served) -> None:
    served.one()
    with served.manager._guard, served.manager.load_lock:
        seen: list[Numbers] = []
        looking = threading.Thread(target=lambda: seen.append(numbers(served)), daemon=True)
        looking.start()
        looking.join(SECONDS)
    assert seen and seen[0]["yue_engine_ready"] == 1


def test_two_apps_count_apart(served: Served) -> None:
    other = Served()
    other.one()
    assert numbers(served)["yue_jobs_ended_total,succeeded"] == 0
    close_app(other.app)


def test_metrics_are_read_with_get_alone(served: Served) -> None:
    assert served.client.post("/metrics").status_code == 405
    answer = served.client.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=")


def test_process_metrics_are_there(served: Served) -> None:
    assert numbers(served)["yue_process_resident_memory_bytes"] > 0


def test_the_dashboard_asks_for_nothing_that_does_not_exist(served: Served) -> None:
    text = served.client.get("/metrics").get_data(as_text=True)
    exported = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        exported |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    asked = {name for query in queries for name in re.findall(r"\byue_\w+", query)}
    assert len(asked) > 15 and asked <= exported, asked - exported
