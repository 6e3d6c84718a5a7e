"""What servers leave behind when all their songs have ended: in their storage's folder, and in their processes.

It counts files, descriptors and threads, and reads /metrics for requests that still have a slot.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.real_server import RealServer

LATE_SECONDS = 90.0  # after which servers must have cleared away what nobody explained (they wait 60)
QUIET_SECONDS = 20.0
LOOK_SECONDS = 0.5
PLAIN_NAMES = re.compile(r"job\.json|end\.json|progress\.json|claim-\d+|start-\d+-\d+|leaving-\d+|handed-\d+")
REQUESTS = 40  # at once
BURSTS = 3  # that must bring nothing that stays
TRIES = 6  # for a pool of threads to become as large as so many requests need it
PLACES = ("yue_jobs_queued", "yue_jobs_running", "yue_jobs_unsaved", "yue_seats_taken", "yue_event_streams")


class Held(NamedTuple):
    """What a process has."""

    descriptors: int
    threads: int


def audit_folder(data: Path, states: Mapping[str, str], servers: int) -> list[str]:
    """What is wrong with the folder; `states` are the ended jobs. What servers still clear away has time for it."""
    end = time.monotonic() + LATE_SECONDS
    while (wrong := _audit_once(data, states, servers)) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return wrong


def audit_places(server: RealServer) -> list[str]:
    """What is wrong with a server whose songs have all ended: nobody must have a place, in the queue or as a waiter."""
    end = time.monotonic() + QUIET_SECONDS
    while (wrong := _taken(server.metrics())) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return wrong


def audit_process(server: RealServer, worker: int) -> list[str]:
    """What is wrong with a server that has nothing to do: descriptors and threads must not grow with requests."""
    health = server.ask("/health")[1]
    wrong = [] if health["status"] == "healthy" else [f"a server that is left alone says {health}"]
    _ask_together(server)
    after = _at_rest(worker)
    for _ in range(TRIES):
        before = after
        for _ in range(BURSTS):
            _ask_together(server)
        after = _at_rest(worker, before.descriptors)
        if after.descriptors <= before.descriptors and after.threads <= before.threads:
            return wrong
    return [*wrong, f"with each {BURSTS * REQUESTS} requests more stays: {before} became {after}"]


def _audit_once(data: Path, states: Mapping[str, str], servers: int) -> list[str]:
    paths = [str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()]
    wrong = [f"a half file is left: {path}" for path in paths if "#" in path]
    wrong += [f"left: {path}" for path in paths if path.startswith(("live/open/", "live/cancel/"))]
    living = [path for path in paths if path.startswith("live/replicas/")]
    if len(living) != servers:
        wrong.append(f"{servers} servers live, and {len(living)} signs of life are left")
    folders = {path.split("/")[1] for path in paths if path.startswith("jobs/")}
    wrong += [
        f"nobody asked for job {job_id}" for job_id in sorted(folders - states.keys()) if not _abandoned(data, job_id)
    ]
    wrong += [f"job {job_id} has no folder" for job_id in sorted(states.keys() - folders)]
    keys = [json.loads((data / path).read_bytes())["job_id"] for path in paths if path.startswith("keys/")]
    if Counter(keys) != Counter(states.keys()):
        wrong.append(f"{len(keys)} keys for {len(states)} jobs")
    listed = Counter(path.split("-")[1] for path in paths if path.startswith("ended/"))
    wrong += [f"job {job_id} is listed {listed[job_id]} times as ended" for job_id in states if listed[job_id] != 1]
    for job_id, state in states.items():
        wrong += _audit_job(data / "jobs" / job_id, state)
    return wrong


def _audit_job(folder: Path, state: str) -> list[str]:
    """An ended job has the files that tell its story, one end, and one folder of audio or none."""
    if not (folder / "end.json").exists():
        return [f"job {folder.name} has no end"]
    end = json.loads((folder / "end.json").read_bytes())
    kept = f"audio-{end['claim']}"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    odd = {name for name in names if not PLAIN_NAMES.fullmatch(name) and not name.startswith(f"{kept}/")}
    wrong = [f"job {folder.name} left {sorted(odd)}"] if odd else []
    audio = [name for name in names if name.startswith(f"{kept}/")]
    if end["state"] != state or len(audio) != (1 if state == "succeeded" else 0):
        wrong.append(f"job {folder.name} is {state}; its end says {end['state']}, with {len(audio)} files of audio")
    return wrong


def _abandoned(data: Path, job_id: str) -> bool:
    """Return True if job.json marks the job as abandoned: its server was killed before the job was accepted."""
    names = [path.name for path in (data / "jobs" / job_id).rglob("*")]
    return names == ["job.json"] and "abandoned" in json.loads((data / "jobs" / job_id / "job.json").read_bytes())


def _ask_together(server: RealServer) -> None:
    threads = [threading.Thread(target=server.ask, args=("/jobs",)) for _ in range(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _taken(numbers: Mapping[str, float]) -> list[str]:
    return [f"all songs have ended, and {name} is {numbers.get(name)}" for name in PLACES if numbers.get(name) != 0]


def _at_rest(worker: int, descriptors: int | None = None) -> Held:
    """What the process has, once it has no more than so many descriptors, or as many as before."""
    end = time.monotonic() + QUIET_SECONDS
    seen = [_held(worker)]
    while time.monotonic() < end:
        at_rest = len(seen) > 3 and len({held.descriptors for held in seen[-4:]}) == 1
        if at_rest if descriptors is None else seen[-1].descriptors <= descriptors:
            break
        time.sleep(LOOK_SECONDS)
        seen.append(_held(worker))
    return seen[-1]


def _held(worker: int) -> Held:
    return Held(*(len(list(Path(f"/proc/{worker}/{what}").iterdir())) for what in ("fd", "task")))
