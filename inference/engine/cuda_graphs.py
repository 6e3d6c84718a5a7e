"""Records decode steps of fixed shape as CUDA graphs and replays them: a thousand kernels cost one launch.

It does not know what a step computes. A recorded step reads and writes tensors that keep their addresses.

A step is recorded for a number of rows, its *bucket*. Few buckets serve every number of rows:

    active songs          1   2   3   5   7   12  32
    bucket                1   2   4   8   8   16  32
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from inference.errors import EngineError, RecordingFailed
from inference.models.llama import Llama, agree

log = logging.getLogger(__name__)

WARM_UPS = 2  # runs before the recording: in the first, the compiler works and libraries allocate their memory


def buckets_up_to(limit: int, only_one: bool = False) -> tuple[int, ...]:
    """Powers of two and `limit` itself. With `only_one`, just `limit`: every song is computed in the same shape."""
    powers = () if only_one else tuple(2**k for k in range(limit.bit_length()) if 2**k < limit)
    return (*powers, limit)


def even(rows: int) -> int:
    """The number of int64 columns that aligns every row of a table to 16 bytes, as compiled kernels expect."""
    return rows + rows % 2


@dataclass(frozen=True)
class Recorder:
    """Where steps are recorded: the device, its memory pool and stream, and if each step has only one bucket."""

    device: torch.device
    only_one_bucket: bool = False
    # All recordings share one memory pool, because they never run at the same time.
    pool: Any = None
    # All run on one stream: cuBLAS keeps a workspace, 32 MiB on some cards, for each stream that it has worked on.
    stream: Any = None

    @classmethod
    def on(cls, device: torch.device, only_one_bucket: bool = False) -> Recorder:
        """A recorder for the device."""
        if device.type != "cuda":
            return cls(device, only_one_bucket)
        return cls(device, only_one_bucket, torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))

    def recordings(self, name: str, step: Callable[[int], None], limit: int) -> Recordings:
        """The recordings of a step of up to `limit` rows. Nothing is recorded yet."""
        return Recordings(name, step, buckets_up_to(limit, self.only_one_bucket), self)


class Recordings:
    """A step, recorded for every bucket. `step(bucket)` runs in warm-up and recording as it does in every replay.

    On a device without graphs, a replay runs the step itself; callers see no difference.
    """

    def __init__(self, name: str, step: Callable[[int], None], buckets: tuple[int, ...], recorder: Recorder) -> None:
        self.seconds: dict[int, float] = {}  # how long each bucket took to record
        self.failure = ""  # why no step can be recorded or trusted
        self.skipped: dict[int, str] = {}  # buckets that cannot be recorded, and why
        self._name, self._step, self._buckets, self._recorder = name, step, buckets, recorder
        self._replays: dict[int, Callable[[], None]] = {}

    @property
    def usable(self) -> bool:
        """True unless recording failed."""
        return not self.failure

    @property
    def missing(self) -> tuple[int, ...]:
        """The buckets that are still to be recorded; none after a failure."""
        done = {*self._replays, *self.skipped}
        return tuple(bucket for bucket in self._buckets if bucket not in done) if self.usable else ()

    def bucket(self, rows: int) -> int:
        """The smallest bucket that holds `rows` rows."""
        return next(bucket for bucket in self._buckets if bucket >= rows)

    def prepare(self, bucket: int) -> bool:
        """Record a bucket, if it is not recorded yet. True if it can be replayed.

        It takes seconds, and up to a minute when the compiler runs for the first time on this machine. Afterwards the
        contents of the step's tensors are undefined. After RecordingFailed, this process must end.
        """
        if bucket in self.missing:
            began = time.monotonic()
            try:
                self._replays[bucket] = self._recorded(bucket)
            except RecordingFailed:
                raise
            except torch.OutOfMemoryError as error:
                self.skipped[bucket] = "the GPU's memory was full"
                log.error("%s is not recorded for %d rows; other sizes may be", self._name, bucket, exc_info=error)
            except Exception as error:  # of any kind: plain steps work without a recording
                self.give_up(f"{type(error).__name__}: {error}")
                log.error("%s cannot be recorded for %d rows; plain steps are used", self._name, bucket, exc_info=error)
            else:
                self.seconds[bucket] = round(time.monotonic() - began, 3)
                log.info("%s: %d rows recorded in %.1f s", self._name, bucket, self.seconds[bucket])
        return self.ready(bucket)

    def ready(self, bucket: int) -> bool:
        """True if this bucket can be replayed."""
        return bucket in self._replays

    def replay(self, bucket: int) -> None:
        """Take one step with a bucket's rows."""
        self._replays[bucket]()

    def status(self) -> dict[str, object]:
        """For /models/status: the recorded buckets with their seconds, and the others."""
        return {
            "recorded": dict(self.seconds),
            "missing": list(self.missing),
            "skipped": dict(self.skipped),
            "failure": self.failure or None,
        }

    def give_up(self, reason: str) -> None:
        """Stop replaying, for good."""
        self.failure = reason
        self._replays.clear()

    def _recorded(self, bucket: int) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                self._step(bucket)

        device, stream = self._recorder.device, self._recorder.stream
        if device.type != "cuda":
            run()
            return run
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    run()
        finally:
            torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._recorder.pool, stream=stream):
                run()
        except Exception as error:
            raise RecordingFailed(f"recording {self._name} for {bucket} rows: {error}") from error
        return graph.replay


class Member(Protocol):
    """What a batch takes further, step by step: it has a row in the batch's cache."""

    @property
    def index(self) -> int:
        """Its row in the cache."""

    @property
    def n_left(self) -> int:
        """The number of steps that it can take in one window."""


MemberT = TypeVar("MemberT", bound=Member)


class RecordedStep(ABC, Generic[MemberT]):
    """The decode step for the first rows of a cache, on tensors that keep their addresses.

    The members are the source of truth. Their state is copied to the device when it changes other than by a step. A
    resting row is computed too; its result lands behind its last token, where the next real token overwrites it.
    """

    window: int  # steps that are replayed before the host reads their tokens
    rounding: float  # the deviation from the plain step that half precision explains, relative to the norm
    _drawn: Tensor  # (rows, …, window)
    _hidden: Tensor  # (forwards of a step, rows, H)

    def __init__(self, name: str, llama: Llama, recorder: Recorder, rows: int, n_counts: int) -> None:
        self.stale = True  # the members changed since they were copied
        self._name, self._llama = name, llama
        self._counts = torch.zeros(n_counts, even(rows), dtype=torch.long, device=llama.device)  # first: active or not
        self._taken = torch.zeros(1, dtype=torch.long, device=llama.device)  # steps of the window
        self._finite = torch.ones((), dtype=torch.bool, device=llama.device)  # all scores of the window are finite
        self._verified: set[int] = set()  # buckets whose hidden states were compared
        self.recordings = recorder.recordings(name, self._step, rows)

    def draw(self, active: Sequence[MemberT], everyone: Sequence[MemberT]) -> Tensor | None:
        """The next tokens (members, …, window) of the `active` members of `everyone` in the batch.

        Their rows hold the tokens, but do not count them yet. None if the step cannot be replayed. Raises EngineError.
        """
        bucket = self.recordings.bucket(1 + max(member.index for member in everyone))
        if not self._ready_for(bucket, active, everyone):
            return None
        if self.stale:
            self._copy(everyone)
            self.stale = False
        width = min(self.window, *(member.n_left for member in active))
        self._replay(active, bucket, width)
        drawn = self._drawn[rows_of(active), ..., :width].cpu()
        require_finite(self._name, bool(self._finite))
        return drawn

    def prepare(self, bucket: int, everyone: Sequence[MemberT] = ()) -> bool:
        """Record the step for a bucket, while `everyone` rests. True if it can be replayed."""
        self._copy(everyone)
        self._counts[0] = 0
        self._taken.zero_()
        self.stale = True
        return self.recordings.prepare(bucket)

    def _ready_for(self, bucket: int, active: Sequence[MemberT], everyone: Sequence[MemberT]) -> bool:
        if bucket in self.recordings.missing:
            self.prepare(bucket, everyone)
        if self.recordings.ready(bucket) and bucket not in self._verified:
            self._verify(bucket, active, everyone)
        return self.recordings.ready(bucket)

    def _verify(self, bucket: int, active: Sequence[MemberT], everyone: Sequence[MemberT]) -> None:
        """Take a step that does not count, and compare its hidden states with those of the plain step."""
        self._copy(everyone)
        self.stale = True  # so the step is taken again, from the members' state
        self._replay(active, bucket, 1)
        if agree(self._hidden[:, rows_of(active)], self._plain_hidden(active), self.rounding):
            self._verified.add(bucket)
        else:
            self.recordings.give_up(f"the recorded step of {self._name} computes other numbers than the plain one")

    def _replay(self, active: Sequence[MemberT], bucket: int, width: int) -> None:
        self._begin_window(active, bucket, width)
        self._taken.zero_()
        self._finite.fill_(True)
        for _ in range(width):
            self.recordings.replay(bucket)

    @abstractmethod
    def _step(self, bucket: int) -> None:
        """Compute one step on the device."""

    @abstractmethod
    def _copy(self, everyone: Sequence[MemberT]) -> None:
        """Copy the members' state to the device."""

    @abstractmethod
    def _begin_window(self, active: Sequence[MemberT], bucket: int, width: int) -> None:
        """Copy to the device what a window needs besides the members' state."""

    @abstractmethod
    def _plain_hidden(self, active: Sequence[MemberT]) -> Tensor:
        """The hidden states (forwards, members, H) of the plain step, fed with the tokens of the recorded one."""


def rows_of(members: Sequence[Member]) -> list[int]:
    """The members' rows in the cache."""
    return [member.index for member in members]


def require_finite(name: str, finite: bool) -> None:
    """Raise EngineError if a stage's scores are not all finite."""
    if not finite:
        raise EngineError(f"{name} computed scores that are not numbers")
