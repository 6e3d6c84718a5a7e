"""Quantizes the weights of linear layers to int8, with one scale for each output channel. The arithmetic is unchanged.

Independent of the network that the layers belong to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.options import Quantization

INT8_MAX = 127  # the range is symmetric, so that a weight and its negative are rounded alike


class Int8Linear(nn.Module):
    """A linear layer of half the size: `weight` (out, in) in int8, `scale` (out, 1) in the layer's dtype.

    Each forward pass dequantizes the weight. So the result of a row depends on its neighbours no more than in a plain
    layer, and sums are no larger, which matters in float16.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear) -> None:
        """An empty layer with the shape, type, device and bias of `plain`."""
        super().__init__()
        self.register_buffer("weight", torch.empty_like(plain.weight, dtype=torch.int8))
        self.register_buffer("scale", plain.weight.new_empty(plain.out_features, 1))
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)"""
        return functional.linear(x, self.weight * self.scale, self.bias)


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize a layer's `weight` (out, in): int8 weights (out, in) and scales (out, 1) in `dtype`.

    Their product differs from `weight` by at most half a scale. Peak memory: two float32 copies.
    """
    exact = weight.float()
    scale = (exact.abs().amax(dim=1, keepdim=True) / INT8_MAX).to(dtype)
    step = torch.where(scale == 0, 1.0, scale.float())  # a channel of zeros stays zero
    # Divided by the rounded scale, so rounding it costs no accuracy.
    return (exact / step).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def replace_linears(module: nn.Module) -> list[str]:
    """Replace every linear layer inside `module` with an empty `Int8Linear`. Returns the layers' names."""
    linear_layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in linear_layers.items():
        module.set_submodule(name, Int8Linear(layer))
    return list(linear_layers)


def quantization_of(module: nn.Module) -> Quantization:
    """The quantization of the weights inside `module`."""
    return "int8" if any(isinstance(layer, Int8Linear) for layer in module.modules()) else "none"
