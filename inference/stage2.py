"""Stage 2: codebook 0 of each track in, all eight codebooks out.

It knows nothing of songs, sections or sound. Every 6 s of every track are a row; all rows are decoded together,
greedily, frame by frame, each on one persistent cache:

    <SOA> <stage_1> c0 c0 … c0 <stage_2> | c0 1 2 3 4 5 6 7 | c0 1 2 3 4 5 6 7 | …
    '----------- prefix ---------------'   '--- frame 0 ---'   '--- frame 1 ---'

Codebook k may only stand at position k of a frame. The last code of a frame and the first of the next are both
known before the model is asked again, so they are fed together: seven forwards a frame, not eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.llama import Llama, RowCache
from inference.vocabulary import FIRST_CODE_ID, N_CODEBOOKS, PIECE_FRAMES, SOA_ID, STAGE_1_ID, STAGE_2_ID, code_ids

MAX_ROWS = 32
_FRAMES_A_REPORT = 4


def upsample(
    llama: Llama, tracks: Sequence[Tensor], report: Callable[[int, int], None], max_rows: int = MAX_ROWS
) -> list[Tensor]:
    """Codes (8, T) for each of `tracks`, codes (T,) of codebook 0.

    At most `max_rows` rows are decoded together. `report(rows, frames)`, both summed over what is done, is called
    every few frames and may raise to stop.
    """
    pieces = [piece for track in tracks for piece in track.split(PIECE_FRAMES)]
    # Longest first: rows that end early leave the batch from its end.
    order = sorted(range(len(pieces)), key=lambda index: -len(pieces[index]))
    done: dict[int, Tensor] = {}
    frames_done = 0
    with torch.inference_mode():
        for first in range(0, len(order), max_rows):
            chosen = order[first : first + max_rows]

            def report_chunk(frames: int, rows_before: int = first, frames_before: int = frames_done) -> None:
                report(rows_before, frames_before + frames)

            rows = _Rows(llama, [pieces[index] for index in chosen])
            done |= zip(chosen, rows.decode(report_chunk), strict=True)
            frames_done += sum(len(pieces[index]) for index in chosen)
            report(first + len(chosen), frames_done)
    return _joined(tracks, [done[index] for index in range(len(pieces))])


class _Rows:
    """A batch of rows while it is decoded; longest first."""

    def __init__(self, llama: Llama, pieces: Sequence[Tensor]) -> None:
        self._llama = llama
        self._lengths = [len(piece) for piece in pieces]
        self._cb0 = torch.nn.utils.rnn.pad_sequence([*pieces], batch_first=True).to(llama.device) + FIRST_CODE_ID
        self._starts = [0] * len(pieces)
        self._cache: RowCache = llama.new_cache(len(pieces), _capacity(max(self._lengths)))
        # (R, 8, T): every code id, codebook 0 as given
        self._ids = self._cb0[:, None].repeat(1, N_CODEBOOKS, 1)

    def decode(self, report: Callable[[int], None]) -> list[Tensor]:
        """Codes (8, T_r) of each row, on the CPU."""
        hidden = self._read_prefixes()
        for frame in range(max(self._lengths)):
            active = sum(length > frame for length in self._lengths)
            if frame > 0:  # the last code of the frame before, and this frame's first
                pair = torch.stack([self._ids[:active, -1, frame - 1], self._cb0[:active, frame]], dim=1)
                hidden = self._feed(pair)
            for codebook in range(1, N_CODEBOOKS):
                if codebook > 1:
                    hidden = self._feed(self._ids[:active, codebook - 1, frame, None])
                self._ids[:active, codebook, frame] = self._likeliest(hidden, codebook)
            if frame % _FRAMES_A_REPORT == 0:
                report(sum(min(length, frame + 1) for length in self._lengths))
        first_ids = torch.tensor([code_ids(k).start for k in range(N_CODEBOOKS)])[:, None]
        codes = self._ids.cpu() - first_ids
        return [row[:, :length] for row, length in zip(codes, self._lengths, strict=True)]

    def _read_prefixes(self) -> Tensor:
        """Prefill every row with its prefix and its first frame's codebook 0; the last hidden states (R, H)."""
        hidden, first = [], 0
        while first < len(self._lengths):
            length = self._lengths[first]
            end = first + self._lengths.count(length)  # equal lengths stand together
            tokens = _prefix(self._cb0[first:end, :length])
            hidden.append(self._llama.prefill(self._cache, first, tokens))
            self._starts[first:end] = [tokens.shape[1]] * (end - first)
            first = end
        return torch.cat(hidden)

    def _feed(self, tokens: Tensor) -> Tensor:
        """Tokens (A, Q) to the first A rows; the last hidden states (A, H)."""
        active, n_new = tokens.shape
        hidden = self._llama.forward(self._cache, tokens, self._starts[:active])
        self._starts[:active] = [start + n_new for start in self._starts[:active]]
        return hidden

    def _likeliest(self, hidden: Tensor, codebook: int) -> Tensor:
        """The ids (A,) that the model takes in `codebook`."""
        ids = code_ids(codebook)
        return (hidden @ self._llama.head[ids.start : ids.stop].T).argmax(-1) + ids.start


def _prefix(cb0: Tensor) -> Tensor:
    """What stage 2 reads before its first choice, for rows of ids (R, T): (R, T + 4)."""

    def column(token: int) -> Tensor:
        return torch.full((len(cb0), 1), token, device=cb0.device)

    return torch.cat([column(SOA_ID), column(STAGE_1_ID), cb0, column(STAGE_2_ID), cb0[:, :1]], dim=1)


def _capacity(frames: int) -> int:
    prefix = 3 + frames
    return prefix + N_CODEBOOKS * frames


def _joined(tracks: Sequence[Tensor], pieces: Sequence[Tensor]) -> list[Tensor]:
    """The pieces (8, t) of each track in a row again: (8, T)."""
    joined, rest = [], list(pieces)
    for track in tracks:
        n_pieces = len(track.split(PIECE_FRAMES))
        joined.append(torch.cat(rest[:n_pieces], dim=1))
        rest = rest[n_pieces:]
    return joined
