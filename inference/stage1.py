"""Stage 1: prompt ids in, codebook 0 of both tracks out, section by section.

It knows nothing of lyrics, of the other codebooks or of sound. `Composition` holds one song's tokens and decides what
comes next; `compose` drives it on a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.llama import Llama, RowCache
from inference.prompt import Prompt
from inference.sampling import Noise, Sampling, draw, forbid_end, guide, penalise, seen_candidates, token_id
from inference.vocabulary import EOA_ID, FIRST_CODE_ID, TRACKS

MIN_NEW_TOKENS = 100
_TOKENS_A_REPORT = 16


@dataclass(frozen=True)
class Stage1Settings:
    """How a song is composed. Budgets count new tokens of a section; `context` None is the model's own."""

    sampling: Sampling = field(default_factory=Sampling)
    guidance_scale: tuple[float, float] = (1.5, 1.2)  # of the first section, of the later ones
    max_new_tokens: int = 3_000
    min_new_tokens: int = MIN_NEW_TOKENS
    context: int | None = None


class Composition:
    """One song in stage 1: what has been sung, and what the model has to read before the next section."""

    def __init__(self, prompt: Prompt, settings: Stage1Settings, seed: int, context: int) -> None:
        self.settings = settings
        self.sections: list[list[int]] = []  # the new tokens of each, its closing <EOA> included
        self.shortened = False  # whether a section had to be sung without all of the song before it
        self._prompt = prompt
        self._noise = Noise(seed, settings.sampling.n_ranks)
        self._limit = min(context, settings.context or context) - settings.max_new_tokens - 1
        self._sequence: list[int] = []
        self._starts: list[int] = []  # where each [start_of_segment] stands in the sequence

    @property
    def finished(self) -> bool:
        """Whether every section has been sung."""
        return len(self.sections) == len(self._prompt.segments)

    @property
    def guidance_scale(self) -> float:
        """The guidance of the section that is being sung."""
        first, later = self.settings.guidance_scale
        return first if len(self.sections) == 1 else later

    def begin_section(self) -> list[int]:
        """Open the next section; the ids that the model has to read for it."""
        index = len(self.sections)
        self._starts.append(len(self._sequence) + self._prompt.starts[index])
        self._sequence += self._prompt.segments[index]
        self.sections.append([])
        context = window(self._sequence, self._starts, self._limit)
        self.shortened |= len(context) < len(self._sequence)
        self._seen = seen_candidates(context)[None]
        return context

    def choose(self, logits: Tensor) -> int:
        """The next token of the section, from the logits (1 or 2, V) of its branches: conditional, unconditional."""
        scores = guide(logits[:1], logits[1:] if len(logits) > 1 else None, self.guidance_scale)
        seen = self._seen.to(scores.device)
        scores = penalise(scores, seen, self.settings.sampling.repetition_penalty)
        if len(self.sections[-1]) < self.settings.min_new_tokens:
            scores = forbid_end(scores)
        candidate = int(draw(scores, self.settings.sampling, self._noise.next().to(scores.device)))
        self._seen[0, candidate] = True
        return token_id(candidate)

    def append(self, token: int) -> bool:
        """Take a token into the section; whether that was its last."""
        section = self.sections[-1]
        section.append(token)
        if token != EOA_ID and len(section) < self.settings.max_new_tokens:
            return False
        if token != EOA_ID:
            section.append(EOA_ID)
        self._sequence += section
        return True


def compose(llama: Llama, song: Composition, report: Callable[[int, int], None]) -> None:
    """Sing every section of `song`. `report(section, tokens)` is called every few tokens and may raise to stop."""
    with torch.inference_mode():
        while not song.finished:
            _compose_section(llama, song, report)


def window(sequence: Sequence[int], starts: Sequence[int], limit: int) -> list[int]:
    """What the model reads of `sequence`: all where it fits into `limit` ids, else the head and the latest sections.

    `starts` are the positions of every [start_of_segment]. The oldest section after the head goes first,

        head | section 0 | section 1 | section 2 | new        starts = s0 s1 s2 s3
        head |             section 1 | section 2 | new

    while at least three (the new one counted) remain; then only the last `limit` ids can be kept.
    """
    first_kept, length = 0, len(sequence)
    while length > limit and len(starts) - first_kept >= 3:
        length -= starts[first_kept + 1] - starts[first_kept]
        first_kept += 1
    kept = [*sequence[: starts[0]], *sequence[starts[first_kept] :]]
    return kept if len(kept) <= limit else kept[-limit:]


def tracks(sections: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, list[int]]:
    """Codes (T,) of the vocal and the instrumental track, and how many frames each section has.

    A section's tokens alternate vocal, instrumental; `<EOA>` and an odd last token are left out.
    """
    codes, frames = [], []
    for section in sections:
        spoken = [token - FIRST_CODE_ID for token in section if token != EOA_ID]
        frames.append(len(spoken) // len(TRACKS))
        codes += spoken[: frames[-1] * len(TRACKS)]
    vocal, instrumental = torch.tensor(codes, dtype=torch.long).reshape(-1, len(TRACKS)).T.contiguous()
    return vocal, instrumental, frames


def interleave(reference: Sequence[Tensor]) -> list[int]:
    """Ids of a reference: one row of codes as it is, or two rows alternating, cut to the shorter."""
    length = min(len(codes) for codes in reference)
    return (torch.stack([codes[:length] for codes in reference], dim=1).flatten() + FIRST_CODE_ID).tolist()


def _compose_section(llama: Llama, song: Composition, report: Callable[[int, int], None]) -> None:
    context = song.begin_section()
    branches = [context, context[-1:]] if song.guidance_scale != 1 else [context]
    cache = llama.new_cache(len(branches), len(context) + song.settings.max_new_tokens)
    hidden = _read(llama, cache, branches)
    starts = [len(ids) for ids in branches]
    while not song.append(token := song.choose(hidden @ llama.head.T)):
        if len(song.sections[-1]) % _TOKENS_A_REPORT == 0:
            report(len(song.sections), sum(map(len, song.sections)))
        hidden = llama.forward(cache, torch.full((len(branches), 1), token, device=llama.device), starts)
        starts = [start + 1 for start in starts]
    report(len(song.sections), sum(map(len, song.sections)))


def _read(llama: Llama, cache: RowCache, branches: Sequence[Sequence[int]]) -> Tensor:
    rows = [
        llama.prefill(cache, row, torch.tensor([list(ids)], device=llama.device)) for row, ids in enumerate(branches)
    ]
    return torch.cat(rows)
