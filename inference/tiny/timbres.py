"""What the voice and the instruments of the tiny model sound like: the amplitudes of their partials.

Independent of networks. Partials are multiples of 50 Hz, so a timbre is a table: entry m is the amplitude at m · 50 Hz.
"""

from __future__ import annotations

import math

import numpy as np

from inference.tiny import score
from inference.tiny.score import TONE_HZ, Chord
from inference.vocabulary import VOCODER_RATE_HZ

N_PARTIALS = VOCODER_RATE_HZ // 2 // TONE_HZ  # up to 22 kHz
LOUDEST = 0.15  # of one partial: Vocos clamps magnitudes at 100

# Center, bandwidth (Hz) and level of the resonances of a vocal tract.
VOWEL_A = ((700, 260, 1.0), (1_150, 300, 0.8), (2_700, 400, 0.3), (3_600, 600, 0.12), (6_500, 1_500, 0.03))
VOWEL_O = ((450, 260, 1.0), (850, 260, 0.7), (2_500, 400, 0.12), (3_300, 600, 0.05), (6_500, 1_500, 0.01))
FUNDAMENTAL = 0.75  # the least level of a voice's fundamental, so that high notes carry too

VOICE_LEVEL = 0.115  # root mean squares, which are as loud for every note
BAND_LEVEL = 0.105
KICK_LEVEL = 0.12  # of a partial
HAT_LEVEL = 0.002
HAT_FROM = 6_000 // TONE_HZ  # the hat has the band above to itself: Vocos would multiply it with what else sounds there
ARPEGGIO, PAD, BASS = 1.0, 0.25, 1.2  # shares of the band


def voice(pitch: int, formants: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """A pitch of the vocal range, in the vowel with these formants."""
    partials = np.zeros(N_PARTIALS + 1)
    if pitch == score.REST:
        return partials
    note = score.VOCAL_RANGE[pitch - 1]
    for partial in range(note, N_PARTIALS + 1, note):
        hz = partial * TONE_HZ
        level = sum(peak * math.exp(-(((hz - center) / width) ** 2)) for center, width, peak in formants)
        partials[partial] = level + 0.02 / (partial / note) ** 2  # a little of everything
    partials[note] = max(partials[note], FUNDAMENTAL)
    return _as_loud_as(partials, VOICE_LEVEL)


def band(chord: Chord, eighth: int) -> np.ndarray:
    """The chord, its bass and one note of its arpeggio."""
    partials = BASS * _harmonics(chord.bass, (1.0, 0.8, 0.4, 0.2, 0.1))
    partials += ARPEGGIO * _harmonics(chord.arpeggio[eighth], (1.0, 0.35, 0.25, 0.1, 0.08, 0.04, 0.04))
    for note in set(chord.arpeggio):
        partials += PAD * _harmonics(note, (1.0, 0.5, 0.2))
    partials[HAT_FROM:] = 0
    return _as_loud_as(partials, BAND_LEVEL)


def kick() -> np.ndarray:
    """A low thump."""
    return KICK_LEVEL * _harmonics(1, (1.0, 1.0))


def hat() -> np.ndarray:
    """A hiss from 6 kHz on."""
    partials = np.zeros(N_PARTIALS + 1)
    partials[HAT_FROM:] = HAT_LEVEL * np.hanning(N_PARTIALS + 1 - HAT_FROM)
    return partials


def phases() -> np.ndarray:
    """The phase of each partial, so that their peaks do not coincide."""
    golden = (math.sqrt(5) - 1) / 2
    return 2 * math.pi * ((golden * np.arange(N_PARTIALS + 1) ** 2) % 1)


def _harmonics(note: int, levels: tuple[float, ...]) -> np.ndarray:
    partials = np.zeros(N_PARTIALS + 1)
    partials[note * np.arange(1, 1 + len(levels))] = levels
    return partials


def _as_loud_as(partials: np.ndarray, level: float) -> np.ndarray:
    """The partials, scaled to a root mean square of `level`."""
    return np.minimum(partials * level / math.sqrt(np.square(partials).sum() / 2), LOUDEST)
