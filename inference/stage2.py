"""Stage 2: codebook 0 of a track in, all eight codebooks out, for the rows of any number of tracks at once.

It knows nothing of songs, sections or sound. Every 6 s of a track are a row; all rows are decoded together, greedily,
frame by frame, each on one persistent cache:

    <SOA> <stage_1> c0 c0 … c0 <stage_2> | c0 1 2 3 4 5 6 7 | c0 1 2 3 4 5 6 7 | …
    '----------- prefix ---------------'   '--- frame 0 ---'   '--- frame 1 ---'

Codebook k may only stand at position k of a frame. The token before a frame and the frame's first are both known when
the frame begins, so they are fed together: seven forwards a frame, not eight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.errors import EngineError
from inference.llama import Llama, Row
from inference.vocabulary import FIRST_CODE_ID, N_CODEBOOKS, PIECE_FRAMES, SOA_ID, STAGE_1_ID, STAGE_2_ID, code_ids

MAX_ROWS = 32
PREFIX_TOKENS = 3  # <SOA>, <stage_1> and <stage_2>, around the codes
ROW_TOKENS = PREFIX_TOKENS + PIECE_FRAMES + N_CODEBOOKS * PIECE_FRAMES  # of a whole piece
NO_NUMBER = -1  # in place of an id
_FRAMES_A_REPORT = 4


class Piece:
    """Up to 6 s of one track: codebook 0 in, `codes` (8, T) out once it is `done`."""

    def __init__(self, codebook0: Tensor) -> None:
        assert 0 < len(codebook0) <= PIECE_FRAMES, f"a piece has 1 to {PIECE_FRAMES} frames, not {len(codebook0)}"
        self.ids = torch.empty(N_CODEBOOKS, len(codebook0), dtype=torch.long)  # what the model reads and writes
        self.ids[0] = codebook0 + FIRST_CODE_ID
        self.n_done = 0  # frames
        self.row: Row | None = None
        self.last_id = STAGE_2_ID  # the token before the frame that comes next

    @property
    def n_frames(self) -> int:
        """T."""
        return self.ids.shape[1]

    @property
    def n_read(self) -> int:
        """How many tokens its row holds where the next frame begins."""
        return PREFIX_TOKENS - 1 + self.n_frames + N_CODEBOOKS * self.n_done

    @property
    def done(self) -> bool:
        """Whether every frame has its eight codes."""
        return self.n_done == self.n_frames

    @property
    def codes(self) -> Tensor:
        """(8, T)."""
        assert self.done, "a piece has its codes when it is done"
        return self.ids - torch.tensor([code_ids(k).start for k in range(N_CODEBOOKS)])[:, None]


class Orchestra:
    """The pieces that stage 2 works on together. A piece joins at the beginning of a frame and leaves when it is done.

    Who joins or leaves changes no other piece: its row is computed as if alone.
    """

    def __init__(self, llama: Llama, max_rows: int = MAX_ROWS) -> None:
        self._llama = llama
        self._cache = llama.new_cache(max_rows, ROW_TOKENS)
        self._waiting: deque[Piece] = deque()
        self._playing: list[Piece] = []

    @property
    def n_waiting(self) -> int:
        """Pieces that have not begun."""
        return len(self._waiting)

    @property
    def n_playing(self) -> int:
        """Pieces that have begun and are not done."""
        return len(self._playing)

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
            self._playing.remove(piece)
            self._cache.give_back(piece.row)
            piece.row = None

    def step(self) -> None:
        """Take every piece one frame further; those that are done leave.

        Raises EngineError where the model's numbers are none. After a torch.OutOfMemoryError the step can be taken
        again.
        """
        with torch.inference_mode():
            self._begin_waiting()
            if self._playing:
                self._play_frame()
        for piece in [piece for piece in self._playing if piece.done]:
            self.leave(piece)

    def _begin_waiting(self) -> None:
        """Read the prefixes of all pieces that find a row, those of equal length together."""
        while self._waiting and self._cache.n_free:
            piece = self._waiting.popleft()
            piece.row = self._cache.take()
            self._playing.append(piece)
        self._playing.sort(key=_row_index)  # neighbours share work
        new = [piece for piece in self._playing if not _row(piece).length]  # or not read yet for want of memory
        for n_frames in {piece.n_frames for piece in new}:
            alike = sorted((piece for piece in new if piece.n_frames == n_frames), key=_row_index)
            lead = torch.tensor([[SOA_ID, STAGE_1_ID]]).expand(len(alike), -1)
            tokens = torch.cat([lead, torch.stack([piece.ids[0] for piece in alike])], dim=1)
            self._llama.prefill([_row(piece) for piece in alike], tokens.to(self._llama.device))

    def _play_frame(self) -> None:
        rows = [_row(piece) for piece in self._playing]
        for piece, row in zip(self._playing, rows, strict=True):
            row.length = piece.n_read  # a frame that found no memory halfway is begun anew
        device = self._llama.device
        pairs = [[piece.last_id, int(piece.ids[0, piece.n_done])] for piece in self._playing]
        chosen, best = [], []
        tokens = torch.tensor(pairs, device=device)
        for codebook in range(1, N_CODEBOOKS):
            hidden = self._llama.forward(rows, tokens)
            ids = code_ids(codebook)
            logit, code = self._llama.logits(hidden, ids).max(-1, keepdim=True)
            tokens = code + ids.start
            chosen.append(tokens)
            best.append(logit)
        # A maximum over numbers that are none is none. What is told of it comes with the codes, in one transfer.
        frame = torch.cat(chosen, dim=1).where(torch.cat(best, dim=1).isfinite(), NO_NUMBER).cpu()  # (R, 7)
        if (frame == NO_NUMBER).any():
            raise EngineError("stage 2 computed scores that are not numbers")
        for piece, codes in zip(self._playing, frame, strict=True):
            piece.ids[1:, piece.n_done] = codes
            piece.last_id = int(codes[-1])
            piece.n_done += 1


def pieces(track: Tensor) -> list[Piece]:
    """Codes (T,) of codebook 0, cut into pieces; the last may be shorter."""
    return [Piece(part) for part in track.split(PIECE_FRAMES)]


def upsample(
    llama: Llama, tracks: Sequence[Tensor], report: Callable[[int, int], None], max_rows: int = MAX_ROWS
) -> list[Tensor]:
    """Codes (8, T) for each of `tracks`, codes (T,) of codebook 0, at most `max_rows` rows together.

    `report(rows, frames)`, both summed over what is done, is called every few frames and may raise to stop.
    """
    orchestra = Orchestra(llama, max_rows)
    by_track = [pieces(track) for track in tracks]
    every = [piece for track in by_track for piece in track]
    for piece in every:
        orchestra.join(piece)
    steps = 0
    while not all(piece.done for piece in every):
        orchestra.step()
        steps += 1
        if steps % _FRAMES_A_REPORT == 0 or not orchestra.n_playing:
            report(sum(piece.done for piece in every), sum(piece.n_done for piece in every))
    return [torch.cat([piece.codes for piece in track], dim=1) for track in by_track]


def _row(piece: Piece) -> Row:
    assert piece.row is not None, "a playing piece has a row"
    return piece.row


def _row_index(piece: Piece) -> int:
    return _row(piece).index
