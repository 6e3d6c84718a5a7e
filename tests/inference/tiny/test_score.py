"""The tiny model's music, as tables."""

from __future__ import annotations

import numpy as np
import pytest

from inference.tiny import score
from inference.vocabulary import CODEBOOK_SIZE


def test_every_code_is_one_state() -> None:
    assert [state.code for state in score.STATES] == list(range(CODEBOOK_SIZE))


@pytest.mark.parametrize("chord", score.CHORDS)
def test_the_band_plays_notes_of_its_chord(chord: score.Chord) -> None:
    assert {score.odd_part(note) for note in (chord.bass, *chord.arpeggio)} <= set(chord.notes)
    assert chord.center in score.VOCAL_RANGE


def test_sections_repeat_their_own_chords() -> None:
    assert [score.next_chord(chord) for chord in range(8)] == [1, 2, 3, 0, 5, 6, 7, 4]
    assert [chord for chord in range(8) if score.is_last_bar(chord)] == [3, 7]


def test_near_notes_are_likelier() -> None:
    steps = score.steps_from(8)[8:]
    assert (np.diff(steps[1:]) < 0).all()


def test_chord_notes_are_likelier_where_the_beat_is_strong() -> None:
    c_major = score.fit_to(chord=0, eighth=0)
    assert c_major[1 + score.VOCAL_RANGE.index(15)] > c_major[1 + score.VOCAL_RANGE.index(16)]
