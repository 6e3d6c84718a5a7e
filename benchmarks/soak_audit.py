"""What servers leave behind when all their songs have ended: in their storage's folder, and in their processes.

It asks no server how it is, but for a few plain requests: it counts files, descriptors and threads.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.real_server import RealServer

LATE_SECONDS = 90.0  # after which servers must have cleared away what nobody explained (they wait 60)
QUIET_SECONDS = 20.0
LOOK_SECONDS = 0.5
PLAIN_NAMES = re.compile(r"job\.json|end\.json|progress\.json|claim-\d+|start-\d+-\d+|leaving-\d+|handed-\d+")
REQUESTS = 40


def audit_folder(data: Path, states: Mapping[str, str], servers: int) -> list[str]:
    """What is wrong with the folder; `states` are the ended jobs. What servers still clear away has time for it."""
    end = time.monotonic() + LATE_SECONDS
    while (wrong := _audit_once(data, states, servers)) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return wrong


def audit_process(server: RealServer, worker: int) -> list[str]:
    """What is wrong with a server that has nothing to do: descriptors and threads must not grow with requests."""
    health = server.ask("/health")[1]
    wrong = [] if health["status"] == "healthy" else [f"a server that is left alone says {health}"]
    _ask_together(server)  # the pool has all the threads that so many requests need
    before = _at_rest(worker)
    for _ in range(3):
        _ask_together(server)
    after = _at_rest(worker, before)
    if after > before:
        wrong.append(f"descriptors grew from {before} to {after} with {3 * REQUESTS} requests")
    return wrong


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
    """Whether the job was given up because its server was killed before it was accepted: that is kept as a word."""
    names = [path.name for path in (data / "jobs" / job_id).rglob("*")]
    return names == ["job.json"] and "abandoned" in json.loads((data / "jobs" / job_id / "job.json").read_bytes())


def _ask_together(server: RealServer) -> None:
    threads = [threading.Thread(target=server.ask, args=("/jobs",)) for _ in range(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _at_rest(worker: int, wanted: int | None = None) -> int:
    """How many files the process has open, once that is no more than `wanted`, or does not change."""
    end = time.monotonic() + QUIET_SECONDS
    seen = [-1]
    while time.monotonic() < end:
        seen.append(len(list(Path(f"/proc/{worker}/fd").iterdir())))
        if seen[-1] <= wanted if wanted is not None else len(seen) > 4 and len(set(seen[-4:])) == 1:
            break
        time.sleep(LOOK_SECONDS)
    return seen[-1]
