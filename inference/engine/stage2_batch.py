"""Runs stage 2 for many pieces at once: seven forward passes decode one frame of every piece.

Independent of songs and audio: a piece is its ids.

On a CPU an eager step takes the rows of the active pieces. On a GPU the step is recorded for the first rows of the
cache (`RecordedStage2Step`), and up to 4 frames are decoded before the host reads them.

In shapes, R is the number of rows (pieces), Q the number of tokens fed to a row, H the hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.engine.cuda_graphs import GraphRecorder, RecordedStep, require_finite, rows_of
from inference.engine.stage2 import ROW_TOKENS, Piece
from inference.models.llama import Llama, RowCache, StaticRows, kept_length
from inference.vocabulary import N_CODEBOOKS, PIECE_FRAMES, SOA_ID, STAGE_1_ID, code_ids

NAME = "stage 2"
FRAMES_PER_SYNC = 4  # decoded before the host reads them
FORWARDS = N_CODEBOOKS - 1  # per frame: the first feeds two tokens, the others one
PREFILL_TOKENS = 8_192  # per call: bounds the memory for the prefill of many pieces


class Stage2Batch:
    """The pieces that are in stage 2. A piece joins at the start of a frame and leaves when it is done.

    Pieces that join or leave do not affect the others: each row is computed as if it were alone.
    """

    def __init__(self, llama: Llama, max_rows: int, recorder: GraphRecorder | None = None) -> None:
        self._llama = llama
        self._cache = llama.new_cache(max_rows, ROW_TOKENS)
        self._waiting: deque[Piece] = deque()
        self._active: list[Piece] = []
        self._one_by_one = recorder is not None and recorder.only_one_size  # also in prefill
        self.recorded = RecordedStage2Step(llama, self._cache, recorder) if recorder else None

    @property
    def n_waiting(self) -> int:
        """The number of pieces without a row."""
        return len(self._waiting)

    @property
    def n_free(self) -> int:
        """How many more pieces can be active."""
        return self._cache.n_free

    def join(self, piece: Piece) -> None:
        """Add a piece. It starts when a row is free."""
        self._waiting.append(piece)

    def leave(self, piece: Piece) -> None:
        """Remove a piece. Does nothing for a finished piece, which has left already."""
        if piece in self._waiting:
            self._waiting.remove(piece)
        if piece.row is not None:
            self._active.remove(piece)
            self._cache.give_back(piece.row)
            piece.row = None
            self._note_change()

    def step(self, start_waiting: bool = True) -> int:
        """Decode up to 4 frames of every active piece. Returns the number of frames.

        With `start_waiting`, waiting pieces take the free rows first. Finished pieces leave. Raises EngineError for
        non-finite logits. After a torch.OutOfMemoryError the step can be repeated.
        """
        with torch.inference_mode():
            if start_waiting:
                self._start_waiting()
            self._prefill_new()
            n_frames = self._advance(self._active) if self._active else 1
        for piece in [piece for piece in self._active if piece.done]:
            self.leave(piece)
        return n_frames

    def _start_waiting(self) -> None:
        """Give the free rows to waiting pieces."""
        while self._waiting and self._cache.n_free:
            piece = self._waiting.popleft()
            piece.row = self._cache.take()
            self._active.append(piece)
        self._active.sort(key=_index)  # neighbouring rows share work

    def _prefill_new(self) -> None:
        """Prefill the prefixes of new pieces, those of equal length together."""
        new = [piece for piece in self._active if not piece.active_row.length]
        if new:
            self._note_change()
        for n_frames in {piece.n_frames for piece in new}:
            same_length = sorted((piece for piece in new if piece.n_frames == n_frames), key=_index)
            lead = torch.tensor([[SOA_ID, STAGE_1_ID]]).expand(len(same_length), -1)
            tokens = torch.cat([lead, torch.stack([piece.ids[0] for piece in same_length])], dim=1)
            rows = 1 if self._one_by_one else max(1, PREFILL_TOKENS // tokens.shape[1])
            for first in range(0, len(same_length), rows):
                part = slice(first, first + rows)
                some_rows = [piece.active_row for piece in same_length[part]]
                self._llama.prefill(some_rows, tokens[part].to(self._llama.device))

    def _advance(self, active: Sequence[Piece]) -> int:
        """Decode one frame, or up to 4 in recorded steps, of each piece."""
        frames = self.recorded.draw(active, active) if self.recorded else None  # (R, 7, n_frames)
        if frames is None:
            ids, finite = _eager_frame(self._llama, active)
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

    steps_per_sync = FRAMES_PER_SYNC
    # Rounding errors grow over many layers; a wrong kernel causes errors of about 1.
    tolerance = 0.15

    def __init__(self, llama: Llama, cache: RowCache, recorder: GraphRecorder) -> None:
        rows, device = cache.n_free, llama.device
        # Counts (4, R): active (1 or 0), the token before the frame, the frames done, the row's length.
        super().__init__(NAME, llama, recorder, rows, n_counts=4)
        self._cache = cache
        self._codebook0 = torch.zeros(rows, PIECE_FRAMES, dtype=torch.long, device=device)
        self._drawn = torch.zeros(rows, FORWARDS, FRAMES_PER_SYNC, dtype=torch.long, device=device)
        self._hidden = torch.zeros(FORWARDS, rows, llama.config.hidden_size, dtype=llama.dtype, device=device)

    def _step(self, batch_size: int) -> None:
        active, last, done, length = self._counts[:, :batch_size]
        fed = length.clone()  # grows within the frame, except for inactive rows

        def forward(tokens: Tensor) -> Tensor:
            hidden = self._llama.static_forward([StaticRows(self._cache, fed)], tokens)
            fed.add_(active * tokens.shape[1])
            return hidden

        first = self._codebook0[:batch_size].gather(1, done.clamp(max=PIECE_FRAMES - 1)[:, None])
        ids, hidden, finite = _frame(self._llama, forward, torch.cat([last[:, None], first], dim=1))
        self._finite.logical_and_((finite | (active == 0)).all())
        self._hidden[:, :batch_size] = hidden
        self._drawn[:batch_size].index_copy_(2, self._taken, ids[:, :, None])
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

    def _before_replays(self, active: Sequence[Piece], batch_size: int, n_steps: int) -> None:
        """Does nothing: greedy decoding needs no random numbers."""

    def _eager_hidden(self, active: Sequence[Piece]) -> Tensor:
        """The eager forward passes are fed the ids that the recorded step chose.

        Of two codes with nearly equal logits the eager step may choose the other one, and all later ids would differ.
        """
        ids = self._drawn[rows_of(active), :, 0]
        rows = [piece.active_row for piece in active]
        fed = [_first_tokens(self._llama, active), *ids[:, :-1].split(1, dim=1)]
        with kept_length(rows):
            return torch.stack([self._llama.forward(rows, tokens) for tokens in fed])


def _eager_frame(llama: Llama, active: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """The ids (R, 7) of the pieces' next frame, and for each row if its logits are finite (R,).

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
    """Decode one frame from `tokens` (R, 2): each row's last id, and its id of codebook 0.

    Returns the other seven ids (R, 7), all hidden states (7, R, H), and for each row if its logits are finite (R,).
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
