"""Samples one token from the logits of stage 1: guidance, penalty, mask, temperature, top-k, top-p, draw.

It does not know prompts, sections or caches. The order of the steps matters: it is that of YuE's published code, which
calls Hugging Face's `generate`.

Only `<EOA>` and the codes of codebook 0 are allowed, so everything after the normalisation works on these 1,025
candidates, not on the vocabulary's 83,968. Index 0 is `<EOA>`, index 1 + c is code c.
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
_NOISE_BLOCK = 64  # steps that are drawn at once; a block costs little more than one step


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 turn those filters off."""

    temperature: float = DEFAULT_TEMPERATURE
    top_k: int = DEFAULT_TOP_K
    top_p: float = DEFAULT_TOP_P
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY

    @property
    def n_ranks(self) -> int:
        """The number of likeliest candidates that can be drawn."""
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
    """The settings of S songs as tensors (S, 1), so that one draw serves all of them.

    `n_ranks` is the number of likeliest candidates in the draw, at least as many as any song can draw.
    """

    def __init__(self, songs: Sequence[Sampling], device: torch.device, n_ranks: int | None = None) -> None:
        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor([[value] for value in values], dtype=torch.float32, device=device)

        self.n_ranks = n_ranks or max(sampling.n_ranks for sampling in songs)
        self.greedy = column(sampling.temperature == 0 for sampling in songs)
        self.temperature = column(sampling.temperature or 1.0 for sampling in songs)
        self.top_p = column(sampling.top_p for sampling in songs)
        self.penalty = column(sampling.repetition_penalty for sampling in songs)
        self.ranks = column(sampling.n_ranks for sampling in songs)
        self._rank = torch.arange(self.n_ranks, device=device)

    def columns(self) -> list[Tensor]:
        """The settings that differ from song to song, each (S, 1)."""
        return [self.greedy, self.temperature, self.top_p, self.penalty, self.ranks]

    def first(self, songs: int) -> Samplers:
        """The settings of the first `songs` songs, as views."""
        part = copy(self)
        part.greedy, part.temperature, part.top_p, part.penalty, part.ranks = (
            column[:songs] for column in self.columns()
        )
        return part

    def probabilities(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (S, K) in falling order, and their candidates (S, K); K is `n_ranks`.

        Top-p keeps the fewest likeliest candidates whose mass reaches `top_p`, at least one.
        """
        top, candidates = torch.topk(scores / self.temperature, self.n_ranks, dim=-1)
        top = top.masked_fill(self._rank >= self.ranks, -torch.inf)
        mass = torch.softmax(top, dim=-1)
        mass_from_here = mass.flip(-1).cumsum(-1).flip(-1)  # of a rank and all less likely ones
        dropped = mass_from_here <= 1.0 - self.top_p
        dropped[:, 0].fill_(False)
        return torch.softmax(top.masked_fill(dropped, -torch.inf), dim=-1), candidates

    def draw(self, scores: Tensor, noise: Tensor) -> Tensor:
        """One candidate for each song (S,). `noise` (S, K) is exponential: argmax(p / noise) is a draw from p."""
        chances, candidates = self.probabilities(scores)
        drawn = candidates.gather(-1, (chances / noise).argmax(-1, keepdim=True))
        return torch.where(self.greedy > 0, scores.argmax(-1, keepdim=True), drawn).squeeze(-1)


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Scores (S, 1025) from both branches' logits (S, V): g · (c − u) + u on log-probabilities, not renormalised."""
    with_prompt, without = _log_probabilities(conditional), _log_probabilities(unconditional)
    return scale * (with_prompt - without) + without


def unguided(logits: Tensor) -> Tensor:
    """Scores (S, 1025) without guidance: the plain logits, as in `generate` without guidance."""
    return torch.cat([logits[:, EOA_ID : EOA_ID + 1], logits[:, _CODES.start : _CODES.stop]], dim=-1).float()


def scores_of(logits: Tensor, scales: Tensor) -> Tensor:
    """Scores (S, 1025) of songs with guidance `scales` (S, 1); 1 is no guidance.

    `logits` (2 S, V) hold the conditional rows, then the unconditional ones; (S, V) if no song is guided.
    """
    n_songs = len(scales)
    plain = unguided(logits[:n_songs])
    if len(logits) == n_songs:
        return plain
    return torch.where(scales == 1, plain, guide(logits[:n_songs], logits[n_songs:], scales))


def penalise(scores: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Penalise the `seen` candidates (S, 1025): multiply negative scores by the penalty, divide positive ones by it."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def forbid_end(scores: Tensor, too_short: Tensor) -> Tensor:
    """The scores (S, 1025) with `<EOA>` ruled out for the songs (S,) whose section is too short."""
    scores = scores.clone()
    scores[:, EOA_CANDIDATE].masked_fill_(too_short, -torch.inf)
    return scores


class Noise:
    """One song's stream of exponential noise. It depends on the seed alone, not on the device or other songs."""

    def __init__(self, seed: int, width: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn = torch.empty(0, width)  # noise of the next steps (n, K)

    def ahead(self, steps: int) -> Tensor:
        """The noise (steps, K) of the next steps. It stays until `advance`."""
        while len(self._drawn) < steps:
            block = torch.empty(_NOISE_BLOCK, self._drawn.shape[1]).exponential_(generator=self._generator)
            self._drawn = torch.cat([self._drawn, block])
        return self._drawn[:steps]

    def advance(self, steps: int) -> None:
        """Drop the noise of `steps` steps that were taken."""
        assert steps <= len(self._drawn), "only drawn noise can be dropped"
        self._drawn = self._drawn[steps:]


def _log_probabilities(logits: Tensor) -> Tensor:
    logits = logits.float()
    return unguided(logits) - logits.logsumexp(-1, keepdim=True)
