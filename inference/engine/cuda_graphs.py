"""Captures decode steps of fixed shape as CUDA graphs and replays them: one launch runs a thousand kernels.

Independent of what a step computes. A recorded step reads and writes tensors that keep their addresses.

A step is recorded for a few batch sizes, and each replay uses the smallest one that is large enough:

    active songs          1   2   3   5   7   12  32
    batch size            1   2   4   8   8   16  32

In shapes, R is the number of rows, H the hidden size.
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

WARM_UPS = 2  # runs before the capture: in the first, the compiler runs and libraries allocate their memory


def batch_sizes_up_to(limit: int, only_one: bool = False) -> tuple[int, ...]:
    """Powers of two and `limit` itself. With `only_one`, `limit` alone: every step has the same shape."""
    powers = () if only_one else tuple(2**k for k in range(limit.bit_length()) if 2**k < limit)
    return (*powers, limit)


def even(columns: int) -> int:
    """The number of int64 columns that aligns every row of a tensor to 16 bytes, as compiled kernels expect."""
    return columns + columns % 2


@dataclass(frozen=True)
class GraphRecorder:
    """What all recordings share: the device, its memory pool and stream, and if each step has only one batch size."""

    device: torch.device
    only_one_size: bool = False
    # One memory pool is enough, because recordings never run at the same time.
    pool: Any = None
    # One stream, because cuBLAS keeps a workspace for each stream that it has used, 32 MiB on some GPUs.
    stream: Any = None

    @classmethod
    def on(cls, device: torch.device, only_one_size: bool = False) -> GraphRecorder:
        """A recorder for the device."""
        if device.type != "cuda":
            return cls(device, only_one_size)
        return cls(device, only_one_size, torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))

    def recordings(self, name: str, step: Callable[[int], None], limit: int) -> GraphRecordings:
        """The recordings of a step with up to `limit` rows, none of them made yet."""
        return GraphRecordings(name, step, batch_sizes_up_to(limit, self.only_one_size), self)


class GraphRecordings:
    """One step, recorded for each batch size. `step(batch_size)` runs in warm-up, in the capture and in each replay.

    On a device without CUDA graphs, a replay calls the step itself.
    """

    def __init__(
        self, name: str, step: Callable[[int], None], batch_sizes: tuple[int, ...], recorder: GraphRecorder
    ) -> None:
        self.seconds: dict[int, float] = {}  # per batch size, the time that the recording took
        self.failure = ""  # why the step cannot be recorded, or is wrong
        self.skipped: dict[int, str] = {}  # batch sizes that cannot be recorded, and why
        self._name, self._step, self._batch_sizes, self._recorder = name, step, batch_sizes, recorder
        self._replays: dict[int, Callable[[], None]] = {}

    @property
    def usable(self) -> bool:
        """True unless recording failed."""
        return not self.failure

    @property
    def missing(self) -> tuple[int, ...]:
        """The batch sizes that are still to be recorded; none after a failure."""
        done = {*self._replays, *self.skipped}
        return tuple(batch_size for batch_size in self._batch_sizes if batch_size not in done) if self.usable else ()

    def batch_size(self, rows: int) -> int:
        """The smallest batch size for `rows` rows."""
        return next(batch_size for batch_size in self._batch_sizes if batch_size >= rows)

    def prepare(self, batch_size: int) -> bool:
        """Record the step for a batch size, if it is not recorded yet. True if it can be replayed.

        It takes seconds, and up to a minute when the compiler runs for the first time on this machine. Afterwards the
        contents of the step's tensors are undefined. After RecordingFailed the process must end.
        """
        if batch_size in self.missing:
            started = time.monotonic()
            try:
                self._replays[batch_size] = self._recorded(batch_size)
            except RecordingFailed:
                raise
            except torch.OutOfMemoryError as error:
                self.skipped[batch_size] = "out of GPU memory"
                log.error(
                    "%s is not recorded for batch size %d: out of GPU memory", self._name, batch_size, exc_info=error
                )
            except Exception as error:  # of any kind: eager steps need no recording
                self.disable(f"{type(error).__name__}: {error}")
                log.error(
                    "%s cannot be recorded for batch size %d; eager steps are used",
                    self._name,
                    batch_size,
                    exc_info=error,
                )
            else:
                self.seconds[batch_size] = round(time.monotonic() - started, 3)
                log.info("%s: batch size %d recorded in %.1f s", self._name, batch_size, self.seconds[batch_size])
        return self.ready(batch_size)

    def ready(self, batch_size: int) -> bool:
        """True if this batch size can be replayed."""
        return batch_size in self._replays

    def replay(self, batch_size: int) -> None:
        """Take one step of this batch size."""
        self._replays[batch_size]()

    def status(self) -> dict[str, object]:
        """For /models/status: the recorded batch sizes with their seconds, and the others."""
        return {
            "recorded": dict(self.seconds),
            "missing": list(self.missing),
            "skipped": dict(self.skipped),
            "failure": self.failure or None,
        }

    def disable(self, reason: str) -> None:
        """Never replay again."""
        self.failure = reason
        self._replays.clear()

    def _recorded(self, batch_size: int) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                self._step(batch_size)

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
            raise RecordingFailed(f"recording {self._name} for {batch_size} rows: {error}") from error
        return graph.replay


class Member(Protocol):
    """One entry of a batch, with a row in its cache: a song in stage 1, a piece in stage 2."""

    @property
    def index(self) -> int:
        """Its row in the cache."""

    @property
    def n_left(self) -> int:
        """The number of steps that it can still take."""


MemberT = TypeVar("MemberT", bound=Member)


class RecordedStep(ABC, Generic[MemberT]):
    """The decode step for the first rows of a cache, on tensors that keep their addresses.

    The members are the source of truth. Their state is copied to the device when anything but a step changes it.
    Inactive rows are computed too; the next token overwrites their KV entries.
    """

    steps_per_sync: int  # the largest number of steps that are replayed before the host reads their tokens
    tolerance: float  # of hidden states in half precision against the eager step's, relative to their norm
    _drawn: Tensor  # (R, …, steps_per_sync)
    _hidden: Tensor  # (forward passes of a step, R, H)

    def __init__(self, name: str, llama: Llama, recorder: GraphRecorder, rows: int, n_counts: int) -> None:
        self.stale = True  # the members have changed since they were copied
        self._name, self._llama = name, llama
        # (n_counts, R); the first row is 1 for active rows of the cache.
        self._counts = torch.zeros(n_counts, even(rows), dtype=torch.long, device=llama.device)
        self._taken = torch.zeros(1, dtype=torch.long, device=llama.device)  # steps since the last sync
        self._finite = torch.ones((), dtype=torch.bool, device=llama.device)  # all logits since the sync
        self._verified: set[int] = set()  # batch sizes whose hidden states agree with the eager step's
        self.recordings = recorder.recordings(name, self._step, rows)

    def draw(self, active: Sequence[MemberT], everyone: Sequence[MemberT]) -> Tensor | None:
        """The next tokens (active, …, n_steps) of the `active` members among `everyone` in the batch.

        Their rows hold the tokens, but do not count them yet. None if the step cannot be replayed. Raises EngineError.
        """
        batch_size = self.recordings.batch_size(1 + max(member.index for member in everyone))
        if not self._ready_for(batch_size, active, everyone):
            return None
        if self.stale:
            self._copy(everyone)
            self.stale = False
        n_steps = min(self.steps_per_sync, *(member.n_left for member in active))
        self._replay(active, batch_size, n_steps)
        drawn = self._drawn[rows_of(active), ..., :n_steps].cpu()
        require_finite(self._name, bool(self._finite))
        return drawn

    def prepare(self, batch_size: int, everyone: Sequence[MemberT] = ()) -> bool:
        """Record the step for a batch size, with every row inactive. True if it can be replayed."""
        self._copy(everyone)
        self._counts[0] = 0
        self._taken.zero_()
        self.stale = True
        return self.recordings.prepare(batch_size)

    def _ready_for(self, batch_size: int, active: Sequence[MemberT], everyone: Sequence[MemberT]) -> bool:
        if batch_size in self.recordings.missing:
            self.prepare(batch_size, everyone)
        if self.recordings.ready(batch_size) and batch_size not in self._verified:
            self._verify(batch_size, active, everyone)
        return self.recordings.ready(batch_size)

    def _verify(self, batch_size: int, active: Sequence[MemberT], everyone: Sequence[MemberT]) -> None:
        """Take a step without keeping its tokens, and compare its hidden states with those of the eager step."""
        self._copy(everyone)
        self.stale = True  # the next step starts again from the members' state
        self._replay(active, batch_size, 1)
        if agree(self._hidden[:, rows_of(active)], self._eager_hidden(active), self.tolerance):
            self._verified.add(batch_size)
        else:
            self.recordings.disable(f"{self._name}: hidden states differ from the eager step beyond the tolerance")

    def _replay(self, active: Sequence[MemberT], batch_size: int, n_steps: int) -> None:
        self._before_replays(active, batch_size, n_steps)
        self._taken.zero_()
        self._finite.fill_(True)
        for _ in range(n_steps):
            self.recordings.replay(batch_size)

    @abstractmethod
    def _step(self, batch_size: int) -> None:
        """Compute one step on the device."""

    @abstractmethod
    def _copy(self, everyone: Sequence[MemberT]) -> None:
        """Copy the members' state to the device."""

    @abstractmethod
    def _before_replays(self, active: Sequence[MemberT], batch_size: int, n_steps: int) -> None:
        """Copy to the device what the next `n_steps` steps need besides the members' state."""

    @abstractmethod
    def _eager_hidden(self, active: Sequence[MemberT]) -> Tensor:
        """The hidden states (forward passes, active, H) of the eager step, fed with the tokens of the recorded one."""


def rows_of(members: Sequence[Member]) -> list[int]:
    """The members' rows in the cache."""
    return [member.index for member in members]


def require_finite(name: str, finite: bool) -> None:
    """Raise EngineError unless a stage's logits are all finite."""
    if not finite:
        raise EngineError(f"{name} computed non-finite logits (NaN or Inf)")
