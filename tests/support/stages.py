"""Runs one stage by itself, for tests and benchmarks: a whole song in stage 1, whole tracks in stage 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.engine.cuda_graphs import GraphRecorder
from inference.engine.stage1 import Composition
from inference.engine.stage1_batch import Stage1Batch
from inference.engine.stage2 import pieces
from inference.engine.stage2_batch import Stage2Batch
from inference.models.llama import Llama

MAX_ROWS = 32
TOKENS_A_REPORT, FRAMES_A_REPORT = 16, 4


def compose(
    llama: Llama, song: Composition, report: Callable[[int, int], None], recorder: GraphRecorder | None = None
) -> None:
    """Generate all sections of a song. `report(section, tokens)` is called every few tokens and may raise to stop."""
    batch = Stage1Batch(llama, max_songs=1, recorder=recorder)
    batch.join(song)
    while not song.finished:
        batch.step()
        if song.n_tokens % TOKENS_A_REPORT == 0 or song.finished:
            report(len(song.sections), song.n_tokens)


def upsample(
    llama: Llama,
    tracks: Sequence[Tensor],
    report: Callable[[int, int], None],
    max_rows: int = MAX_ROWS,
    recorder: GraphRecorder | None = None,
) -> list[Tensor]:
    """Codes (8, T) for each of `tracks`, codes (T,) of codebook 0, with at most `max_rows` active rows.

    `report(rows, frames)`, what is done in sum, is called every few frames and may raise to stop.
    """
    batch = Stage2Batch(llama, max_rows, recorder)
    by_track = [pieces(track) for track in tracks]
    every = [piece for track in by_track for piece in track]
    for piece in every:
        batch.join(piece)
    steps = 0
    while not all(piece.done for piece in every):
        steps += batch.step()
        if steps % FRAMES_A_REPORT == 0 or batch.n_free == max_rows:
            report(sum(piece.done for piece in every), sum(piece.n_done for piece in every))
    return [torch.cat([piece.codes for piece in track], dim=1) for track in by_track]
