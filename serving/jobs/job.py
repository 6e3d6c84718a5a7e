"""What a job is: one song that was asked for, on its way to its end.

It knows nothing of queues, of where jobs are kept, or of HTTP.

    queued -> running -> succeeded | failed | cancelled | interrupted
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import IO, Any

from structlog.contextvars import bound_contextvars, get_contextvars

from inference.song import Progress, Song, SongRequest
from serving.models.states import Engine

QUEUED, RUNNING = "queued", "running"
SUCCEEDED, FAILED, CANCELLED, INTERRUPTED = "succeeded", "failed", "cancelled", "interrupted"
FINISHED = (SUCCEEDED, FAILED, CANCELLED, INTERRUPTED)
MOST_ATTEMPTS = 2  # a song that ends its engine or its server twice is likely the reason


def now() -> datetime:
    """This moment, for people to read: what is decided never hangs on it."""
    return datetime.now(UTC)


@dataclass(eq=False)
class Job:
    """One song on its way. Only its owner changes it; `state` is always set last, so that what it promises is there."""

    request: SongRequest
    model: str
    warnings: tuple[str, ...] = ()
    request_id: str | None = None
    fingerprint: str = ""
    wanted_model: str | None = None  # no other may sing it
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = QUEUED
    progress: Progress | None = None
    song: Song | None = None
    error: Exception | None = None
    cancel_requested: bool = False
    created_at: datetime = field(default_factory=now)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    engine: Engine | None = None  # while the song is in it
    claim: int = 0  # the number of the claim under which it is sung here
    attempts: int = 0  # how often it was begun
    origin: dict[str, Any] = field(default_factory=get_contextvars)  # what the log knows of the request that made it
    told_reference: Mapping[str, Any] | None = None  # of its reference audio: names, sizes, the span; JSON
    deadline_seconds: float | None = None  # as the request gave them
    deadline: float | None = None  # when it must have begun or be given up, by this process's monotonic clock
    began: float | None = None  # when it was begun here, by the same clock

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINISHED

    @property
    def sizes_bytes(self) -> Mapping[str, int]:
        """The size of each track's file. Reads none of them."""
        audio = self.song.audio if self.song else {}
        return audio.sizes_bytes if isinstance(audio, SizedAudio) else {name: len(audio[name]) for name in audio}

    @property
    def trace(self) -> dict[str, str]:
        """W3C's header by which what is asked elsewhere for this job belongs to the trace of its request."""
        known = self.origin
        if "trace_id" not in known or "span_id" not in known:
            return {}
        return {"traceparent": f"00-{known['trace_id']}-{known['span_id']}-{int(known['trace_sampled']):02x}"}

    def become(self, other: Job) -> None:
        """Take over all that is known of the same job from elsewhere."""
        assert self.id == other.id, "another job"
        for each in fields(self):
            if each.name not in ("state", "origin"):
                setattr(self, each.name, getattr(other, each.name))
        self.state = other.state


@contextmanager
def about(job: Job) -> Iterator[None]:
    """Every line that is logged meanwhile says which job it is about, and what is known of the request that made it."""
    with bound_contextvars(**{**job.origin, **get_contextvars(), "job_id": job.id}):
        yield


class SizedAudio(Mapping[str, bytes], ABC):
    """A song's tracks that are read where they are kept, each when it is asked for; their sizes are known before."""

    sizes_bytes: Mapping[str, int]

    @abstractmethod
    def open(self, track: str) -> IO[bytes]:
        """The track's file, to be read piece by piece and from any point. Raises StorageError."""

    @abstractmethod
    def uri(self, track: str) -> str | None:
        """The track's address in a bucket, for who may read there; None if it lies in a folder."""

    @abstractmethod
    def sign(self, track: str, seconds: int) -> str | None:
        """An address that lets anyone read the track for so long; None where the storage cannot make one."""
