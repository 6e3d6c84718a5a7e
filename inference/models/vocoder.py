"""Vocos: decodes X-Codec embeddings to 44.1 kHz waveforms.

Independent of tracks and audio files.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from inference.errors import CheckpointError
from inference.models.checkpoints import load_strict, read_pickle, shape_of
from inference.vocabulary import VOCODER_HOP

KERNEL_SIZE = 7
LAYER_NORM_EPS = 1e-6
MAX_MAGNITUDE = 100.0  # limits exp() of an outlying log-magnitude
WINDOW_TOLERANCE = 1e-5


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution over time, then two linear layers over the channels of each frame."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pwconv1 = nn.Linear(width, hidden_width)
        self.pwconv2 = nn.Linear(hidden_width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, width, T) -> (1, width, T)"""
        hidden = self.norm(self.dwconv(x).transpose(1, 2))  # (1, T, width)
        hidden = self.pwconv2(functional.gelu(self.pwconv1(hidden)))
        return x + (self.gamma * hidden).transpose(1, 2)


class Backbone(nn.Module):
    """The ConvNeXt layers."""

    def __init__(self, in_width: int, width: int, hidden_width: int, n_layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(in_width, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.convnext = nn.ModuleList(ConvNeXtBlock(width, hidden_width) for _ in range(n_layers))
        self.final_layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(1, D, T) -> (1, T, width)"""
        x = self.norm(self.embed(embeddings).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class InverseSTFT(nn.Module):
    """Spectra to a waveform, by overlap-add. Implemented here because `torch.istft` has no "same" padding."""

    window: torch.Tensor  # (n_fft,)

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        """(n_fft / 2 + 1, T) complex -> (882 * T,)"""
        n_fft, n_frames = len(self.window), spectrum.shape[1]
        frames = torch.fft.irfft(spectrum, n_fft, dim=0) * self.window[:, None]  # (n_fft, T)
        weights = self.window.square()[:, None].expand(n_fft, n_frames)
        return _overlap_add(frames) / _overlap_add(weights)


class Head(nn.Module):
    """Frames to log-magnitudes and phases, and those to a waveform."""

    def __init__(self, width: int, n_fft: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, n_fft + 2)
        self.istft = InverseSTFT(n_fft)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, T, width) -> (882 * T,)"""
        log_magnitude, phase = self.out(x)[0].T.chunk(2, dim=0)  # both (n_fft / 2 + 1, T)
        magnitude = log_magnitude.exp().clamp(max=MAX_MAGNITUDE)
        return self.istft(torch.polar(magnitude, phase))


class Vocos(nn.Module):
    """The vocoder of one track."""

    def __init__(self, in_width: int, width: int, hidden_width: int, n_layers: int, n_fft: int) -> None:
        super().__init__()
        self.backbone = Backbone(in_width, width, hidden_width, n_layers)
        self.head = Head(width, n_fft)

    @torch.inference_mode()
    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings (D, T) -> waveform (882 * T,) at 44.1 kHz."""
        in_width = self.backbone.embed.in_channels
        assert embeddings.ndim == 2 and embeddings.shape[0] == in_width, (tuple(embeddings.shape), in_width)
        return self.head(self.backbone(embeddings[None]))


def load(path: Path, device: torch.device) -> Vocos:
    """Load the vocoder from the file `path`, in float32. Raises CheckpointError."""
    tensors = {name: tensor.to(torch.float32) for name, tensor in read_pickle(path).items()}
    vocos = _empty_vocos(tensors, path)
    load_strict(vocos, tensors, path)
    _check_window(vocos.head.istft.window, path)
    return vocos.to(device).eval().requires_grad_(False)


def _empty_vocos(tensors: dict[str, torch.Tensor], path: Path) -> Vocos:
    """The network on the meta device."""
    width, in_width, _ = shape_of(tensors, "backbone.embed.weight", path, 3)
    hidden_width, _ = shape_of(tensors, "backbone.convnext.0.pwconv1.weight", path, 2)
    n_rows, _ = shape_of(tensors, "head.out.weight", path, 2)
    n_fft = n_rows - 2  # n_fft / 2 + 1 magnitudes and as many phases
    # With an overlap of less than half, no window covers some samples.
    if n_fft % 2 or n_fft < 2 * VOCODER_HOP:
        allowed = f"an even number, at least {2 * VOCODER_HOP + 2}"
        raise CheckpointError(path, f"head.out.weight has {n_rows} rows, allowed: {allowed}")
    n_layers = 0
    while f"backbone.convnext.{n_layers}.gamma" in tensors:
        n_layers += 1
    with torch.device("meta"):
        return Vocos(in_width, width, hidden_width, n_layers, n_fft)


def _check_window(window: torch.Tensor, path: Path) -> None:
    if not torch.allclose(window, torch.hann_window(len(window)), rtol=0.0, atol=WINDOW_TOLERANCE):
        raise CheckpointError(path, f"head.istft.window is not the periodic Hann window of {len(window)} samples")


def _overlap_add(frames: torch.Tensor) -> torch.Tensor:
    """Frames (n_fft, T) -> their sum (882 * T,), each starting 882 samples after the previous one, with both ends cut.

    |<- cut ->|                                                 |<- cut ->|
    [======= frame 0 =======]
              [======= frame 1 =======]
                        [======= frame 2 =======]
    """
    n_fft, n_frames = frames.shape
    length = (n_frames - 1) * VOCODER_HOP + n_fft
    summed = functional.fold(
        frames[None], output_size=(1, length), kernel_size=(1, n_fft), stride=(1, VOCODER_HOP)
    ).flatten()
    cut = (n_fft - VOCODER_HOP) // 2
    return summed[cut : length - cut]
