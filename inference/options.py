"""How a model is loaded and how many songs it sings together: what the server's settings say to the engine.

It knows nothing of tensors or of the environment; `serving/settings.py` reads and checks the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
