"""Stage 2 for many pieces at once: each takes one frame further with every seven passes through the model.

It knows nothing of songs or finite, and nothing of a piece but its ids.

On a CPU the rows of the pieces that play are gathered for each frame. On a GPU the frame is recorded for the first rows
of the cache (`RecordedStage2Step`), and a few frames are played before anyone looks at them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.engine.cuda_graphs import Recorder, even
from inference.engine.stage2 import ROW_TOKENS, Piece, pieces
from inference.errors import EngineError
from inference.models.llama import Llama, Row, RowCache, StaticRows, agree, kept_length
from inference.vocabulary import N_CODEBOOKS, PIECE_FRAMES, SOA_ID, STAGE_1_ID, code_ids

MAX_ROWS = 32
FRAMES_A_WINDOW = 4  # played before the program looks at them
FORWARDS = N_CODEBOOKS - 1  # a frame: the first feeds two tokens, the others one
# How far a recorded forward may be from the plain one in half precision, relative to the hidden states' norm. Rounding
# grows over many layers; a wrong kernel errs by the order of 1.
ROUNDING = 0.15
PREFILL_TOKENS = 8_192  # a call: bounds the memory that reading many pieces at once takes
_FRAMES_A_REPORT = 4


class Stage2Batch:
    """The pieces that stage 2 works on together. A piece joins at the beginning of a frame and leaves when it is done.

    Who joins or leaves changes no other piece: its row is computed as if alone.
    """

    def __init__(self, llama: Llama, max_rows: int = MAX_ROWS, recorder: Recorder | None = None) -> None:
        self._llama = llama
        self._cache = llama.new_cache(max_rows, ROW_TOKENS)
        self._waiting: deque[Piece] = deque()
        self._active: list[Piece] = []
        self._one_by_one = recorder is not None and recorder.only_one_bucket  # so are prefixes read
        self.static = RecordedStage2Step(llama, self._cache, recorder) if recorder else None

    @property
    def n_waiting(self) -> int:
        """Pieces that have not begun."""
        return len(self._waiting)

    @property
    def n_active(self) -> int:
        """Pieces that have begun and are not done."""
        return len(self._active)

    @property
    def n_free(self) -> int:
        """How many more pieces can play at once."""
        return self._cache.n_free

    def join(self, piece: Piece) -> None:
        """Work on this piece too, as soon as a row is free."""
        self._waiting.append(piece)

    def leave(self, piece: Piece) -> None:
        """Work on this piece no further. Nothing happens to one that is done."""
        if piece in self._waiting:
            self._waiting.remove(piece)
        if piece.row is not None:
            self._active.remove(piece)
            self._cache.give_back(piece.row)
            piece.row = None
            self._note_change()

    def step(self, begin: bool = True) -> int:
        """Take every piece a frame further, or a window of them; how many. Those that are done leave.

        Those that wait begin if they shall and find a row.
        Raises EngineError where the model's numbers are none. After a torch.OutOfMemoryError the step can be taken
        again.
        """
        with torch.inference_mode():
            self._begin_waiting(begin)
            n_frames = self._advance(self._active) if self._active else 1
        for piece in [piece for piece in self._active if piece.done]:
            self.leave(piece)
        return n_frames

    def _begin_waiting(self, begin: bool) -> None:
        """Read the prefixes of all pieces that find a row, those of equal length together."""
        while begin and self._waiting and self._cache.n_free:
            piece = self._waiting.popleft()
            piece.row = self._cache.take()
            self._active.append(piece)
        self._active.sort(key=_row_index)  # neighbours share work
        new = [piece for piece in self._active if not _row(piece).length]  # or not read yet for want of memory
        if new:
            self._note_change()
        for n_frames in {piece.n_frames for piece in new}:
            alike = sorted((piece for piece in new if piece.n_frames == n_frames), key=_row_index)
            lead = torch.tensor([[SOA_ID, STAGE_1_ID]]).expand(len(alike), -1)
            tokens = torch.cat([lead, torch.stack([piece.ids[0] for piece in alike])], dim=1)
            rows = 1 if self._one_by_one else max(1, PREFILL_TOKENS // tokens.shape[1])
            for first in range(0, len(alike), rows):
                some = slice(first, first + rows)
                self._llama.prefill([_row(piece) for piece in alike[some]], tokens[some].to(self._llama.device))

    def _advance(self, active: Sequence[Piece]) -> int:
        """One frame of each of these pieces, or a window of them."""
        frames = self.static.draw(active) if self.static else None
        if frames is None:
            ids, finite = _plain_frame(self._llama, active)
            _require_finite(bool(finite.all()))
            frames = ids[:, :, None].cpu()
        for piece, columns in zip(active, frames, strict=True):
            _row(piece).length += columns.numel() + columns.shape[1]
            piece.take(columns)
        return frames.shape[2]

    def _note_change(self) -> None:
        if self.static:
            self.static.stale = True


class RecordedStage2Step:
    """The frame of the pieces in the first rows of the cache, on tensors that stay where they are.

    The pieces themselves are what counts: they are copied here when they change otherwise than by a step. A row that is
    at rest is computed too, and what comes of it is written behind its last token.
    """

    def __init__(self, llama: Llama, cache: RowCache, recorder: Recorder) -> None:
        rows, device = cache.n_free, llama.device
        self.stale = True
        self._llama, self._cache = llama, cache
        self._codebook0 = torch.zeros(rows, PIECE_FRAMES, dtype=torch.long, device=device)
        # Of each row: whether it active_rows (1 or 0), the token before its frame, its frames done, its length.
        self._counts = torch.zeros(4, even(rows), dtype=torch.long, device=device)
        self._frames = torch.zeros(rows, FORWARDS, FRAMES_A_WINDOW, dtype=torch.long, device=device)
        self._taken = torch.zeros(1, dtype=torch.long, device=device)  # frames of the window
        self._finite = torch.ones((), dtype=torch.bool, device=device)  # whether all numbers were numbers
        self._hidden = torch.zeros(FORWARDS, rows, llama.config.hidden_size, dtype=llama.dtype, device=device)
        self._verified: set[int] = set()  # buckets whose first frame was compared
        self.recordings = recorder.recordings("stage 2", self._step, rows)

    def draw(self, active: Sequence[Piece]) -> Tensor | None:
        """A window of frames (R, 7, W) for these pieces, whose rows have taken them in but count them not yet.

        None where the frame is not recorded. Raises EngineError.
        """
        bucket = self.recordings.bucket(1 + max(map(_row_index, active)))
        if not self._ready_for(bucket, active):
            return None
        if self.stale:
            self._copy(active)
        width = min(FRAMES_A_WINDOW, *(piece.n_frames - piece.n_done for piece in active))
        self._replay(bucket, width)
        frames = self._frames[_places(active), :, :width].cpu()
        _require_finite(bool(self._finite))
        return frames

    def prepare(self, bucket: int, active: Sequence[Piece] = ()) -> bool:
        """Record the frame for so many rows, while those that are `active` rest; whether it can be replayed."""
        self._copy(active)
        self._counts[0] = 0
        self._taken.zero_()
        self.stale = True
        return self.recordings.prepare(bucket)

    def _ready_for(self, bucket: int, active: Sequence[Piece]) -> bool:
        if bucket in self.recordings.missing:
            self.prepare(bucket, active)
        if self.recordings.ready(bucket) and bucket not in self._verified:
            self._verify(bucket, active)
        return self.recordings.ready(bucket)

    def _verify(self, bucket: int, active: Sequence[Piece]) -> None:
        """Play a frame that does not count, and compare each of its forwards with the plain one.

        The plain forwards are fed with the ids that the recorded frame chose: of two codes whose scores are as good as
        equal, each way may choose another, and all that follows is then different in both.
        """
        self._copy(active)
        self.stale = True  # the frame is played again, from the pieces
        self._replay(bucket, 1)
        places = _places(active)
        expected = _plain_hidden(self._llama, active, self._frames[places, :, 0])
        if agree(self._hidden[:, places], expected, ROUNDING):
            self._verified.add(bucket)
        else:
            self.recordings.give_up("the recorded frame of stage 2 computes other numbers than the plain one")

    def _replay(self, bucket: int, width: int) -> None:
        self._taken.zero_()
        self._finite.fill_(True)
        for _ in range(width):
            self.recordings.replay(bucket)

    def _step(self, bucket: int) -> None:
        active_rows, last, done, length = self._counts[:, :bucket]
        fed = length.clone()  # grows within the frame; a row at rest writes over itself

        def forward(tokens: Tensor) -> Tensor:
            hidden = self._llama.static_forward([StaticRows(self._cache, fed)], tokens)
            fed.add_(active_rows * tokens.shape[1])
            return hidden

        first = self._codebook0[:bucket].gather(1, done.clamp(max=PIECE_FRAMES - 1)[:, None])
        ids, hidden, finite = _frame(self._llama, forward, torch.cat([last[:, None], first], dim=1))
        self._finite.logical_and_((finite | (active_rows == 0)).all())
        self._hidden[:, :bucket] = hidden
        self._frames[:bucket].index_copy_(2, self._taken, ids[:, :, None])
        self._taken.add_(1)
        last.copy_(torch.where(active_rows > 0, ids[:, -1], last))
        length.copy_(fed)
        done.add_(active_rows)

    def _copy(self, active: Sequence[Piece]) -> None:
        """Bring the pieces here."""
        codebook0, counts = (
            torch.zeros(self._codebook0.shape, dtype=torch.long),
            torch.zeros(self._counts.shape, dtype=torch.long),
        )
        for piece in active:
            row = _row(piece)
            codebook0[row.index, : piece.n_frames] = piece.ids[0]
            counts[:, row.index] = torch.tensor([1, piece.last_id, piece.n_done, row.length])
        self._codebook0.copy_(codebook0)
        self._counts.copy_(counts)
        self.stale = False


def upsample(
    llama: Llama,
    tracks: Sequence[Tensor],
    report: Callable[[int, int], None],
    max_rows: int = MAX_ROWS,
    recorder: Recorder | None = None,
) -> list[Tensor]:
    """Codes (8, T) for each of `tracks`, codes (T,) of codebook 0, at most `max_rows` rows together.

    `report(rows, frames)`, both summed over what is done, is called every few frames and may raise to stop.
    """
    batch = Stage2Batch(llama, max_rows, recorder)
    by_track = [pieces(track) for track in tracks]
    every = [piece for track in by_track for piece in track]
    for piece in every:
        batch.join(piece)
    steps = 0
    while not all(piece.done for piece in every):
        steps += batch.step()
        if steps % _FRAMES_A_REPORT == 0 or not batch.n_active:
            report(sum(piece.done for piece in every), sum(piece.n_done for piece in every))
    return [torch.cat([piece.codes for piece in track], dim=1) for track in by_track]


def _plain_frame(llama: Llama, active: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """The ids (R, 7) of these pieces' next frame, and whether all numbers of a row were numbers (R,).

    Their rows have taken it in but count it not yet.
    """
    rows = [_row(piece) for piece in active]
    with kept_length(rows):
        ids, _, finite = _frame(llama, lambda tokens: llama.forward(rows, tokens), _first_tokens(llama, active))
    return ids, finite


def _plain_hidden(llama: Llama, active: Sequence[Piece], ids: Tensor) -> Tensor:
    """The hidden states (7, R, H) of these pieces' next frame where it has these `ids` (R, 7)."""
    rows = [_row(piece) for piece in active]
    fed = [_first_tokens(llama, active), *ids[:, :-1].split(1, dim=1)]
    with kept_length(rows):
        return torch.stack([llama.forward(rows, tokens) for tokens in fed])


def _first_tokens(llama: Llama, active: Sequence[Piece]) -> Tensor:
    """What each piece's next frame begins with (R, 2): the token before it and its codebook 0."""
    pairs = [[piece.last_id, int(piece.ids[0, piece.n_done])] for piece in active]
    return torch.tensor(pairs, device=llama.device)


def _frame(llama: Llama, forward: Callable[[Tensor], Tensor], tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One frame, from each row's last id and its codebook 0, `tokens` (R, 2).

    The other seven ids (R, 7), all hidden states (7, R, H), and whether all numbers of a row were numbers (R,).
    `forward` feeds tokens (R, Q) to the rows and gives hidden states (R, H).
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


def _require_finite(finite: bool) -> None:
    if not finite:
        raise EngineError("stage 2 computed scores that are not numbers")


def _row(piece: Piece) -> Row:
    assert piece.row is not None, "an active piece has a row"
    return piece.row


def _row_index(piece: Piece) -> int:
    return _row(piece).index


def _places(active: Sequence[Piece]) -> list[int]:
    return [_row_index(piece) for piece in active]
