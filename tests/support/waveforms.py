"""Waveforms for tests: tones, files of them, and how two waveforms differ."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from inference.vocabulary import CODEC_RATE_HZ, VOCODER_RATE_HZ


def tone(seconds: float, rate_hz: int, hz: float = 440.0, gain: float = 0.5) -> np.ndarray:
    """A sine (samples,)."""
    return (gain * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def wav(samples: np.ndarray, rate_hz: int = CODEC_RATE_HZ, container: str = "WAV", subtype: str = "FLOAT") -> bytes:
    """The samples, (n,) or (n, channels), as a file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    """The samples of a file."""
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def frequency_hz(waveform: np.ndarray, rate_hz: int) -> float:
    """The loudest frequency."""
    return float(np.abs(np.fft.rfft(waveform)).argmax() * rate_hz / len(waveform))


def signal_to_difference_db(expected: np.ndarray, actual: np.ndarray) -> float:
    """Without the first and last 100 ms, where resamplers start and end differently."""
    edge = VOCODER_RATE_HZ // 10
    expected, actual = expected[edge:-edge], actual[edge:-edge]
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))
