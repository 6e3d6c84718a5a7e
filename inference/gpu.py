"""Detects a GPU on this machine, and warns how slow the real models are without one.

It does not open the GPU and imports no torch, so any process can call it. Run as a program with a model and YUE_DEVICE,
it prints the warning, if one applies.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from inference.catalog import TINY

# CUDA's devices on Linux, in the Windows Subsystem for Linux and on Jetson.
DEVICE_FILES = ("dev/nvidia[0-9]*", "dev/dxg", "dev/nvhost-gpu", "dev/nvgpu")
VISIBLE = "CUDA_VISIBLE_DEVICES"  # read up to the first entry that names no device
BYTES_PER_GB = 1e9
# An estimate. An L4 takes 182 and 1,003 s in bfloat16; it is bound by its memory bandwidth (0.28 TB/s). Float32 at
# 50 GB/s takes at best 11 times as long; the estimate doubles that. The memory is 12.4 + 4 GB of weights, in float32.
WITHOUT_GPU = (
    "on a CPU, 30 s of music take about 1 hour and a song of 3 minutes about 6 hours (an estimate), "
    "and about 35 GB of main memory are needed"
)

_DEVICE = re.compile(r"\s*(\d|GPU-|MIG-)")


def is_missing(device: str, environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """True if songs would be generated on the CPU. `device` is YUE_DEVICE."""
    if device == "cpu" or (VISIBLE in environment and not _DEVICE.match(environment[VISIBLE])):
        return True
    return not any(path for pattern in DEVICE_FILES for path in root.glob(pattern))


def warning(model: str, size_bytes: int | None = None) -> str:
    """The warning for a machine without a GPU, before `size_bytes` (None: unknown) are downloaded."""
    weights = "the weights, about 16 GB, are downloaded if they are missing"
    if size_bytes is not None:
        weights = f"{size_bytes / BYTES_PER_GB:.1f} GB of weights are downloaded"
    return f"{model}: {weights}, but this machine has no GPU: {WITHOUT_GPU}"


if __name__ == "__main__":
    if sys.argv[1] != TINY and is_missing(sys.argv[2]):
        print(f"warning: {warning(sys.argv[1])}", file=sys.stderr)
