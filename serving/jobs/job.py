"""A job: one song that was requested, from its arrival to its end.

Independent of queues, of where jobs are stored, and of HTTP.

    queued -> running -> succeeded | failed | cancelled | interrupted
"""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from structlog.contextvars import bound_contextvars, get_contextvars

from inference.song import Progress, SectionSpan, Song, SongRequest
from serving.models.states import Engine

QUEUED, RUNNING = "queued", "running"
SUCCEEDED, FAILED, CANCELLED, INTERRUPTED = "succeeded", "failed", "cancelled", "interrupted"
FINISHED = (SUCCEEDED, FAILED, CANCELLED, INTERRUPTED)
MILLISECOND = timedelta(milliseconds=1)
MOST_ATTEMPTS = 2  # a song that ends its engine or its server twice is likely the reason


def now() -> datetime:
    """The current time, for people to read. No decision depends on it."""
    return datetime.now(UTC)


class Moments:
    """Gives the current time, but never the same millisecond twice: jobs are listed in the order of these times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = datetime.min.replace(tzinfo=UTC)

    def __call__(self) -> datetime:
        with self._lock:
            moment = now()
            if -MILLISECOND < self._last - moment < timedelta(seconds=1):  # further back, the clock was set back
                moment = self._last + MILLISECOND
            self._last = moment
            return moment


next_moment = Moments()


@dataclass(eq=False)
class Job:
    """One song. Only its owner changes it; `state` is set last, after everything that it promises."""

    request: SongRequest
    model: str
    warnings: tuple[str, ...] = ()
    request_id: str | None = None
    fingerprint: str = ""
    wanted_model: str | None = None  # no other may generate it
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = QUEUED
    progress: Progress | None = None
    song: Song | None = None
    error: Exception | None = None
    cancel_requested: bool = False
    created_at: datetime = field(default_factory=next_moment)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    engine: Engine | None = None  # while the song is in it
    claim: int = 0  # the number of the claim under which it runs here
    attempts: int = 0  # how often it was started
    origin: dict[str, Any] = field(default_factory=get_contextvars)  # ids of its request and trace, for the log
    told_reference: Mapping[str, Any] | None = None  # of its reference audio, for answers: names, sizes, the span; JSON
    deadline_seconds: float | None = None  # as the request gave them
    deadline: float | None = None  # when it must have started, by this process's monotonic clock
    began: float | None = None  # when it was started here, by the same clock
    listened: bool = False  # somebody listens while it is generated
    playable_seconds: float = 0.0  # of the song that are stored here by now
    sections: tuple[SectionSpan, ...] = ()  # of the song, as far as it is playable

    @property
    def finished(self) -> bool:
        """True once nothing changes any more."""
        return self.state in FINISHED

    @property
    def sizes_bytes(self) -> Mapping[str, int]:
        """The size of each track's file. Reads none of them."""
        audio = self.song.audio if self.song else {}
        return audio.sizes_bytes if isinstance(audio, SizedAudio) else {name: len(audio[name]) for name in audio}

    @property
    def trace(self) -> dict[str, str]:
        """The W3C header that puts requests to other servers for this job into the trace of its own request."""
        known = self.origin
        if "trace_id" not in known or "span_id" not in known:
            return {}
        return {"traceparent": f"00-{known['trace_id']}-{known['span_id']}-{int(known['trace_sampled']):02x}"}

    def listen(self) -> None:
        """Hurry the song here, because somebody listens to it."""
        if self.listened:
            return
        self.listened = True  # first: the dispatcher looks at it once the engine has taken the song
        if self.engine:
            self.engine.listen(self.id)

    def become(self, other: Job) -> None:
        """Copy everything from another record of the same job."""
        assert self.id == other.id, "another job"
        for each in fields(self):
            if each.name not in ("state", "origin"):
                setattr(self, each.name, getattr(other, each.name))
        self.state = other.state


@contextmanager
def about(job: Job) -> Iterator[None]:
    """Add the job and its request to every line that is logged meanwhile."""
    with bound_contextvars(**{**job.origin, **get_contextvars(), "job_id": job.id}):
        yield


class SizedAudio(Mapping[str, bytes], ABC):
    """The tracks of a song in the storage. Each is read on access; their sizes are known before."""

    sizes_bytes: Mapping[str, int]

    @abstractmethod
    def open(self, track: str) -> IO[bytes]:
        """The track's file, which can be read in pieces and from any point. Raises StorageError."""

    @abstractmethod
    def uri(self, track: str) -> str | None:
        """The track's address in a bucket, for those with access to it; None if it is in a folder."""

    @abstractmethod
    def sign(self, track: str, seconds: int) -> str | None:
        """An address with which anyone can read the track for so long; None where the storage cannot sign."""
