"""One song in stage 1: prompt ids in, codebook 0 of both tracks out, section by section.

`Composition` holds a song's tokens and decides what comes next; `inference/engine/stage1_batch.py` runs the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.engine.sampling import Noise, Sampling
from inference.errors import InvalidField
from inference.options import DEFAULT_GUIDANCE_SCALE, DEFAULT_MAX_NEW_TOKENS
from inference.song import MAX_NEW_TOKENS
from inference.text.prompt import Prompt
from inference.vocabulary import EOA_ID, FIRST_CODE_ID, TRACKS

MIN_NEW_TOKENS = 100


@dataclass(frozen=True)
class Stage1Settings:
    """How stage 1 generates a song. Budgets count the new tokens of a section. `context` None is the model's own."""

    sampling: Sampling = field(default_factory=Sampling)
    guidance_scale: tuple[float, float] = DEFAULT_GUIDANCE_SCALE  # of the first section, of the later ones
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: int = MIN_NEW_TOKENS
    context: int | None = None


class Composition:
    """The tokens of one song in stage 1, and the context that is prefilled before each section."""

    def __init__(self, prompt: Prompt, settings: Stage1Settings, seed: int, context: int) -> None:
        """Raises InvalidField if a section with this budget does not fit into the context."""
        limit = min(context, settings.context or context) - settings.max_new_tokens - 1
        if settings.max_new_tokens > MAX_NEW_TOKENS or limit < 1:
            allowed = (
                f"up to {min(MAX_NEW_TOKENS, limit + settings.max_new_tokens - 1)}, which fits into the context window"
            )
            raise InvalidField("max_new_tokens", settings.max_new_tokens, allowed)
        self.settings = settings
        self.noise = Noise(seed, settings.sampling.n_top)
        self.sections: list[list[int]] = []  # the new tokens of each, including its closing <EOA>
        self.shortened = False  # a section was generated without the whole song before it
        self._prompt = prompt
        self._limit = limit
        self._sequence: list[int] = []
        self._starts: list[int] = []  # the positions of [start_of_segment] in the sequence
        self._section_open = False

    @property
    def finished(self) -> bool:
        """True once every section is complete."""
        return len(self.sections) == len(self._prompt.segments) and not self._section_open

    @property
    def n_tokens(self) -> int:
        """The number of new tokens in all sections."""
        return sum(map(len, self.sections))

    @property
    def section_frames(self) -> list[int]:
        """The number of frames in each section so far. A frame takes one token of each track."""
        return [(len(section) - section.count(EOA_ID)) // len(TRACKS) for section in self.sections]

    @property
    def n_frames(self) -> int:
        """The number of frames in all sections."""
        return sum(self.section_frames)

    @property
    def guidance_scale(self) -> float:
        """The guidance of the current section."""
        first, later = self.settings.guidance_scale
        return first if len(self.sections) == 1 else later

    @property
    def n_new(self) -> int:
        """The number of new tokens in the current section."""
        return len(self.sections[-1])

    @property
    def n_left(self) -> int:
        """The number of tokens that the current section may still have."""
        return self.settings.max_new_tokens - self.n_new

    def start_section(self) -> list[int]:
        """Start the next section. Returns the ids of its context, to be prefilled."""
        index = len(self.sections)
        self._starts.append(len(self._sequence) + self._prompt.starts[index])
        self._sequence += self._prompt.segments[index]
        self.sections.append([])
        self._section_open = True
        context = truncate_context(self._sequence, self._starts, self._limit)
        self.shortened |= len(context) < len(self._sequence)
        return context

    def append(self, token: int) -> bool:
        """Append a token to the current section. True if it ends the section."""
        section = self.sections[-1]
        section.append(token)
        if token != EOA_ID and len(section) < self.settings.max_new_tokens:
            return False
        if token != EOA_ID:
            section.append(EOA_ID)
        self._sequence += section
        self._section_open = False
        return True


def truncate_context(sequence: Sequence[int], starts: Sequence[int], limit: int) -> list[int]:
    """The ids of `sequence` for the model: all if they fit into `limit`, else the head and the latest sections.

    `starts` are the positions of every [start_of_segment]. The oldest section after the head is dropped first,

        head | section 0 | section 1 | section 2 | new        starts = s0 s1 s2 s3
        head |             section 1 | section 2 | new

    while at least three remain, including the new one. If that is still too long, the last `limit` ids are kept.
    """
    first_kept, length = 0, len(sequence)
    while length > limit and len(starts) - first_kept >= 3:
        length -= starts[first_kept + 1] - starts[first_kept]
        first_kept += 1
    kept = [*sequence[: starts[0]], *sequence[starts[first_kept] :]]
    return kept if len(kept) <= limit else kept[-limit:]


def deinterleave(sections: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The codes (T,) of the vocal and of the instrumental track.

    The tokens of a section alternate between vocal and instrumental. `<EOA>` and an odd last token are left out.
    """
    codes = []
    for section in sections:
        section_codes = [token - FIRST_CODE_ID for token in section if token != EOA_ID]
        codes += section_codes[: len(section_codes) // len(TRACKS) * len(TRACKS)]
    vocal, instrumental = torch.tensor(codes, dtype=torch.long).reshape(-1, len(TRACKS)).T.contiguous()
    return vocal, instrumental


def interleave(reference: Sequence[Tensor]) -> list[int]:
    """The ids of a reference: the codes (T,) of one track, or those of two tracks in turn, cut to the shorter one."""
    length = min(len(codes) for codes in reference)
    return (torch.stack([codes[:length] for codes in reference], dim=1).flatten() + FIRST_CODE_ID).tolist()
