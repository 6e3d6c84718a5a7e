"""The mix of the two tracks equals the recorded one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, lfilter, sosfiltfilt

from inference.audio import mixing
from inference.audio.mixing import PEAK, merge_bands, mix_16k, mix_44k
from inference.vocabulary import VOCODER_RATE_HZ
from tests.support.waveforms import signal_to_difference_db, tone


def low_band_scale(low_mix_16k: np.ndarray, high_mix_44k: np.ndarray) -> float:
    """The factor that makes X-Codec's mix as loud below the crossover as Vocos's."""
    low_44k, high = mixing.cut_to_shortest(mixing._resample_to_44k(low_mix_16k), high_mix_44k.astype(np.float64))
    return mixing._loudness_ratio(mixing.low_pass(high), mixing.low_pass(low_44k))


@pytest.fixture(scope="session")
def recorded(parity_dir: Path) -> Mapping[str, np.ndarray]:
    with np.load(parity_dir / "audio.npz") as numbers:
        return dict(numbers)


def test_mixes_are_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    low = mix_16k(recorded["vocal_16k"], recorded["instrumental_16k"])
    high = mix_44k(recorded["vocal_44k"], recorded["instrumental_44k"])
    np.testing.assert_allclose(low, recorded["mix_16k"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(high, recorded["mix_44k"], rtol=0, atol=1e-6)


def test_loud_mixes_are_clipped_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    low = mix_16k(3 * recorded["vocal_16k"], 3 * recorded["instrumental_16k"])
    high = mix_44k(9 * recorded["vocal_44k"], 9 * recorded["instrumental_44k"])
    np.testing.assert_allclose(low, recorded["loud_mix_16k"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(high, recorded["loud_mix_44k"], rtol=0, atol=1e-6)


def test_the_low_band_is_scaled_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    scale = low_band_scale(recorded["mix_16k"], recorded["mix_44k"])
    assert scale == pytest.approx(float(recorded["low_band_scale"]), rel=2e-3)


def test_the_merged_mix_is_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    names = ("vocal_16k", "instrumental_16k", "vocal_44k", "instrumental_44k")
    actual = merge_bands(*(recorded[name] for name in names)).astype(np.float64)
    expected = recorded["final_44k"].astype(np.float64)
    below = butter(12, 5_000, "low", fs=VOCODER_RATE_HZ, output="sos")
    above = butter(12, 9_000, "high", fs=VOCODER_RATE_HZ, output="sos")
    for band in (below, above):
        assert signal_to_difference_db(sosfiltfilt(band, expected), sosfiltfilt(band, actual)) >= 40
    assert signal_to_difference_db(expected, actual) >= 20


def test_silent_tracks_make_a_silent_mix() -> None:
    low, high = np.zeros(3_200, np.float32), np.zeros(8_820, np.float32)
    mix = merge_bands(low, low, high, high)
    assert mix.shape == (8_820,) and mix.dtype == np.float32
    assert not mix.any()


def test_the_factor_is_1_where_the_codec_is_silent() -> None:
    assert low_band_scale(np.zeros(3_200), np.ones(8_820)) == 1.0


def test_the_mix_ends_with_the_shorter_track() -> None:
    mix = merge_bands(tone(2, 16_000), tone(1.5, 16_000), tone(2, 44_100), tone(1, 44_100))
    assert mix.shape == (44_100,)


def test_a_loud_mix_stays_within_the_peak() -> None:
    mix = merge_bands(*(tone(0.5, rate, gain=5) for rate in (16_000, 16_000, 44_100, 44_100)))
    assert np.abs(mix).max() <= PEAK


def test_the_high_band_is_what_a_recursive_filter_passes() -> None:
    high = np.random.default_rng(0).normal(0, 0.1, 44_100)
    angle = 2 * np.pi * 5_500 / VOCODER_RATE_HZ
    alpha, cosine = np.sin(angle) / (2 * 0.707), np.cos(angle)
    passed = lfilter(
        np.array([1, -2, 1]) * (1 + cosine) / 2, np.array([1 + alpha, -2 * cosine, 1 - alpha]), high.astype(np.float64)
    )
    mix = merge_bands(np.zeros(16_000), np.zeros(16_000), high, np.zeros(44_100))
    np.testing.assert_allclose(mix, passed, rtol=0, atol=1e-7)


def test_a_single_frame_can_be_mixed() -> None:
    mix = merge_bands(*(np.full(n, 0.1, np.float32) for n in (320, 320, 882, 882)))
    assert mix.shape == (882,)
