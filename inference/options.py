"""YuE's default values for a song, and the options of the engine.

Plain values, independent of tensors and of the environment; `serving/settings.py` reads and checks `EngineOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["none", "int8"]

# YuE's own values, for fields that a request leaves out.
DEFAULT_MAX_NEW_TOKENS = 3_000  # the budget of a section: 30 s
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 0.93
DEFAULT_TOP_K = 50
DEFAULT_REPETITION_PENALTY = 1.1
DEFAULT_GUIDANCE_SCALE = (1.5, 1.2)  # of the first section, of the later ones


@dataclass(frozen=True)
class EngineOptions:
    """How a model is loaded and how many songs it generates at once.

    `device` and `dtype` are what `pipeline.resolve` takes. With `max_songs` None, the device's memory limits them.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: Quantization = "none"  # of stage 1
    max_songs: int | None = None
    compile: bool = True  # on a GPU: compile the decode steps, and record them as CUDA graphs
    prepare: bool = False  # do so for every batch size while the model loads
    deterministic: bool = False  # on a GPU: compute every song in the same shape, whatever the batch
