"""One piece of stage 2: codebook 0 in, all eight codebooks out.

Every 6 s of a track are a sequence of their own, decoded greedily, frame by frame, in one cache row.
`inference/engine/stage2_batch.py` runs the model:

    <SOA> <stage_1> c0 c0 … c0 <stage_2> | c0 1 2 3 4 5 6 7 | c0 1 2 3 4 5 6 7 | …
    '----------- prefix ---------------'   '--- frame 0 ---'   '--- frame 1 ---'

Position k of a frame holds a code of codebook k. The token before a frame and the frame's first token are both known
when the frame starts, so they are fed together: a frame takes seven forward passes, not eight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.models.llama import Row
from inference.vocabulary import FIRST_CODE_ID, N_CODEBOOKS, PIECE_FRAMES, STAGE_2_ID, code_ids

PREFIX_TOKENS = 3  # <SOA>, <stage_1> and <stage_2>, around the codes
ROW_TOKENS = PREFIX_TOKENS + PIECE_FRAMES + N_CODEBOOKS * PIECE_FRAMES  # of a whole piece


class Piece:
    """Up to 6 s of one track: codebook 0 (T,) in, `codes` (8, T) out when it is `done`."""

    def __init__(self, codebook0: Tensor) -> None:
        assert 0 < len(codebook0) <= PIECE_FRAMES, f"a piece has 1 to {PIECE_FRAMES} frames, not {len(codebook0)}"
        self.ids = torch.empty(N_CODEBOOKS, len(codebook0), dtype=torch.long)  # the input and output of the model
        self.ids[0] = codebook0 + FIRST_CODE_ID
        self.n_done = 0  # frames
        self.row: Row | None = None
        self.last_id = STAGE_2_ID  # the token before the next frame

    @property
    def n_frames(self) -> int:
        """T."""
        return self.ids.shape[1]

    @property
    def n_left(self) -> int:
        """The number of frames that are not done."""
        return self.n_frames - self.n_done

    @property
    def active_row(self) -> Row:
        """The cache row of an active piece."""
        assert self.row is not None, "an active piece has a row"
        return self.row

    @property
    def index(self) -> int:
        """The index of its cache row."""
        return self.active_row.index

    @property
    def done(self) -> bool:
        """True if every frame has its eight codes."""
        return self.n_done == self.n_frames

    def take(self, frames: Tensor) -> None:
        """Append the ids (7, W) of the next frames."""
        self.ids[1:, self.n_done : self.n_done + frames.shape[1]] = frames
        self.last_id = int(frames[-1, -1])
        self.n_done += frames.shape[1]

    @property
    def codes(self) -> Tensor:
        """The codes (8, T)."""
        assert self.done, "a piece has its codes when it is done"
        return self.ids - torch.tensor([code_ids(k).start for k in range(N_CODEBOOKS)])[:, None]


def pieces(track: Tensor) -> list[Piece]:
    """Cut the codes (T,) of codebook 0 into pieces; the last one may be shorter."""
    return [Piece(part) for part in track.split(PIECE_FRAMES)]
