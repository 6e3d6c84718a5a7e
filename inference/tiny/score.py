"""The tune of the tiny model, as tables: its notes, chords, rhythm and envelopes, and how a code writes them down.

Independent of networks: the other modules of this folder turn these tables into weights.

A frame is 1/50 s. A tone of a multiple of 50 Hz has a whole number of periods in it, so it looks the same in every
frame, and no phase has to be carried on. So notes are numbers, their multiples of 50 Hz. The numbers 24 27 30 32 36 40
45 48 are a major scale in just intonation, from do to do. Halving goes down an octave, so the odd part of a number
names its note.

A code of codebook 0 is a state of the score, written in binary:

    vocal           0  held (1 bit)  pitch (4 bits)                    age (4 bits)
    instrumental    1                chord (3 bits)  eighth (2 bits)   age (4 bits)

A bar has one chord and four eighth notes, an eighth note has 16 frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TONE_HZ = 50  # one period in each frame

# -- notes and chords

FA, DO, LA, SO, MI, RE = 1, 3, 5, 9, 15, 27  # the odd parts

# The voice: pitch 0 is a rest, pitch i is the i-th of these. From 300 Hz to 2 kHz.
REST = 0
VOCAL_RANGE = (6, 8, 9, 10, 12, 15, 16, 18, 20, 24, 27, 30, 32, 36, 40)
N_PITCHES = 1 + len(VOCAL_RANGE)


@dataclass(frozen=True)
class Chord:
    """One bar of the accompaniment, and the notes that a melody over it prefers."""

    name: str
    notes: tuple[int, ...]  # odd parts
    bass: int
    arpeggio: tuple[int, int, int, int]  # a note for each eighth
    center: int  # the note around which the melody moves


C, AM, F, G = ("C", (DO, MI, SO)), ("Am", (LA, DO, MI)), ("F", (FA, LA, DO)), ("G", (SO, RE))

VERSE = (  # ends on the dominant, which leads into the chorus
    Chord(*C, bass=3, arpeggio=(12, 15, 18, 15), center=12),
    Chord(*AM, bass=5, arpeggio=(10, 15, 20, 15), center=15),
    Chord(*F, bass=4, arpeggio=(8, 12, 16, 12), center=16),
    Chord(*G, bass=9, arpeggio=(9, 18, 27, 18), center=15),
)
CHORUS = (  # ends at home
    Chord(*F, bass=4, arpeggio=(16, 20, 24, 20), center=20),
    Chord(*AM, bass=5, arpeggio=(20, 24, 30, 24), center=24),
    Chord(*G, bass=9, arpeggio=(18, 27, 36, 27), center=27),
    Chord(*C, bass=3, arpeggio=(12, 18, 24, 30), center=24),
)
CHORDS = VERSE + CHORUS
N_EIGHTHS = 4

# -- rhythm

EIGHTH_FRAMES = 16  # 0.32 s: 94 quarter notes a minute
BAR_FRAMES = N_EIGHTHS * EIGHTH_FRAMES
SIXTEENTH_FRAMES = EIGHTH_FRAMES // 2

KICK_BEATS = "x...x..."  # the sixteenth notes of a bar
HAT_BEATS = "..x...x."
FILL_KICK_BEATS = "x...x.x."  # of the last bar of a section
FILL_HAT_BEATS = "..x.x.xx"

# How much likelier a note is held than a new one started, for the eighths of a bar.
HELD_RATIO = (0.1, 1.2, 0.3, 1.5)
HELD_RATIO_AT_THE_END = (0.1, 1.2, 6.0, 20.0)  # of the last bar

# -- melody: natural logarithms of how likely the next note is

LEAP = -0.12  # for the square of the steps up or down the range
REPEATED = -0.3
OFF_CHORD = (-4.0, -1.5, -3.0, -1.5)  # for the eighths of a bar: dissonance passes on weak ones
OFF_CENTER = -0.05  # for the square of the steps away from the chord's center
TO_REST, FROM_REST = -2.6, 0.0
END = 5.0  # after the last bar of a section: its end, against going on from its first bar

# -- envelopes, one amplitude for each age

ATTACK = (0.35, 0.8, 1.0, 1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.88, 0.86, 0.84, 0.83, 0.82, 0.81, 0.8)
HOLD = tuple(0.8 + 0.12 * math.sin(math.pi * (age + 0.5) / EIGHTH_FRAMES) for age in range(EIGHTH_FRAMES))
PLUCK = (0.6, *(0.4 + 0.6 * math.exp(-age / 5) for age in range(EIGHTH_FRAMES - 1)))
KICK = (1.0, 0.7, 0.35, 0.12)
HAT = (1.0, 0.6, 0.3)


# -- states


@dataclass(frozen=True)
class VocalState:
    """One frame of the vocal track."""

    pitch: int
    held: bool
    age: int

    @property
    def code(self) -> int:
        """The code of codebook 0."""
        return (int(self.held) * N_PITCHES + self.pitch) * EIGHTH_FRAMES + self.age


@dataclass(frozen=True)
class BandState:
    """One frame of the instrumental track."""

    chord: int
    eighth: int
    age: int

    @property
    def code(self) -> int:
        """The code of codebook 0."""
        return N_VOCAL_CODES + (self.chord * N_EIGHTHS + self.eighth) * EIGHTH_FRAMES + self.age


def state_of(code: int) -> VocalState | BandState:
    """The state that a code of codebook 0 stands for."""
    rest, age = divmod(code % N_VOCAL_CODES, EIGHTH_FRAMES)
    if code < N_VOCAL_CODES:
        held, pitch = divmod(rest, N_PITCHES)
        return VocalState(pitch, bool(held), age)
    return BandState(*divmod(rest, N_EIGHTHS), age)


N_VOCAL_CODES = 2 * N_PITCHES * EIGHTH_FRAMES
STATES = tuple(state_of(code) for code in range(N_VOCAL_CODES + len(CHORDS) * BAR_FRAMES))


# -- what follows what


def next_chord(chord: int) -> int:
    """The chord of the next bar: sections start again from their first one."""
    return chord + 1 if not is_last_bar(chord) else chord + 1 - len(VERSE)


def is_last_bar(chord: int) -> bool:
    """True for the chord after which a section may end."""
    return chord % len(VERSE) == len(VERSE) - 1


def steps_from(pitch: int) -> np.ndarray:
    """How likely each pitch (16,) is after `pitch`, as logarithms."""
    if pitch == REST:
        return np.array([TO_REST - 2.0] + [FROM_REST] * len(VOCAL_RANGE))
    steps = np.abs(np.arange(1, N_PITCHES) - pitch)
    return np.concatenate([[TO_REST], np.where(steps == 0, REPEATED, LEAP * np.square(steps))])


def fit_to(chord: int, eighth: int) -> np.ndarray:
    """How well each pitch (16,) fits to an eighth of a chord, as logarithms: 0 is best."""
    bar = CHORDS[chord]
    center = VOCAL_RANGE.index(bar.center)
    off_center = OFF_CENTER * np.square(np.arange(len(VOCAL_RANGE)) - center)
    off_chord = [0.0 if odd_part(note) in bar.notes else OFF_CHORD[eighth] for note in VOCAL_RANGE]
    return np.concatenate([[0.0], off_center + off_chord])


def held_ratio(chord: int, eighth: int) -> float:
    """How much likelier the note is held than a new one started, in an eighth of a chord."""
    return (HELD_RATIO_AT_THE_END if is_last_bar(chord) else HELD_RATIO)[eighth]


def odd_part(note: int) -> int:
    """The note's name, whatever its octave."""
    return note // (note & -note)


# -- what a state sounds like


def vocal_amplitude(state: VocalState) -> float:
    """The amplitude of the voice: 0 for a rest."""
    return 0.0 if state.pitch == REST else (HOLD if state.held else ATTACK)[state.age]


def vowel(state: VocalState) -> float:
    """The color of the voice, from 0 ("a") to 1 ("o")."""
    turn = state.age / EIGHTH_FRAMES
    return 0.5 + 0.5 * math.sin(math.pi * turn) if state.held else 0.5 * turn


def drum_amplitude(state: BandState, beats: str, fill: str, envelope: tuple[float, ...]) -> float:
    """The amplitude of a drum that is struck at the sixteenths marked in `beats`, or in `fill` in the last bar."""
    sixteenth, age = divmod(state.eighth * EIGHTH_FRAMES + state.age, SIXTEENTH_FRAMES)
    struck = (fill if is_last_bar(state.chord) else beats)[sixteenth] == "x"
    return envelope[age] if struck and age < len(envelope) else 0.0
