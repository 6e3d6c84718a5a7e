"""Runs stage 2 for many pieces at once: every seven passes through the model take each of them one frame further.

It does not know songs or audio. All it knows of a piece is its ids.

On a CPU the rows of the active pieces are gathered for each frame. On a GPU the frame is recorded for the first rows of
the cache (`RecordedStage2Step`), and a window of frames is decoded before the host reads them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.engine.cuda_graphs import RecordedStep, Recorder, require_finite, rows_of
from inference.engine.stage2 import ROW_TOKENS, Piece
from inference.models.llama import Llama, RowCache, StaticRows, kept_length
from inference.vocabulary import N_CODEBOOKS, PIECE_FRAMES, SOA_ID, STAGE_1_ID, code_ids

NAME = "stage 2"
FRAMES_A_WINDOW = 4  # decoded before the host reads them
FORWARDS = N_CODEBOOKS - 1  # a frame: the first feeds two tokens, the others one
PREFILL_TOKENS = 8_192  # a call: bounds the memory for reading many pieces at once


class Stage2Batch:
    """The pieces that are in stage 2. A piece joins at the beginning of a frame and leaves when it is done.

    Pieces that join or leave do not affect the others: each row is computed as if it were alone.
    """

    def __init__(self, llama: Llama, max_rows: int, recorder: Recorder | None = None) -> None:
        self._llama = llama
        self._cache = llama.new_cache(max_rows, ROW_TOKENS)
        self._waiting: deque[Piece] = deque()
        self._active: list[Piece] = []
        self._one_by_one = recorder is not None and recorder.only_one_bucket  # prefixes are read one by one, too
        self.recorded = RecordedStage2Step(llama, self._cache, recorder) if recorder else None

    @property
    def n_waiting(self) -> int:
        """The number of pieces that have not begun."""
        return len(self._waiting)

    @property
    def n_free(self) -> int:
        """How many more pieces can be active."""
        return self._cache.n_free

    def join(self, piece: Piece) -> None:
        """Add a piece. It begins as soon as a row is free."""
        self._waiting.append(piece)

    def leave(self, piece: Piece) -> None:
        """Remove a piece. One that is done has left already; for it, nothing happens."""
        if piece in self._waiting:
            self._waiting.remove(piece)
        if piece.row is not None:
            self._active.remove(piece)
            self._cache.give_back(piece.row)
            piece.row = None
            self._note_change()

    def step(self, begin: bool = True) -> int:
        """Take every active piece a frame or a window of frames further. Returns the number of frames.

        With `begin`, waiting pieces that find a row become active first. Pieces that are done leave. Raises EngineError
        if scores are not finite. After a torch.OutOfMemoryError the step can be repeated.
        """
        with torch.inference_mode():
            self._begin_waiting(begin)
            n_frames = self._advance(self._active) if self._active else 1
        for piece in [piece for piece in self._active if piece.done]:
            self.leave(piece)
        return n_frames

    def _begin_waiting(self, begin: bool) -> None:
        """Read the prefixes of the pieces that find a row, those of equal length together."""
        while begin and self._waiting and self._cache.n_free:
            piece = self._waiting.popleft()
            piece.row = self._cache.take()
            self._active.append(piece)
        self._active.sort(key=_index)  # neighbours share work
        new = [piece for piece in self._active if not piece.active_row.length]  # or unread, because memory ran out
        if new:
            self._note_change()
        for n_frames in {piece.n_frames for piece in new}:
            alike = sorted((piece for piece in new if piece.n_frames == n_frames), key=_index)
            lead = torch.tensor([[SOA_ID, STAGE_1_ID]]).expand(len(alike), -1)
            tokens = torch.cat([lead, torch.stack([piece.ids[0] for piece in alike])], dim=1)
            rows = 1 if self._one_by_one else max(1, PREFILL_TOKENS // tokens.shape[1])
            for first in range(0, len(alike), rows):
                some = slice(first, first + rows)
                self._llama.prefill([piece.active_row for piece in alike[some]], tokens[some].to(self._llama.device))

    def _advance(self, active: Sequence[Piece]) -> int:
        """Decode one frame, or a window of them, of each piece."""
        frames = self.recorded.draw(active, active) if self.recorded else None  # (R, 7, W)
        if frames is None:
            ids, finite = _plain_frame(self._llama, active)
            require_finite(NAME, bool(finite.all()))
            frames = ids[:, :, None].cpu()
        for piece, columns in zip(active, frames, strict=True):
            piece.active_row.length += columns.numel() + columns.shape[1]
            piece.take(columns)
        return frames.shape[2]

    def _note_change(self) -> None:
        if self.recorded:
            self.recorded.stale = True


class RecordedStage2Step(RecordedStep[Piece]):
    """One frame of the pieces in the first rows of the cache."""

    window = FRAMES_A_WINDOW
    # Rounding grows over many layers; a wrong kernel errs by the order of 1.
    rounding = 0.15

    def __init__(self, llama: Llama, cache: RowCache, recorder: Recorder) -> None:
        rows, device = cache.n_free, llama.device
        # Of each row: active (1 or 0), the token before its frame, its frames done, its length.
        super().__init__(NAME, llama, recorder, rows, n_counts=4)
        self._cache = cache
        self._codebook0 = torch.zeros(rows, PIECE_FRAMES, dtype=torch.long, device=device)
        self._drawn = torch.zeros(rows, FORWARDS, FRAMES_A_WINDOW, dtype=torch.long, device=device)
        self._hidden = torch.zeros(FORWARDS, rows, llama.config.hidden_size, dtype=llama.dtype, device=device)

    def _step(self, bucket: int) -> None:
        active, last, done, length = self._counts[:, :bucket]
        fed = length.clone()  # grows within the frame; a resting row overwrites itself

        def forward(tokens: Tensor) -> Tensor:
            hidden = self._llama.static_forward([StaticRows(self._cache, fed)], tokens)
            fed.add_(active * tokens.shape[1])
            return hidden

        first = self._codebook0[:bucket].gather(1, done.clamp(max=PIECE_FRAMES - 1)[:, None])
        ids, hidden, finite = _frame(self._llama, forward, torch.cat([last[:, None], first], dim=1))
        self._finite.logical_and_((finite | (active == 0)).all())
        self._hidden[:, :bucket] = hidden
        self._drawn[:bucket].index_copy_(2, self._taken, ids[:, :, None])
        self._taken.add_(1)
        last.copy_(torch.where(active > 0, ids[:, -1], last))
        length.copy_(fed)
        done.add_(active)

    def _copy(self, everyone: Sequence[Piece]) -> None:
        codebook0 = torch.zeros(self._codebook0.shape, dtype=torch.long)
        counts = torch.zeros(self._counts.shape, dtype=torch.long)
        for piece in everyone:
            codebook0[piece.index, : piece.n_frames] = piece.ids[0]
            counts[:, piece.index] = torch.tensor([1, piece.last_id, piece.n_done, piece.active_row.length])
        self._codebook0.copy_(codebook0)
        self._counts.copy_(counts)

    def _begin_window(self, active: Sequence[Piece], bucket: int, width: int) -> None:
        """Greedy decoding needs nothing more."""

    def _plain_hidden(self, active: Sequence[Piece]) -> Tensor:
        """The plain forwards are fed the ids that the recorded frame chose.

        Of two codes with nearly equal scores, the plain frame may choose the other; then all that follows differs.
        """
        ids = self._drawn[rows_of(active), :, 0]
        rows = [piece.active_row for piece in active]
        fed = [_first_tokens(self._llama, active), *ids[:, :-1].split(1, dim=1)]
        with kept_length(rows):
            return torch.stack([self._llama.forward(rows, tokens) for tokens in fed])


def _plain_frame(llama: Llama, active: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """The ids (R, 7) of the pieces' next frame, and for each row if its scores are finite (R,).

    The rows hold the frame, but do not count it yet.
    """
    rows = [piece.active_row for piece in active]
    with kept_length(rows):
        ids, _, finite = _frame(llama, lambda tokens: llama.forward(rows, tokens), _first_tokens(llama, active))
    return ids, finite


def _first_tokens(llama: Llama, active: Sequence[Piece]) -> Tensor:
    """The first tokens (R, 2) that the pieces' next frames feed: the token before the frame and its codebook 0."""
    pairs = [[piece.last_id, int(piece.ids[0, piece.n_done])] for piece in active]
    return torch.tensor(pairs, device=llama.device)


def _frame(llama: Llama, forward: Callable[[Tensor], Tensor], tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One frame, from each row's last id and its codebook 0, `tokens` (R, 2).

    Returns the other seven ids (R, 7), all hidden states (7, R, H), and for each row if its scores are finite (R,).
    `forward` feeds tokens (R, Q) to the rows and returns hidden states (R, H).
    """
    chosen, states, finite = [], [], torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    for codebook in range(1, N_CODEBOOKS):
        ids = code_ids(codebook)
        hidden = forward(tokens)
        logits = llama.logits(hidden, ids)
        finite &= torch.isfinite(logits).all(-1)
        tokens = logits.argmax(-1, keepdim=True) + ids.start
        chosen.append(tokens)
        states.append(hidden)
    return torch.cat(chosen, dim=1), torch.stack(states), finite


def _index(piece: Piece) -> int:
    return piece.index
