"""Steps of fixed shape, recorded once as CUDA graphs and replayed: a thousand kernels for the price of one launch.

It does not know what a step computes. A recorded step reads and writes tensors that stay where they are.

A step is recorded for a number of rows, its *bucket*. Few buckets serve every number of rows:

    songs that sing       1   2   3   5   7   12  32
    bucket                1   2   4   8   8   16  32
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from inference.errors import RecordingFailed

log = logging.getLogger(__name__)

WARM_UPS = 2  # runs before the recording: the first compiles, and libraries take their memory with it


def buckets_up_to(limit: int, only_one: bool = False) -> tuple[int, ...]:
    """Powers of two and `limit` itself; `only_one`: just that, so that every song is computed in the same shape."""
    powers = () if only_one else tuple(2**k for k in range(limit.bit_length()) if 2**k < limit)
    return (*powers, limit)


def even(rows: int) -> int:
    """So many columns of int64 that every row of a table begins at 16 bytes, as compiled kernels expect."""
    return rows + rows % 2


@dataclass(frozen=True)
class Recorder:
    """Where steps are recorded: the device, and whether each in one bucket only."""

    device: torch.device
    only_one_bucket: bool = False
    # All recordings take their memory from one place, for they never run at the same time.
    pool: Any = None
    # And all run on one stream: cuBLAS keeps its workspace, 32 MiB on some cards, for each that it has worked on.
    stream: Any = None

    @classmethod
    def on(cls, device: torch.device, only_one_bucket: bool = False) -> Recorder:
        """One for that device."""
        if device.type != "cuda":
            return cls(device, only_one_bucket)
        return cls(device, only_one_bucket, torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))

    def recordings(self, name: str, step: Callable[[int], None], limit: int) -> Recordings:
        """Of a step of up to `limit` rows; nothing is recorded yet."""
        return Recordings(name, step, buckets_up_to(limit, self.only_one_bucket), self)


class Recordings:
    """A step for every bucket. `step(bucket)` runs in its warm-ups and its recording as it does in every replay.

    On a device without graphs a step is run anew each time, which is the same to whoever asks for it.
    """

    def __init__(self, name: str, step: Callable[[int], None], buckets: tuple[int, ...], recorder: Recorder) -> None:
        self.seconds: dict[int, float] = {}  # how long each bucket took to be ready
        self.failure = ""  # why no step can be recorded, or may be trusted
        self.skipped: dict[int, str] = {}  # buckets that are done without, and why
        self._name, self._step, self._buckets, self._recorder = name, step, buckets, recorder
        self._replays: dict[int, Callable[[], None]] = {}

    @property
    def usable(self) -> bool:
        """Whether steps can be replayed."""
        return not self.failure

    @property
    def missing(self) -> tuple[int, ...]:
        """The buckets that have not been recorded, while any can be."""
        done = {*self._replays, *self.skipped}
        return tuple(bucket for bucket in self._buckets if bucket not in done) if self.usable else ()

    def bucket(self, rows: int) -> int:
        """The smallest bucket that holds so many rows."""
        return next(bucket for bucket in self._buckets if bucket >= rows)

    def prepare(self, bucket: int) -> bool:
        """Record a bucket, if it is not recorded yet; whether it can be replayed.

        It takes seconds, and up to a minute where the compiler works for the first time on this machine. The step's
        tensors hold anything afterwards. Raises RecordingFailed, after which this process can only end.
        """
        if bucket in self.missing:
            began = time.monotonic()
            try:
                self._replays[bucket] = self._recorded(bucket)
            except RecordingFailed:
                raise
            except torch.OutOfMemoryError as error:
                self.skipped[bucket] = "the GPU's memory was full"
                log.error("%s is not recorded for %d rows, others may be", self._name, bucket, exc_info=error)
            except Exception as error:  # of any kind: the songs can be sung without
                self.give_up(f"{type(error).__name__}: {error}")
                log.error("%s cannot be recorded for %d rows; it goes on without", self._name, bucket, exc_info=error)
            else:
                self.seconds[bucket] = round(time.monotonic() - began, 3)
                log.info("%s: %d rows recorded in %.1f s", self._name, bucket, self.seconds[bucket])
        return self.ready(bucket)

    def ready(self, bucket: int) -> bool:
        """Whether this bucket can be replayed."""
        return bucket in self._replays

    def replay(self, bucket: int) -> None:
        """Take the step once, with so many rows."""
        self._replays[bucket]()

    def status(self) -> dict[str, object]:
        """As /models/status shows it: the buckets that are recorded, with their seconds, and those that are not."""
        return {
            "recorded": dict(self.seconds),
            "missing": list(self.missing),
            "skipped": dict(self.skipped),
            "failure": self.failure or None,
        }

    def give_up(self, reason: str) -> None:
        """Replay nothing any more."""
        self.failure = reason
        self._replays.clear()

    def _recorded(self, bucket: int) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                self._step(bucket)

        device, aside = self._recorder.device, self._recorder.stream
        if device.type != "cuda":
            run()
            return run
        aside.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    run()
        finally:
            torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._recorder.pool, stream=aside):
                run()
        except Exception as error:
            raise RecordingFailed(f"recording {self._name} for {bucket} rows: {error}") from error
        return graph.replay
