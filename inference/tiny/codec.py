"""Turns the score's states and their timbres into the weights of X-Codec: its codebooks and its decoder.

Independent of which state follows which.

A code's vector has four parts:

    waves (64,)        how much of each sound X-Codec's decoder plays: a linear map, since amplitudes add up
    spectrum (32,)     which spectrum Vocos shows: it adds logarithms, so chord, bass and arpeggio are one spectrum
    levels (3,)        logarithm of the amplitude, kick, hat
    fabricated (13,)   read by no decoder; only the encoder's search for the nearest vector sees it

Codebook 0 has half of it, the other seven share the other half. So a wrong stage 2 is heard at once.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from inference.codec_layout import RATIOS
from inference.tiny import score, timbres
from inference.tiny.score import TONE_HZ, BandState, VocalState
from inference.vocabulary import CODEC_HOP, CODEC_RATE_HZ, N_CODEBOOKS

Tensors = dict[str, torch.Tensor]

# The waves: each pitch in two vowels, each eighth of each chord, the kick.
FIRST_BAND_WAVE = 2 * len(score.VOCAL_RANGE)
KICK_WAVE = FIRST_BAND_WAVE + len(score.CHORDS) * score.N_EIGHTHS
WAVES = slice(0, KICK_WAVE + 1)

SPECTRUM = slice(64, 96)
LEVEL, KICK, HAT = range(SPECTRUM.stop, SPECTRUM.stop + 3)
N_READ = HAT + 1

CODEC_KICK = 1.5  # the kick's gain over Vocos, whose magnitudes are clamped
QUIETEST_DRUM = math.exp(-17.0)  # its level is 0, and 1 at full amplitude, on a logarithmic scale


# -- codebooks


def codebooks(tensors: Tensors) -> None:
    """Replace what decoders read of the fabricated vectors."""
    vectors = torch.from_numpy(np.stack([_vector(state) for state in score.STATES]))
    for codebook in range(N_CODEBOOKS):
        embed = tensors[f"quantizer.vq.layers.{codebook}._codebook.embed"]
        embed[:, :N_READ] = vectors * (0.5 if codebook == 0 else 0.5 / (N_CODEBOOKS - 1))


def _vector(state: VocalState | BandState) -> np.ndarray:
    """The part of a code's vector that decoders read."""
    vector = np.zeros(N_READ, dtype=np.float32)
    if isinstance(state, VocalState):
        amplitude, color = score.vocal_amplitude(state), score.vowel(state)
        if state.pitch != score.REST:
            vowels = slice(2 * (state.pitch - 1), 2 * state.pitch)
            vector[vowels] = amplitude * (1 - color), amplitude * color
            vector[SPECTRUM][vowels] = 1 - color, color
            vector[LEVEL] = math.log(amplitude)
    else:
        amplitude, sound = score.PLUCK[state.age], state.chord * score.N_EIGHTHS + state.eighth
        vector[FIRST_BAND_WAVE + sound] = amplitude
        vector[SPECTRUM][sound] = 1.0
        vector[LEVEL] = math.log(amplitude)
        kick = score.drum_amplitude(state, score.KICK_BEATS, score.FILL_KICK_BEATS, score.KICK)
        hat = score.drum_amplitude(state, score.HAT_BEATS, score.FILL_HAT_BEATS, score.HAT)
        vector[KICK_WAVE] = kick
        vector[[KICK, HAT]] = 1 - np.log(np.maximum([kick, hat], QUIETEST_DRUM)) / math.log(QUIETEST_DRUM)
    return vector


def vocal_spectra() -> list[np.ndarray]:
    """The partials of each pitch in both vowels."""
    pitches = range(1, score.N_PITCHES)
    return [timbres.voice(pitch, vowel) for pitch in pitches for vowel in (timbres.VOWEL_A, timbres.VOWEL_O)]


def band_spectra() -> list[np.ndarray]:
    """The partials of each eighth of each chord."""
    return [timbres.band(chord, eighth) for chord in score.CHORDS for eighth in range(score.N_EIGHTHS)]


# -- X-Codec's decoder


def decoder(tensors: Tensors) -> None:
    """Make a linear map of the decoder: amplitudes to the samples of one frame, cross-faded with its neighbours.

    The first upsampling writes a frame's 320 samples as 8 positions of 40 channels; the others unfold the channels:
    40 -> 8 -> 2 -> 1.
    """
    for name, tensor in tensors.items():
        if not name.startswith("decoder_2."):
            continue
        if name.endswith("alpha"):
            tensor.fill_(1e-4)  # x + sin²(αx) / α is x then
        elif name.endswith(("bias", "weight_g")):
            tensor.zero_()  # with nothing in them, residual units pass their input on
    read = torch.zeros_like(tensors["fc_post2.weight"])
    read[WAVES, WAVES] = torch.eye(WAVES.stop)
    tensors["fc_post2.weight"], tensors["fc_post2.bias"] = read, torch.zeros_like(tensors["fc_post2.bias"])
    _set_weight(tensors, "decoder_2.model.0", _center_tap(tensors["decoder_2.model.0.weight_v"], WAVES.stop))
    first, *others = RATIOS
    _set_weight(tensors, "decoder_2.model.1.block.1", _cross_fade(tensors["decoder_2.model.1.block.1.weight_v"], first))
    for block, stride in enumerate(others, start=2):
        name = f"decoder_2.model.{block}.block.1"
        _set_weight(tensors, name, _unfold(tensors[f"{name}.weight_v"], stride, math.prod(RATIOS[block:])))
    last = f"decoder_2.model.{len(RATIOS) + 2}"
    _set_weight(tensors, last, _center_tap(tensors[f"{last}.weight_v"], 1))


def _set_weight(tensors: Tensors, layer: str, weight: torch.Tensor) -> None:
    """Set a weight-normed layer's weight (rows, …). A row of zeros keeps its direction, and has the gain 0."""
    gain = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    tensors[f"{layer}.weight_g"] = gain
    tensors[f"{layer}.weight_v"] = torch.where(gain > 0, weight, tensors[f"{layer}.weight_v"])


def _center_tap(like: torch.Tensor, channels: int) -> torch.Tensor:
    """A convolution that passes its first channels on."""
    weight = torch.zeros_like(like)
    for channel in range(channels):
        weight[channel, channel, like.shape[2] // 2] = 1.0
    return weight


def _cross_fade(like: torch.Tensor, stride: int) -> torch.Tensor:
    """The transposed convolution (waves, channels, 2 · stride) that plays each wave, fading in and out.

    Neighbours overlap by half, and their weights add up to 1 everywhere. A wave has whole periods in a frame, so it
    goes on as it was.
    """
    padding = math.ceil(stride / 2)
    taps = np.arange(2 * stride)
    fade = 1 - np.abs(taps - (stride - 0.5)) / stride
    samples = _waves().reshape(-1, stride, CODEC_HOP // stride)  # (waves, positions, channels)
    weight = torch.zeros_like(like)
    for tap in taps:
        played = torch.from_numpy(samples[:, (tap - padding) % stride] * fade[tap])
        weight[: len(played), : played.shape[1], tap] = played
    return weight


def _unfold(like: torch.Tensor, stride: int, channels: int) -> torch.Tensor:
    """The transposed convolution that writes stride · channels input channels as `stride` positions of `channels`."""
    padding = math.ceil(stride / 2)
    weight = torch.zeros_like(like)
    for position in range(stride):
        for channel in range(channels):
            weight[position * channels + channel, channel, padding + position] = 1.0
    return weight


def _waves() -> np.ndarray:
    """One frame of each sound (waves, 320): the sum of its partials below X-Codec's Nyquist frequency."""
    partials = np.stack([*vocal_spectra(), *band_spectra(), CODEC_KICK * timbres.kick()])
    numbers = np.arange(CODEC_RATE_HZ // 2 // TONE_HZ)
    turns = np.outer(numbers, np.arange(CODEC_HOP)) / CODEC_HOP
    cosines = np.cos(2 * math.pi * turns + timbres.phases()[numbers, None])
    return (partials[:, numbers] @ cosines).astype(np.float32)
