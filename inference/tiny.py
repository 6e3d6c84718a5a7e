"""The tiny model: a complete set of checkpoints with fabricated weights. It makes noise, not music.

It does not know how a song is sung: it only writes files with the real names, layouts and spellings.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch


def fabricate(key: str, shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """A float32 tensor of `shape` that depends on nothing but `key`, `shape` and `seed`."""
    generator = np.random.default_rng([zlib.crc32(key.encode()), seed])
    noise = generator.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)
    return torch.from_numpy(np.ascontiguousarray(_shaped_like_weights(key, noise), dtype=np.float32))


def _shaped_like_weights(key: str, noise: np.ndarray) -> np.ndarray:
    """Scale `noise` to what a trained tensor of that name looks like, so that signals neither fade nor explode."""
    if key.endswith("alpha"):  # of the Snake activations
        return 1.0 + 0.1 * noise
    if key.endswith("gamma"):  # layer scales
        return 0.1 + 0.02 * noise
    if key.endswith("decoder_2.model.6.weight_g"):  # the waveform decoder's last layer: keeps the audio inside ±1
        return 0.004 * np.abs(1.0 + 0.1 * noise)
    if key.endswith("weight_g"):
        return np.abs(1.0 + 0.1 * noise)
    if "_codebook.embed" in key:
        return 0.3 * noise
    if key.endswith(("inited", "cluster_size")):
        return np.ones_like(noise)
    if key.endswith("bias"):
        return 0.01 * noise
    if "norm" in key and noise.ndim == 1:
        return 1.0 + 0.05 * noise
    fan_in = math.prod(noise.shape[1:]) if noise.ndim > 1 else 1
    return noise / np.sqrt(max(fan_in, 1))
