"""Samples one token from the logits of stage 1: guidance, penalty, mask, temperature, top-k, top-p, draw.

The order of the steps is that of YuE's published code, which calls Hugging Face's `generate`.

Only `<EOA>` and the codes of codebook 0 are allowed, so everything after the log-softmax works on these 1,025
candidates, not on all 83,968 tokens. Index 0 is `<EOA>`, index 1 + c is code c.

In shapes, S is the number of songs, K the number of most probable candidates kept, V the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.options import DEFAULT_REPETITION_PENALTY, DEFAULT_TEMPERATURE, DEFAULT_TOP_K, DEFAULT_TOP_P
from inference.vocabulary import CODEBOOK_SIZE, EOA_ID, code_ids

N_CANDIDATES = 1 + CODEBOOK_SIZE
EOA_CANDIDATE = 0
_CODES = code_ids(0)
_NOISE_BLOCK = 64  # steps whose noise is drawn at once; a block costs little more than one step


@dataclass(frozen=True)
class Sampling:
    """How a token is sampled. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 turn those filters off."""

    temperature: float = DEFAULT_TEMPERATURE
    top_k: int = DEFAULT_TOP_K
    top_p: float = DEFAULT_TOP_P
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY

    @property
    def n_top(self) -> int:
        """The number of most probable candidates that can be drawn."""
        return min(self.top_k, N_CANDIDATES) if self.top_k else N_CANDIDATES


def token_id(candidate: int) -> int:
    """The vocabulary id of a candidate."""
    return EOA_ID if candidate == EOA_CANDIDATE else _CODES[candidate - 1]


def token_ids(candidates: Tensor) -> Tensor:
    """The vocabulary ids of candidates, of any shape."""
    return torch.where(candidates == EOA_CANDIDATE, EOA_ID, candidates + (_CODES.start - 1))


def seen_candidates(ids: Iterable[int]) -> Tensor:
    """The candidates that occur in `ids`, as bool (1025,)."""
    seen = torch.zeros(N_CANDIDATES, dtype=torch.bool)
    present = [EOA_CANDIDATE if i == EOA_ID else i - _CODES.start + 1 for i in set(ids) if i == EOA_ID or i in _CODES]
    seen[present] = True
    return seen


class Samplers:
    """The settings of S songs as tensors (S, 1), to sample for all of them at once.

    `n_top` is the number K of most probable candidates, at least the largest `n_top` of the songs.
    """

    def __init__(self, songs: Sequence[Sampling], device: torch.device, n_top: int | None = None) -> None:
        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor([[value] for value in values], dtype=torch.float32, device=device)

        self.n_top = n_top or max(sampling.n_top for sampling in songs)
        self.greedy = column(sampling.temperature == 0 for sampling in songs)
        self.temperature = column(sampling.temperature or 1.0 for sampling in songs)
        self.top_p = column(sampling.top_p for sampling in songs)
        self.penalty = column(sampling.repetition_penalty for sampling in songs)
        self.song_n_top = column(sampling.n_top for sampling in songs)
        self._rank = torch.arange(self.n_top, device=device)

    def columns(self) -> list[Tensor]:
        """The settings that differ from song to song, each (S, 1)."""
        return [self.greedy, self.temperature, self.top_p, self.penalty, self.song_n_top]

    def first(self, songs: int) -> Samplers:
        """The settings of the first `songs` songs, as views."""
        part = copy(self)
        part.greedy, part.temperature, part.top_p, part.penalty, part.song_n_top = (
            column[:songs] for column in self.columns()
        )
        return part

    def probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (S, K) in descending order and their candidates (S, K), from logits (S, 1025).

        Top-p keeps the fewest most probable candidates whose mass reaches `top_p`, at least one.
        """
        top, candidates = torch.topk(logits / self.temperature, self.n_top, dim=-1)
        top = top.masked_fill(self._rank >= self.song_n_top, -torch.inf)
        mass = torch.softmax(top, dim=-1)
        mass_from_here = mass.flip(-1).cumsum(-1).flip(-1)  # of a candidate and all less probable ones
        dropped = mass_from_here <= 1.0 - self.top_p
        dropped[:, 0].fill_(False)
        return torch.softmax(top.masked_fill(dropped, -torch.inf), dim=-1), candidates

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """One candidate for each song (S,). `noise` (S, K) is exponential: argmax(p / noise) is a sample of p."""
        probabilities, candidates = self.probabilities(logits)
        drawn = candidates.gather(-1, (probabilities / noise).argmax(-1, keepdim=True))
        return torch.where(self.greedy > 0, logits.argmax(-1, keepdim=True), drawn).squeeze(-1)


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Guided logits (S, 1025) from the logits (S, V) of both branches.

    They are g · (c − u) + u on log-probabilities c and u, not renormalised.
    """
    with_prompt, without = _log_probabilities(conditional), _log_probabilities(unconditional)
    return scale * (with_prompt - without) + without


def candidate_logits(logits: Tensor) -> Tensor:
    """The logits (S, 1025) of the candidates, unchanged, as in `generate` without guidance."""
    return torch.cat([logits[:, EOA_ID : EOA_ID + 1], logits[:, _CODES.start : _CODES.stop]], dim=-1).float()


def guided_logits(logits: Tensor, scales: Tensor) -> Tensor:
    """Guided logits (S, 1025) of songs with guidance `scales` (S, 1); 1 means no guidance.

    `logits` (2 S, V) hold the conditional rows, then the unconditional ones; (S, V) if no song is guided.
    """
    n_songs = len(scales)
    unguided = candidate_logits(logits[:n_songs])
    if len(logits) == n_songs:
        return unguided
    return torch.where(scales == 1, unguided, guide(logits[:n_songs], logits[n_songs:], scales))


def penalise(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Penalise the `seen` candidates (S, 1025): multiply negative logits by the penalty, divide positive ones by it."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def forbid_end(logits: Tensor, too_short: Tensor) -> Tensor:
    """The logits (S, 1025) with `<EOA>` masked for the songs (S,) whose section is too short."""
    logits = logits.clone()
    logits[:, EOA_CANDIDATE].masked_fill_(too_short, -torch.inf)
    return logits


class Noise:
    """One song's random numbers for exponential-race (Gumbel-max) sampling.

    They depend on the seed alone, not on the device or on other songs.
    """

    def __init__(self, seed: int, width: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn = torch.empty(0, width)  # noise of the next steps (n, K)

    def ahead(self, steps: int) -> Tensor:
        """The noise (steps, K) of the next steps. It is kept until `advance`."""
        while len(self._drawn) < steps:
            block = torch.empty(_NOISE_BLOCK, self._drawn.shape[1]).exponential_(generator=self._generator)
            self._drawn = torch.cat([self._drawn, block])
        return self._drawn[:steps]

    def advance(self, steps: int) -> None:
        """Drop the noise of the `steps` steps that were taken."""
        assert steps <= len(self._drawn), "only drawn noise can be dropped"
        self._drawn = self._drawn[steps:]


def _log_probabilities(logits: Tensor) -> Tensor:
    logits = logits.float()
    return candidate_logits(logits) - logits.logsumexp(-1, keepdim=True)
