"""How songs are generated unless a request says otherwise, and how a model is loaded.

Plain values, independent of tensors and of the environment; `serving/settings.py` reads and checks `EngineOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# YuE's own, the only place where they stand.
DEFAULT_MAX_NEW_TOKENS = 3_000  # of a section
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 0.93
DEFAULT_TOP_K = 50
DEFAULT_REPETITION_PENALTY = 1.1
DEFAULT_GUIDANCE_SCALE = (1.5, 1.2)  # of the first section, of the later ones

Quantization = Literal["none", "int8"]


@dataclass(frozen=True)
class EngineOptions:
    """`device` and `dtype` as `pipeline.resolve` takes them; `max_songs` None is as many as the device has room for."""

    device: str = "auto"
    dtype: str = "auto"
    quantization: Quantization = "none"  # of stage 1
    max_songs: int | None = None
    compile: bool = True  # on a GPU: fuse the decode steps, and record them as CUDA graphs
    prepare: bool = False  # do so for every number of songs before the model counts as loaded
    deterministic: bool = False  # on a GPU: compute every song in the same shape, however many sing
