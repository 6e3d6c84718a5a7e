"""Turns the score's timbres into the weights of Vocos: a table of log-magnitudes.

Independent of which state follows which. `inference/tiny/codec.py` defines the vectors that Vocos reads.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from inference.tiny import timbres
from inference.tiny.codec import HAT, KICK, LEVEL, N_READ, SPECTRUM, Tensors, band_spectra, vocal_spectra
from inference.tiny.layers import VOCOS_FFT, VOCOS_KERNEL
from inference.tiny.score import TONE_HZ
from inference.vocabulary import VOCODER_RATE_HZ

READ = slice(SPECTRUM.start, N_READ)  # of a code's vector
N_INPUTS = READ.stop - READ.start

SILENCE = -14.0  # the log-magnitude of a bin where nothing sounds
BALANCE = 64.0  # dwarfs all else, so that both LayerNorms divide by a constant
BINS_PER_TONE = VOCOS_FFT * TONE_HZ // VOCODER_RATE_HZ  # 4
# A partial fills three bins, the outer ones half a turn later: a Hann window weighs them 1, -1/2, -1/2, so together
# they give twice what one would. A single bin of magnitude 1 has the amplitude 2 / n, and overlapping windows 2 / 1.5.
FULL_SCALE = VOCOS_FFT / 2 * 1.5 / 2 / 2  # the magnitude of a partial with amplitude 1


def vocos(tensors: Tensors, track: str) -> None:
    """Make a table of the network: spectrum, level and drums of a code, to the log-magnitudes of a frame.

    The hidden state holds what is read of the vector, then its negative sum, zeros, and plus and minus `BALANCE`. So
    its mean is 0 and its variance that of `BALANCE`, whatever the code.
    """
    for name, tensor in tensors.items():
        if name != "head.istft.window":
            tensor.zero_()
    hidden = len(tensors["backbone.embed.bias"])
    embed = tensors["backbone.embed.weight"][:, :, VOCOS_KERNEL // 2]
    embed[:N_INPUTS, READ] = torch.eye(N_INPUTS)
    embed[N_INPUTS, READ] = -1.0
    tensors["backbone.embed.bias"][-2:] = torch.tensor([BALANCE, -BALANCE])
    for norm in ("backbone.norm", "backbone.final_layer_norm"):
        tensors[f"{norm}.weight"].fill_(BALANCE * math.sqrt(2 / hidden))  # undoes the division
    table, phases = _log_magnitudes(track), _phases()
    tensors["head.out.weight"][: len(table), :N_INPUTS] = torch.from_numpy(table)
    tensors["head.out.bias"][: len(table)] = SILENCE
    tensors["head.out.bias"][len(table) :] = torch.from_numpy(phases)


def _log_magnitudes(track: str) -> np.ndarray:
    """What each input adds to each bin's log-magnitude (bins, inputs)."""
    spectra = vocal_spectra() if track == "vocal" else band_spectra()
    table = np.zeros((VOCOS_FFT // 2 + 1, N_INPUTS))
    for column, amplitudes in enumerate(spectra):
        table[:, column] = _above_silence(amplitudes)
    table[:, LEVEL - READ.start] = 1.0
    table[:, KICK - READ.start] = _above_silence(timbres.kick())
    table[:, HAT - READ.start] = _above_silence(timbres.hat())
    return table


def _above_silence(amplitudes: np.ndarray) -> np.ndarray:
    """The logarithms of the magnitudes (bins,), over that of silence."""
    return np.maximum(np.log(np.maximum(_bins(amplitudes), 1e-9) * FULL_SCALE) - SILENCE, 0.0)


def _phases() -> np.ndarray:
    """The phase of each bin (bins,), the same in every frame."""
    phases = _bins(timbres.phases())
    phases[1::BINS_PER_TONE] += math.pi
    phases[BINS_PER_TONE - 1 :: BINS_PER_TONE] += math.pi
    return phases


def _bins(partials: np.ndarray) -> np.ndarray:
    """The values of the partials at their bins and the two beside them (bins,), 0 elsewhere."""
    bins = np.zeros(VOCOS_FFT // 2 + 1)
    bins[::BINS_PER_TONE] = partials
    bins[1::BINS_PER_TONE] = partials[:-1]
    bins[BINS_PER_TONE - 1 :: BINS_PER_TONE] = partials[1:]
    return bins
