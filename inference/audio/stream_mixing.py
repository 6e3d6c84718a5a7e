"""Mixes the vocal and the instrumental track of a song part by part, while the song is generated.

The parts, one after the other, equal the mix of the whole song (`inference/audio/mixing.py`), except for the gain of
the low band: that of the whole song is not known yet, so each part has the gain of the song so far.
"""

from __future__ import annotations

import math

import numpy as np
import soxr

from inference.audio import mixing
from inference.vocabulary import CODEC_RATE_HZ, VOCODER_RATE_HZ

RAMP_SAMPLES = VOCODER_RATE_HZ  # over which the gain changes at the start of a part


class StreamMixer:
    """The mix of one song so far: the state of the resampler and of the filters, and the loudness of the low bands."""

    def __init__(self) -> None:
        quality = mixing.RESAMPLING_QUALITY
        self._resampler = soxr.ResampleStream(CODEC_RATE_HZ, VOCODER_RATE_HZ, 1, dtype="float64", quality=quality)
        self._low_tail = self._high_tail = np.zeros(mixing.RESPONSE_SAMPLES)  # the latest samples, for the filters
        self._high_ahead = np.zeros(0)  # samples whose counterpart the resampler has not returned yet
        self._given_energy = self._wanted_energy = 0.0  # sums of squares of the low bands
        self._n_samples = 0
        self._gain: float | None = None

    @property
    def gain(self) -> float:
        """The gain of the low band at the end of the latest part."""
        return 1.0 if self._gain is None else self._gain

    def mix(
        self,
        vocal_16k: np.ndarray,
        instrumental_16k: np.ndarray,
        vocal_44k: np.ndarray,
        instrumental_44k: np.ndarray,
        *,
        last: bool,
    ) -> np.ndarray:
        """Mix the next part of both tracks, each (samples,), to (samples,) at 44.1 kHz, float32.

        The resampler looks ahead, so the end of a part comes with the next one, and all of it with the `last` one.
        """
        low_16k = mixing.mix_16k(vocal_16k, instrumental_16k).astype(np.float64)
        low = self._resampler.resample_chunk(low_16k, last=last)
        high = np.concatenate([self._high_ahead, mixing.mix_44k(vocal_44k, instrumental_44k).astype(np.float64)])
        high, self._high_ahead = high[: len(low)], high[len(low) :]
        low = low[: len(high)]
        with_low_tail, self._low_tail = _continued(self._low_tail, low)
        with_high_tail, self._high_tail = _continued(self._high_tail, high)
        start = mixing.RESPONSE_SAMPLES
        low_band = mixing.low_pass(with_low_tail)[start:]
        gains = self._gains(mixing.low_pass(with_high_tail)[start:], low_band)
        return mixing.clip(low_band * gains + mixing.high_pass(with_high_tail)[start:]).astype(np.float32)

    def _gains(self, wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
        """The gain (samples,) of a part's low band: it moves from the gain so far to that with this part."""
        self._wanted_energy += float(np.square(wanted).sum())
        self._given_energy += float(np.square(given).sum())
        self._n_samples += len(given)
        before, self._gain = self._gain, self._ratio()
        if before is None:
            return np.full(len(given), self._gain)
        progress = np.minimum(1.0, (1 + np.arange(len(given))) / min(RAMP_SAMPLES, max(1, len(given))))
        return before + (self._gain - before) * progress

    def _ratio(self) -> float:
        """The gain that gives the low band so far the loudness of Vocos's; 1 while there is none to match."""
        if math.sqrt(self._given_energy / max(1, self._n_samples)) <= mixing.SILENCE_RMS:
            return 1.0
        return math.sqrt(self._wanted_energy / self._given_energy)


def _continued(tail: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples behind the tail of those before, and the tail for those after."""
    whole = np.concatenate([tail, samples])
    return whole, whole[-len(tail) :]
