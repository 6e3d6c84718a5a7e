"""The names of the files in a job store, parsed, and its audio, read on access.

It writes nothing; `serving/jobs/store.py` writes, and documents the layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import SEEK_END
from typing import IO

from serving.jobs.errors import AudioDamaged
from serving.jobs.job import SizedAudio
from storage import Entry, Storage

NOBODY = "nobody"  # the owner of jobs that were handed over
LAST_MOMENT = 10**14  # in milliseconds; subtracting from it reverses the sort order
ID = re.compile(r"[0-9a-f]{32}")
NUMBER = "(0|[1-9][0-9]{0,8})"  # exactly as this server writes it
CLAIM = re.compile(f"claim-{NUMBER}")
START = re.compile(f"start-{NUMBER}-{NUMBER}")
PART = re.compile(f"parts-{NUMBER}/{NUMBER}-([a-z]+)[.]flac")
LEFTOVER = re.compile(f"reference-[a-z]+|(audio|parts)-{NUMBER}/.+")  # not needed after the end, except the song's own
ENDED = re.compile(r"ended/(?P<moment>[0-9]{14})-(?P<job_id>[0-9a-f]{32})-(?P<size_bytes>[0-9]+)")


@dataclass(frozen=True)
class Ended:
    """A finished job, as its name in the list says."""

    path: str
    job_id: str
    finished_at: datetime
    size_bytes: int
    listed_at: datetime | None = None  # by the storage's clock

    @classmethod
    def of(cls, entry: Entry) -> Ended | None:
        """The job that the file stands for; None for a foreign file."""
        named = ENDED.fullmatch(entry.path)
        if not named:
            return None
        finished_at = datetime.fromtimestamp((LAST_MOMENT - int(named["moment"])) / 1_000, UTC)
        return cls(entry.path, named["job_id"], finished_at, int(named["size_bytes"]), entry.modified_at)

    @staticmethod
    def path_of(job_id: str, finished_at: datetime, size_bytes: int) -> str:
        """The path of its entry; the newest sorts first."""
        return f"ended/{inverted(finished_at):014d}-{job_id}-{size_bytes}"


@dataclass(frozen=True)
class LiveState:
    """The live replicas, the open jobs, their cancel requests, and the jobs that somebody listens to."""

    replicas: Mapping[str, str]  # replica -> the version of its heartbeat
    opened: tuple[tuple[str, str], ...]  # replica, job id
    cancel_requests: frozenset[str]
    listen_requests: frozenset[str] = frozenset()
    moment: datetime | None = None  # of the newest heartbeat, by the storage's clock

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> LiveState:
        """The state that the files under `live` describe; foreign files are ignored."""
        replicas: dict[str, str] = {}
        opened: list[tuple[str, str]] = []
        requests: dict[str, set[str]] = {"cancel": set(), "listen": set()}
        moments: list[datetime] = []
        for entry in entries:
            match entry.path.split("/")[1:]:
                case ["replicas", replica] if ID.fullmatch(replica):
                    replicas[replica] = entry.version
                    moments += [entry.modified_at] if entry.modified_at else []
                case ["open", replica, job_id] if ID.fullmatch(job_id) and _is_owner(replica):
                    opened.append((replica, job_id))
                case ["cancel" | "listen" as what, job_id] if ID.fullmatch(job_id):
                    requests[what].add(job_id)
        cancel, listen = map(frozenset, requests.values())
        return cls(replicas, tuple(opened), cancel, listen, max(moments, default=None))


@dataclass(frozen=True)
class Folder:
    """The names in a job's folder; foreign files are ignored."""

    names: frozenset[str]

    @property
    def ordered(self) -> bool:
        """True if the job was accepted."""
        return "job.json" in self.names

    @property
    def ended(self) -> bool:
        """True if the job has ended."""
        return "end.json" in self.names

    @property
    def claim(self) -> int:
        """The number of the latest claim."""
        return max((int(claim[1]) for name in self.names if (claim := CLAIM.fullmatch(name))), default=0)

    @property
    def reference_parts(self) -> tuple[str, ...]:
        """The files of its reference audio; none if one is missing."""
        for parts in (("mix",), ("vocal", "instrumental")):
            if {f"reference-{part}" for part in parts} <= self.names:
                return parts
        return ()

    @property
    def handed(self) -> bool:
        """True if the latest claim was given up."""
        return f"handed-{self.claim}" in self.names

    @property
    def attempts(self) -> int:
        """How often the song was started. Starts that ended because a replica was stopped do not count."""
        begun = [start[1] for name in self.names if (start := START.fullmatch(name))]
        forgiven = {claim for claim in begun if {f"leaving-{claim}", f"handed-{claim}"} & self.names}
        return len(begun) - len(forgiven)


def is_leftover(name: str, claim: int, n_parts: int) -> bool:
    """True if a job that ended under this claim, with a song of so many stored parts, does not need the file."""
    if part := PART.fullmatch(name):
        return int(part[1]) != claim or int(part[2]) >= n_parts
    return LEFTOVER.fullmatch(name) is not None and not name.startswith(f"audio-{claim}/")


def inverted(moment: datetime) -> int:
    """The moment as a number that is smaller the later it is, so that the newest name sorts first."""
    return LAST_MOMENT - int(moment.timestamp() * 1_000)


def _is_owner(replica: str) -> bool:
    return replica == NOBODY or ID.fullmatch(replica) is not None


class StoredAudio(SizedAudio):
    """The tracks of a finished song, read from the storage."""

    def __init__(self, storage: Storage, paths: Mapping[str, str], sizes_bytes: Mapping[str, int]) -> None:
        self._storage, self._paths, self.sizes_bytes = storage, paths, sizes_bytes

    def __getitem__(self, track: str) -> bytes:
        content = self._storage.get(self._paths[track])
        self._check_size(track, len(content))
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, track: str) -> IO[bytes]:
        file = self._storage.open(self._paths[track])
        self._check_size(track, file.seek(0, SEEK_END))
        file.seek(0)
        return file

    def uri(self, track: str) -> str | None:
        return self._storage.uri(self._paths[track])

    def sign(self, track: str, seconds: int) -> str | None:
        return self._storage.sign(self._paths[track], seconds)

    def _check_size(self, track: str, size_bytes: int) -> None:
        """Raise AudioDamaged unless the file has the size that was stored with the job's end."""
        if size_bytes != self.sizes_bytes[track]:
            raise AudioDamaged(self._paths[track], size_bytes, self.sizes_bytes[track])
