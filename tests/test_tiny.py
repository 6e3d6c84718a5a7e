"""The tiny set: fabricated weights, and files like the real ones."""

from __future__ import annotations

import hashlib

import pytest
import torch

from inference import tiny

# The first 16 digits of the SHA-256 of each tensor's bytes, one for each way of scaling.
KNOWN_TENSORS = [
    ("xcodec.a.alpha", (1, 5, 1), "a7ccdeffbb8ac7c5"),
    ("x.gamma", (7,), "65e52ca8586bdf76"),
    ("decoder_2.model.6.weight_g", (3, 1, 1), "725a6d4e3bb77a04"),
    ("x.weight_g", (3, 1, 1), "214da184470b766c"),
    ("q._codebook.embed_avg", (8, 4), "280058d7bf81d748"),
    ("a.inited", (1,), "e00e5eb9444182f3"),
    ("c.bias", (5,), "97496136ac444170"),
    ("input_layernorm.weight", (6,), "b157e765ac7cd996"),
    ("stage1.lm_head.weight", (9, 4), "2ec6d8df2fc99665"),
    ("conv.weight", (3, 4, 5), "9db79e1b3d574d02"),
]


@pytest.mark.parametrize(("key", "shape", "digest"), KNOWN_TENSORS)
def test_fabricated_tensor_is_the_one_the_parity_data_was_made_with(
    key: str, shape: tuple[int, ...], digest: str
) -> None:
    tensor = tiny.fabricate(key, shape)
    assert tensor.dtype == torch.float32 and tensor.shape == shape
    assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] == digest


def test_another_key_or_seed_fabricates_another_tensor() -> None:
    tensor = tiny.fabricate("layer.weight", (4, 4))
    assert not torch.equal(tensor, tiny.fabricate("other.weight", (4, 4)))
    assert not torch.equal(tensor, tiny.fabricate("layer.weight", (4, 4), seed=1))
