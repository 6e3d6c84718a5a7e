"""Weights of linear layers as whole numbers of 8 bits, a scale for each output channel; the arithmetic stays as it was.

It does not know which network the layers belong to, nor where the weights come from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.options import Quantization

LARGEST = 127  # -128 is left out: a weight and its negative are rounded alike


class Int8Linear(nn.Module):
    """A linear layer that holds half the bytes: `weight` (out, in) in int8, `scale` (out, 1) in the layer's own type.

    Every forward multiplies the two into plain weights, which are gone with it. So a row's result depends on its
    neighbours as little as in a plain layer, and no sum is larger than in one, which matters in float16.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear) -> None:
        """An empty layer of the shape, type and device of `plain`, with its bias."""
        super().__init__()
        self.register_buffer("weight", torch.empty_like(plain.weight, dtype=torch.int8))
        self.register_buffer("scale", plain.weight.new_empty(plain.out_features, 1))
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return functional.linear(x, self.weight * self.scale, self.bias)


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whole numbers (out, in) in int8 and scales (out, 1) in `dtype` for a layer's `weight` (out, in).

    Their product is nowhere further than half a scale from `weight`. While it works it holds two copies in float32.
    """
    exact = weight.float()
    scale = (exact.abs().amax(dim=1, keepdim=True) / LARGEST).to(dtype)
    step = torch.where(scale == 0, 1.0, scale.float())  # a channel of zeros stays one
    # Divided by the scale as it is kept: to round the scale then costs nothing.
    return (exact / step).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale


def make_room(module: nn.Module) -> list[str]:
    """Put an empty `Int8Linear` in the place of every linear layer inside `module`; the layers' names."""
    linear_layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in linear_layers.items():
        module.set_submodule(name, Int8Linear(layer))
    return list(linear_layers)


def of(module: nn.Module) -> Quantization:
    """How the weights inside `module` are held."""
    return "int8" if any(isinstance(layer, Int8Linear) for layer in module.modules()) else "none"
