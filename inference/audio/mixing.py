"""Mixes the vocal and the instrumental track.

Independent of codes, networks and files. It never imports torch. In names, `16k` means 16 kHz and `44k` means 44.1 kHz.
"""

from __future__ import annotations

import math

import numpy as np
import soxr

from inference.vocabulary import CODEC_RATE_HZ, VOCODER_RATE_HZ

PEAK = 0.99
CROSSOVER_HZ = 5_500.0
CROSSOVER_Q = 0.707
RESPONSE_SAMPLES = 72  # of the filters at the crossover: after these, the response is below float64's rounding
SILENCE_RMS = 1e-9  # far below the last of 24 bits, so there is no loudness to match
RESAMPLING_QUALITY = "VHQ"


def merge_bands(
    vocal_16k: np.ndarray, instrumental_16k: np.ndarray, vocal_44k: np.ndarray, instrumental_44k: np.ndarray
) -> np.ndarray:
    """Mix both tracks, each (samples,) from X-Codec and from Vocos, to one waveform (samples,) at 44.1 kHz, float32.

    The band below 5.5 kHz is X-Codec's, scaled to the loudness of that band of Vocos; the band above is Vocos's.
    """
    low, high = mix_16k(vocal_16k, instrumental_16k), mix_44k(vocal_44k, instrumental_44k)
    low_44k, high = cut_to_shortest(_resample_to_44k(low), high.astype(np.float64))
    low_band = low_pass(low_44k)
    return clip(low_band * _loudness_ratio(low_pass(high), low_band) + high_pass(high)).astype(np.float32)


def mix_16k(vocal: np.ndarray, instrumental: np.ndarray) -> np.ndarray:
    """The sum (samples,) of X-Codec's tracks, each clipped separately, so the sum may reach twice the peak."""
    vocal, instrumental = cut_to_shortest(vocal, instrumental)
    return clip(vocal) + clip(instrumental)


def mix_44k(vocal: np.ndarray, instrumental: np.ndarray) -> np.ndarray:
    """The clipped sum (samples,) of Vocos's tracks."""
    vocal, instrumental = cut_to_shortest(vocal, instrumental)
    return clip(vocal + instrumental)


def clip(waveform: np.ndarray) -> np.ndarray:
    """The waveform, limited to ±0.99."""
    return np.clip(waveform, -PEAK, PEAK)


def cut_to_shortest(*waveforms: np.ndarray) -> tuple[np.ndarray, ...]:
    """The waveforms (samples,), all cut to the length of the shortest."""
    length = min(len(waveform) for waveform in waveforms)
    return tuple(waveform[:length] for waveform in waveforms)


def _loudness_ratio(wanted: np.ndarray, given: np.ndarray) -> float:
    """The factor that gives `given` (samples,) the loudness of `wanted` (samples,)."""
    wanted_rms, given_rms = _rms(wanted), _rms(given)
    return wanted_rms / given_rms if given_rms > SILENCE_RMS else 1.0


def _rms(waveform: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(waveform))) if waveform.size else 0.0


def _resample_to_44k(waveform: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz -> (samples,) at 44.1 kHz, float64"""
    return soxr.resample(waveform.astype(np.float64), CODEC_RATE_HZ, VOCODER_RATE_HZ, quality=RESAMPLING_QUALITY)


def low_pass(waveform: np.ndarray) -> np.ndarray:
    """(samples,) -> (samples,), both at 44.1 kHz"""
    cosine, denominator = _biquad()
    return _filtered(np.array([0.5, 1.0, 0.5]) * (1 - cosine), denominator, waveform)


def high_pass(waveform: np.ndarray) -> np.ndarray:
    """(samples,) -> (samples,), both at 44.1 kHz"""
    cosine, denominator = _biquad()
    return _filtered(np.array([0.5, -1.0, 0.5]) * (1 + cosine), denominator, waveform)


def _biquad() -> tuple[float, np.ndarray]:
    """cos(w) at the crossover, and the denominator (3,) of both filters, by the Audio EQ Cookbook."""
    angle = 2 * math.pi * CROSSOVER_HZ / VOCODER_RATE_HZ
    alpha, cosine = math.sin(angle) / (2 * CROSSOVER_Q), math.cos(angle)
    return cosine, np.array([1 + alpha, -2 * cosine, 1 - alpha])


def _filtered(numerator: np.ndarray, denominator: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """Filter the waveform (samples,) with a second-order section, by convolution with its impulse response."""
    response = np.concatenate([[0.0, 0.0], numerator, np.zeros(RESPONSE_SAMPLES - len(numerator))])
    for i in range(2, len(response)):
        response[i] -= denominator[2] * response[i - 2] + denominator[1] * response[i - 1]
        response[i] /= denominator[0]
    return np.convolve(waveform, response[2:])[: len(waveform)]
