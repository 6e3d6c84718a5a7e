"""The part of X-Codec that makes audio: codebooks, and the decoder to 16 kHz waveforms.

The modules have the names of the checkpoint's tensors. It is the decoder of the Descript Audio Codec
(https://arxiv.org/abs/2306.06546) with an output padding of its own and without the last tanh.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from inference.codec_layout import RATIOS, RESIDUAL_UNITS, CodecWidths

KERNEL_SIZE = 7
ALPHA_MIN = 1e-9  # keeps the division by an alpha of 0 finite


class Snake(nn.Module):
    """The activation x + sin²(αx) / α (https://arxiv.org/abs/2006.08195)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(1, width, samples) -> (1, width, samples)"""
        return x + (self.alpha + ALPHA_MIN).reciprocal() * torch.sin(self.alpha * x).pow(2)


class ResidualUnit(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        padding = (KERNEL_SIZE - 1) * dilation // 2
        self.block = nn.Sequential(
            Snake(width),
            nn.Conv1d(width, width, KERNEL_SIZE, dilation=dilation, padding=padding),
            Snake(width),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(1, width, samples) -> (1, width, samples)"""
        return x + self.block(x)


class Upsampling(nn.Module):
    """One block of the decoder: `ratio` times the samples, half the channels."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        convolution = nn.ConvTranspose1d(
            width, width // 2, 2 * ratio, stride=ratio, padding=(ratio + 1) // 2, output_padding=ratio % 2
        )
        units = (ResidualUnit(width // 2, dilation=3**unit) for unit in range(RESIDUAL_UNITS))
        self.block = nn.Sequential(Snake(width), convolution, *units)

    def forward(self, x: Tensor) -> Tensor:
        """(1, width, samples) -> (1, width / 2, ratio · samples)"""
        return self.block(x)


class Waveforms(nn.Module):
    """Embeddings to a waveform."""

    def __init__(self, acoustic: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(acoustic, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2)]
        for ratio in RATIOS:
            layers.append(Upsampling(width, ratio))
            width //= 2
        layers += [Snake(width), nn.Conv1d(width, 1, KERNEL_SIZE, padding=KERNEL_SIZE // 2)]
        self.model = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(1, acoustic, T) -> (1, 1, 320 · T)"""
        return self.model(embeddings)


class CodecDecoder(nn.Module):
    """Codes to embeddings, and to waveforms; empty until a checkpoint is loaded."""

    def __init__(self, widths: CodecWidths) -> None:
        super().__init__()
        self.decoder_2 = Waveforms(widths.acoustic, widths.decoder)
        self.fc_post2 = nn.Linear(widths.codebook, widths.acoustic)

    def forward(self, embeddings: Tensor) -> Tensor:
        """The sums of codebook vectors (T, D) -> the waveform (320 · T,)."""
        return self.decoder_2(self.fc_post2(embeddings[None]).transpose(1, 2))[0, 0]


def embed(codebooks: Iterable[Tensor], codes: Tensor) -> Tensor:
    """The sums (T, D) of the vectors that the codes (8, T) have in their codebooks, each (1024, D)."""
    vectors = (book[row] for book, row in zip(codebooks, codes, strict=True))
    return functools.reduce(torch.add, vectors)
