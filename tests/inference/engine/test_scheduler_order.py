"""Stage 2 generates the beginning of a song early, and what comes after it for many pieces together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Scheduler
from inference.engine.stage2 import Piece
from inference.engine.stage2_batch import Stage2Batch
from inference.song import Song, SongRequest
from tests.support.scheduling import ignore, run
from tests.support.songs import request

pytestmark = pytest.mark.slow

SHORT_PIECE = 40  # frames, for tests of the order of work


class Watch:
    """Counts the frames that stage 2 plays, for however many pieces together, where pieces are short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = 0
        real = Stage2Batch._advance

        def play(batch: Stage2Batch, playing: Sequence[Piece]) -> int:
            n_frames = real(batch, playing)
            self.frames += n_frames
            return n_frames

        monkeypatch.setattr(Stage2Batch, "_advance", play)
        monkeypatch.setattr("inference.engine.pipeline.PIECE_FRAMES", SHORT_PIECE)


def in_pieces(n: int, seed: int = 0) -> SongRequest:
    """A song of so many short pieces of each track."""
    return request(seed=seed, segments=1, max_new_tokens=2 * SHORT_PIECE * n)


def decoded(engine: Scheduler, song_id: str) -> bool:
    """True once the beginning of the song is decoded."""
    return engine._songs[song_id]._decoded_frames > 0


def test_without_a_listener_all_pieces_are_played_together(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, engine = Watch(monkeypatch), Scheduler(small)
    engine.add("song", in_pieces(5), ignore)
    run(engine)
    assert watch.frames == SHORT_PIECE


def test_a_listener_has_the_first_piece_at_once(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, engine = Watch(monkeypatch), Scheduler(small)
    engine.add("song", in_pieces(5), ignore)
    engine.listen("song")
    n_tokens = 0
    while not decoded(engine, "song"):
        engine.step()
        n_tokens = engine._songs["song"].composition.n_tokens
    assert watch.frames == SHORT_PIECE
    assert n_tokens == 2 * SHORT_PIECE, "stage 1 pauses for the first piece"
    run(engine)


def test_a_listener_has_the_next_pieces_before_stage_1_is_done(
    small: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watch(monkeypatch)
    engine = Scheduler(small)
    engine.add("song", in_pieces(12), ignore)
    engine.listen("song")
    n_decoded = 0
    while not engine._songs["song"].composition.finished:
        engine.step()
        n_decoded = engine._songs["song"].n_parts
    assert n_decoded >= 3
    run(engine)


def test_listening_changes_no_sample(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    Watch(monkeypatch)
    files = []
    for listened in (False, True):
        engine = Scheduler(small)
        engine.add("song", in_pieces(5), ignore)
        if listened:
            engine.listen("song")
        result = run(engine)["song"].result
        assert isinstance(result, Song)
        files.append(result.audio)
    assert files[0] == files[1]


def test_songs_that_generate_together_share_every_frame(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, engine = Watch(monkeypatch), Scheduler(small)
    for name in "abc":
        engine.add(name, in_pieces(4), ignore)
    run(engine)
    assert watch.frames == SHORT_PIECE


def test_a_song_that_comes_later_has_its_beginning_early(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, engine = Watch(monkeypatch), Scheduler(small)
    engine.add("early", in_pieces(12), ignore)
    engine.listen("early")
    while not decoded(engine, "early"):
        engine.step()
    engine.step()
    engine.add("late", in_pieces(3, seed=1), ignore)
    engine.listen("late")
    before = engine._songs["early"].composition.n_tokens
    while not decoded(engine, "late"):
        engine.step()
    early = engine._songs["early"].composition
    assert not early.finished
    assert early.n_tokens > before, "the others are not held up"
    assert watch.frames >= 2 * SHORT_PIECE
    assert len(run(engine)) == 2
