"""The engine's process with a fault built in: one of its stages breaks on its way.

Run as a program with a fault, a stage and the pipe's descriptor.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from inference.catalog import ModelFiles
from inference.errors import RecordingFailed
from inference.options import EngineOptions
from inference.process import engine_process
from inference.process.engine_process import EngineProcess

STALL_SECONDS = 5.0
PART_SECONDS = 60.0
CALLS_BEFORE = {"load": 0, "stage1": 40, "stage2": 9, "decode": 0}  # of the stage's step, which go well


class FaultyEngine(EngineProcess):
    """An engine's process that breaks while a song is in it."""

    program: ClassVar[tuple[str, ...]]

    @classmethod
    def broken(cls, fault: str, stage: str, files: ModelFiles, on_loading: Callable[[str], None]) -> EngineProcess:
        """Started like any other."""
        kind = type("Faulty", (cls,), {"program": ("tests.support.faulty_worker", fault, stage)})
        return kind.start(files, EngineOptions("cpu", "float32"), on_loading, STALL_SECONDS, PART_SECONDS)


def install(fault: str, stage: str) -> None:
    """Let the stage's step break after some calls."""
    from inference.engine.pipeline import SongInProgress
    from inference.engine.stage1_batch import Stage1Batch
    from inference.engine.stage2_batch import Stage2Batch

    owner, name = {
        "load": (engine_process._Child, "_loaded"),
        "stage1": (Stage1Batch, "step"),
        "stage2": (Stage2Batch, "step"),
        "decode": (SongInProgress, "decode_part"),
    }[stage]
    step, calls = getattr(owner, name), iter(range(CALLS_BEFORE[stage]))

    def breaking(self: Any, *arguments: Any) -> Any:
        if next(calls, None) is None and not happen(fault, self):
            return 1
        return step(self, *arguments)

    setattr(owner, name, breaking)


def happen(fault: str, stage: Any) -> bool:
    """True when the step is still to be taken."""
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "block":  # as a driver that never answers
            threading.Event().wait()
        case "spin":  # as a loop that does not end
            while True:
                pass
        case "idle":  # as a scheduler that takes nobody any further, and does not know it
            return False
        case "nan":
            network = stage._pipeline.vocoders[0] if hasattr(stage, "_pipeline") else stage._llama.model
            next(network.parameters()).data.fill_(float("nan"))
        case "record":
            raise RecordingFailed("recording stage 1 for 8 rows: out of memory")
        case "cuda":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return True


if __name__ == "__main__":
    fault, stage, pipe = sys.argv[1:]
    install(fault, stage)
    engine_process._Child(Connection(int(pipe))).run()
