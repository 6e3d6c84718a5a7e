"""Which of the servers on one storage are alive, without comparing the clocks of two machines.

It reads only this machine's list of processes; the heartbeats are arguments.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LOST_SECONDS = 60.0  # without a heartbeat, by the observer's clock
Json = dict[str, Any]


class ReplicaWatch:
    """Remembers when each replica's heartbeat last changed, as observed here."""

    def __init__(self, read_process: Callable[[str], Json], clock: Callable[[], float]) -> None:
        self._read_process, self._clock = read_process, clock
        self._seen: dict[str, tuple[str, float]] = {}  # replica -> version, when it was first seen
        self._processes: dict[str, Json] = {}

    def note(self, replicas: Mapping[str, str]) -> None:
        """Record the current version of each replica's heartbeat."""
        self._processes = {name: process for name, process in self._processes.items() if name in replicas}
        self._seen = {
            name: known if (known := self._seen.get(name)) and known[0] == version else (version, self._clock())
            for name, version in replicas.items()
        }

    def is_lost(self, replica: str) -> bool:
        """True if the replica has signed off, its process has ended, or no heartbeat came for LOST_SECONDS."""
        if replica not in self._processes:
            self._processes[replica] = self._read_process(replica)
        process = self._processes[replica]
        if not process:
            del self._processes[replica]  # it may come back
            return True
        _, since = self._seen.get(replica, ("", self._clock()))  # not seen yet: it is new
        return is_dead(process) or self._clock() - since >= LOST_SECONDS


def own_process() -> Json:
    """The identity of this process among all that ever ran on this machine; without /proc, only its id."""
    return {"pid": os.getpid(), **_place(), "started": started(os.getpid())}


def is_dead(process: Json) -> bool:
    """True if a process on this machine has ended. False also where that cannot be known."""
    here = _place()
    beside = all(here.values()) and all(process.get(name) == value for name, value in here.items())
    pid, began = process.get("pid"), process.get("started")
    return beside and isinstance(pid, int) and isinstance(began, int) and started(pid) != began


def started(pid: int) -> int | None:
    """The start of a process, in ticks since the machine's own; None if there is no such process."""
    try:  # `pid (name) state parent …`, where the name may hold anything; the start is the 22nd word
        state, *words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else int(words[18])
    except (OSError, IndexError, ValueError):
        return None


def _place() -> Json:
    """The scope of a process id: this boot of this machine, this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": "", "namespace": ""}
