"""The tiny model's song, heard: what its MP3 sounds like is what stage 1 drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from inference.engine.pipeline import Pipeline, SongInProgress
from inference.engine.scheduler import Scheduler
from inference.engine.stage1 import deinterleave
from inference.engine.stage2 import Piece
from inference.song import Song
from inference.tiny import score
from inference.tiny.score import BandState, VocalState
from inference.vocabulary import EOA_ID, FRAME_RATE_HZ, VOCODER_HOP
from tests.support.scheduling import ignore, run
from tests.support.songs import hear, request

pytestmark = pytest.mark.slow

TWO_SECTIONS, ONE_SECTION = 1, 2  # seeds
BUDGET = 3_000  # tokens of a section, more than it takes
AUDIBLE = 0.02
LOWEST_TONE, HIGHEST_TONE = 3, 100  # above the kick, below the hat
FIRST_HEARD, LAST_HEARD = 4, 14  # frames of a note: the middle, without its neighbours


@dataclass(frozen=True)
class Tune:
    """A finished song, and the states that stage 1 drew for each eighth note."""

    song: Song
    in_progress: SongInProgress

    @property
    def notes(self) -> list[int | None]:
        """The melody, as multiples of 50 Hz; None is a rest."""
        states = (state for state in self._states(0) if isinstance(state, VocalState))
        return [None if state.pitch == score.REST else score.VOCAL_RANGE[state.pitch - 1] for state in states]

    @property
    def bars(self) -> list[BandState]:
        """The accompaniment."""
        return [state for state in self._states(1) if isinstance(state, BandState)]

    def _states(self, track: int) -> list[VocalState | BandState]:
        codes = deinterleave(self.in_progress.composition.sections)[track].tolist()
        return [score.state_of(code) for code in codes[:: score.EIGHTH_FRAMES]]


@pytest.fixture(scope="module")
def tunes(tiny_pipeline: Pipeline) -> dict[int, Tune]:
    """By seed: a verse with a chorus, and another verse. Each has as much time as it wants."""
    engine = Scheduler(tiny_pipeline)
    tracks = ("mix", "vocal", "instrumental")
    for seed, segments in ((TWO_SECTIONS, 2), (ONE_SECTION, 1)):
        wanted = request(seed=seed, segments=segments, max_new_tokens=BUDGET, format="mp3", tracks=tracks)
        engine.add(str(seed), wanted, ignore)
    in_progress = dict(engine._songs)
    songs = {name: outcome.result for name, outcome in run(engine).items()}
    return {int(name): Tune(song, in_progress[name]) for name, song in songs.items() if isinstance(song, Song)}


@pytest.fixture(scope="module")
def tune(tunes: dict[int, Tune]) -> Tune:
    return tunes[TWO_SECTIONS]


def tones(file: bytes) -> list[set[int]]:
    """What is heard in each eighth note: the audible frequencies in its spectrum, as multiples of 50 Hz."""
    waveform = hear(file).waveform[:, 0]
    heard = []
    for note in waveform.reshape(-1, score.EIGHTH_FRAMES * VOCODER_HOP):
        middle = note[FIRST_HEARD * VOCODER_HOP : LAST_HEARD * VOCODER_HOP]
        amplitudes = np.abs(np.fft.rfft(middle)) * 2 / len(middle)
        frequencies_hz = np.flatnonzero(amplitudes > AUDIBLE) * FRAME_RATE_HZ / (LAST_HEARD - FIRST_HEARD)
        assert not (frequencies_hz % score.TONE_HZ).any(), "no tone is out of tune"
        multiples = (frequencies_hz / score.TONE_HZ).astype(int).tolist()
        heard.append({tone for tone in multiples if LOWEST_TONE <= tone < HIGHEST_TONE})
    return heard


def partials(notes: Sequence[int | None]) -> set[int]:
    return {partial for note in notes if note for partial in range(note, HIGHEST_TONE, note)}


def check_mix(tune: Tune, file: bytes) -> None:
    """Every note that was drawn is heard, and nothing else."""
    for heard, note, bar in zip(tones(file), tune.notes, tune.bars, strict=True):
        chord = score.CHORDS[bar.chord]
        assert heard >= {note, chord.bass, chord.arpeggio[bar.eighth]} - {None}
        assert heard <= partials([note, chord.bass, *chord.arpeggio])


def test_mix_is_the_melody_and_the_chords_that_stage_1_drew(tune: Tune) -> None:
    check_mix(tune, tune.song.audio["mix"])


def test_vocal_track_is_the_melody(tune: Tune) -> None:
    assert [min(heard, default=None) for heard in tones(tune.song.audio["vocal"])] == tune.notes


def test_instrumental_track_is_the_chords(tune: Tune) -> None:
    basses = [min(heard) for heard in tones(tune.song.audio["instrumental"])]
    assert basses == [score.CHORDS[bar.chord].bass for bar in tune.bars]


def test_a_wrong_stage_2_is_heard(tiny_pipeline: Pipeline, tune: Tune) -> None:
    wrong = SongInProgress(tiny_pipeline, tune.in_progress.request, ignore)
    wrong.composition = tune.in_progress.composition
    wrong.pieces = {track: list(map(shuffled, pieces)) for track, pieces in tune.in_progress.pieces.items()}
    while not wrong.fully_decoded:
        wrong.decode_part()
    with pytest.raises(AssertionError):
        check_mix(tune, wrong.encode()["mix"])


def shuffled(piece: Piece) -> Piece:
    """The same codebook 0; the frames of the other codebooks in another order."""
    other = Piece(piece.codes[0])
    order = torch.randperm(piece.n_frames, generator=torch.Generator().manual_seed(0))
    other.take(piece.ids[1:, order])
    return other


def test_sections_end_by_themselves_on_a_whole_bar(tunes: dict[int, Tune]) -> None:
    for tune in tunes.values():
        composition = tune.in_progress.composition
        assert all(section[-1] == EOA_ID and len(section) < BUDGET for section in composition.sections)
        for frames in composition.section_frames:
            assert frames % score.BAR_FRAMES == 0
            assert 3 <= frames / FRAME_RATE_HZ <= 15


def test_another_seed_draws_another_melody_over_the_same_chords(tunes: dict[int, Tune]) -> None:
    one, other = tunes.values()
    verse = slice(0, len(score.VERSE) * score.N_EIGHTHS)
    assert one.notes[verse] != other.notes[verse]
    assert one.bars[verse] == other.bars[verse]


def test_verse_and_chorus_differ(tune: Tune) -> None:
    frames_of_verse, _ = tune.in_progress.composition.section_frames
    start_of_chorus = frames_of_verse // score.EIGHTH_FRAMES
    verse, chorus = tune.bars[:start_of_chorus], tune.bars[start_of_chorus:]
    assert {score.CHORDS[bar.chord] for bar in verse} == set(score.VERSE)
    assert {score.CHORDS[bar.chord] for bar in chorus} == set(score.CHORUS)


def test_song_is_loud_enough_and_nothing_clips(tune: Tune) -> None:
    for file in tune.song.audio.values():
        waveform = hear(file).waveform
        assert 0.2 < np.abs(waveform).max() < 0.95
        assert np.sqrt(np.square(waveform).mean()) > 0.05  # -26 dB


def test_notes_begin_without_a_click(tune: Tune) -> None:
    """From one sample to the next, the voice moves no further than its own tones do."""
    assert np.abs(np.diff(hear(tune.song.audio["vocal"]).waveform[:, 0])).max() < 0.1
