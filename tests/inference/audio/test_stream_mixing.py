"""The mix that is made part by part equals the mix of the whole song, except for the gain of the low band."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.audio import mixing
from inference.audio.stream_mixing import RAMP_SAMPLES, StreamMixer
from inference.vocabulary import CODEC_HOP, VOCODER_HOP

FRAMES = 900
CUTS = (0, 268, 568, 868, FRAMES)  # as the parts of a song are cut
CLOSEST = 1e-7  # float32 rounds to 6e-8


def tracks(seed: int = 0, frames: int = FRAMES) -> tuple[np.ndarray, ...]:
    """Both tracks at 16 kHz and at 44.1 kHz, whose loudness changes differently over the song."""
    rng = np.random.default_rng(seed)
    louder, softer = np.linspace(0.02, 0.1, frames), np.linspace(0.08, 0.05, frames)
    hops = ((CODEC_HOP, louder), (CODEC_HOP, louder), (VOCODER_HOP, softer), (VOCODER_HOP, softer))
    return tuple(rng.standard_normal(frames * hop) * np.repeat(shape, hop) for hop, shape in hops)


def streamed(whole: tuple[np.ndarray, ...], cuts: tuple[int, ...] = CUTS) -> list[tuple[np.ndarray, float]]:
    """The parts of the mix, each with its gain."""
    mixer, parts = StreamMixer(), []
    for first, end in pairwise(cuts):
        cut = [
            track[first * hop : end * hop]
            for track, hop in zip(whole, (CODEC_HOP, CODEC_HOP, VOCODER_HOP, VOCODER_HOP), strict=True)
        ]
        parts.append((mixer.mix(*cut, last=end == cuts[-1]), mixer.gain))
    return parts


def bands(whole: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The low band before its gain, and the high band."""
    low = mixing.low_pass(mixing._resample_to_44k(mixing.mix_16k(*whole[:2])))
    return low, mixing.high_pass(mixing.mix_44k(*whole[2:]))


def expected(parts: list[tuple[np.ndarray, float]], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The stream, made of the bands of the whole song: the gain moves over the first second of each part."""
    gains, before = [], parts[0][1]
    for part, gain in parts:
        ramp = np.minimum(1, (1 + np.arange(len(part))) / max(1, min(RAMP_SAMPLES, len(part))))
        gains.append(before + (gain - before) * ramp)
        before = gain
    return high + np.concatenate(gains) * low


def test_the_stream_is_the_mix_but_for_the_gain_of_the_low_band() -> None:
    whole = tracks()
    parts, (low, high) = streamed(whole), bands(whole)
    mix = mixing.merge_bands(*whole)
    stream = np.concatenate([part for part, _ in parts])
    assert stream.shape == mix.shape and stream.dtype == mix.dtype
    (gain_of_all,) = np.linalg.lstsq(low[:, None], mix - high, rcond=None)[0]
    np.testing.assert_allclose(mix, high + gain_of_all * low, rtol=0, atol=CLOSEST)
    np.testing.assert_allclose(stream, expected(parts, low, high), rtol=0, atol=CLOSEST)
    assert parts[-1][1] == pytest.approx(gain_of_all, rel=1e-6), "the last part has the gain of the whole song"
    assert parts[0][1] != pytest.approx(gain_of_all, rel=0.1)


def test_the_gain_never_jumps() -> None:
    whole = tracks()
    parts, (low, high) = streamed(whole), bands(whole)
    stream = np.concatenate([part for part, _ in parts]).astype(np.float64)
    loud = np.abs(low) > 1e-2
    gains = ((stream - high) / low)[loud]
    assert np.abs(np.diff(gains)).max() < 1e-3


@given(cuts=st.lists(st.integers(1, 59), max_size=5, unique=True).map(sorted), seed=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_wherever_it_is_cut_nothing_is_lost(cuts: list[int], seed: int) -> None:
    whole = tracks(seed, frames=60)
    parts = streamed(whole, (0, *cuts, 60))
    stream = np.concatenate([part for part, _ in parts])
    np.testing.assert_allclose(stream, expected(parts, *bands(whole)), rtol=0, atol=CLOSEST)


def test_silence_stays_silent() -> None:
    silence = tuple(np.zeros(60 * hop) for hop in (CODEC_HOP, CODEC_HOP, VOCODER_HOP, VOCODER_HOP))
    assert not any(part.any() for part, _ in streamed(silence, (0, 20, 60)))
