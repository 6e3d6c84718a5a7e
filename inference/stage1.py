"""Stage 1: prompt ids in, codebook 0 of both tracks out, section by section, for any number of songs at once.

It knows nothing of lyrics, of the other codebooks or of sound. `Composition` holds one song's tokens and decides what
comes next; `Choir` takes all songs one token further with each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.errors import EngineError
from inference.llama import PREFILL_CHUNK, Llama, Row
from inference.prompt import Prompt
from inference.sampling import (
    N_CANDIDATES,
    Noise,
    Samplers,
    Sampling,
    forbid_end,
    guide,
    penalise,
    seen_candidates,
    token_id,
    unguided,
)
from inference.song import MAX_NEW_TOKENS
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
        assert settings.max_new_tokens <= MAX_NEW_TOKENS, "a budget that no row has room for"
        self.settings = settings
        self.noise = Noise(seed, settings.sampling.n_ranks)
        self.sections: list[list[int]] = []  # the new tokens of each, its closing <EOA> included
        self.shortened = False  # whether a section had to be sung without all of the song before it
        self._prompt = prompt
        self._limit = min(context, settings.context or context) - settings.max_new_tokens - 1
        self._sequence: list[int] = []
        self._starts: list[int] = []  # where each [start_of_segment] stands in the sequence
        self._section_open = False

    @property
    def finished(self) -> bool:
        """Whether every section has been sung to its end."""
        return len(self.sections) == len(self._prompt.segments) and not self._section_open

    @property
    def n_tokens(self) -> int:
        """How many tokens have been sung, in all sections together."""
        return sum(map(len, self.sections))

    @property
    def section_frames(self) -> list[int]:
        """How many frames each section has so far; a token without its partner is none."""
        return [(len(section) - section.count(EOA_ID)) // len(TRACKS) for section in self.sections]

    @property
    def n_frames(self) -> int:
        """How many frames have been sung."""
        return sum(self.section_frames)

    @property
    def guidance_scale(self) -> float:
        """The guidance of the section that is being sung."""
        first, later = self.settings.guidance_scale
        return first if len(self.sections) == 1 else later

    @property
    def may_end(self) -> bool:
        """Whether the section is long enough to end."""
        return len(self.sections[-1]) >= self.settings.min_new_tokens

    def begin_section(self) -> list[int]:
        """Open the next section; the ids that the model has to read for it."""
        index = len(self.sections)
        self._starts.append(len(self._sequence) + self._prompt.starts[index])
        self._sequence += self._prompt.segments[index]
        self.sections.append([])
        self._section_open = True
        context = window(self._sequence, self._starts, self._limit)
        self.shortened |= len(context) < len(self._sequence)
        return context

    def append(self, token: int) -> bool:
        """Take a token into the section; whether that was its last."""
        section = self.sections[-1]
        section.append(token)
        if token != EOA_ID and len(section) < self.settings.max_new_tokens:
            return False
        if token != EOA_ID:
            section.append(EOA_ID)
        self._sequence += section
        self._section_open = False
        return True


class Choir:
    """The songs that stage 1 sings together: a row with the prompt and a row without it for each.

    Who joins or leaves changes no other song: a song draws from its own noise, and its rows are computed as if alone.
    """

    def __init__(self, llama: Llama, max_songs: int) -> None:
        context = llama.context
        self._llama = llama
        self._with_prompt = llama.new_cache(max_songs, context)
        self._without = llama.new_cache(max_songs, min(context, MAX_NEW_TOKENS + 1))
        self._singers: list[_Singer] = []
        self._samplers: Samplers | None = None  # of the singers who are ready; None: they have changed

    @property
    def n_free(self) -> int:
        """How many more songs can join."""
        return self._with_prompt.n_free

    def join(self, song: Composition) -> None:
        """Sing this song too, from its next section on."""
        self._singers.append(_Singer(song, self._with_prompt.take(), self._without.take()))

    def leave(self, song: Composition) -> None:
        """Sing this song no further. Nothing happens to one that has been sung to its end."""
        for singer in [singer for singer in self._singers if singer.song is song]:
            self._singers.remove(singer)
            self._with_prompt.give_back(singer.row)
            self._without.give_back(singer.unprompted_row)
            self._samplers = None

    def step(self) -> None:
        """Take every song one token further, or, where a section begins, one chunk of its prompt. Finished songs leave.

        Raises EngineError where the model's numbers are none. After a torch.OutOfMemoryError the step can be taken
        again: a row counts a token only once it holds it.
        """
        with torch.inference_mode():
            self._feed([singer for singer in self._singers if singer.unfed is not None])
            for singer in self._singers:
                if not singer.ready:
                    self._read(singer)
            ready = [singer for singer in self._singers if singer.ready]
            if ready:
                self._sing(ready)
        for singer in [singer for singer in self._singers if singer.song.finished]:
            self.leave(singer.song)

    def _read(self, singer: _Singer) -> None:
        """Read on in the section's context; the last chunk makes the singer ready."""
        if singer.unread is None:
            singer.unread = singer.song.begin_section()
            singer.seen = seen_candidates(singer.unread)
            singer.row.length = singer.unprompted_row.length = 0
        chunk, rest = singer.unread[:PREFILL_CHUNK], singer.unread[PREFILL_CHUNK:]
        device = self._llama.device
        unprompted = []
        if not rest and singer.guided:  # before the chunk: where that finds no memory, this is simply done again
            singer.unprompted_row.length = 0
            last = torch.tensor([chunk[-1:]], device=device)
            unprompted = [self._llama.forward([singer.unprompted_row], last)]
        hidden = self._llama.forward([singer.row], torch.tensor([chunk], device=device))
        singer.hidden, singer.unread = torch.cat([hidden, *unprompted]), rest or None
        if not rest:
            singer.ready, self._samplers = True, None

    def _sing(self, singers: list[_Singer]) -> None:
        """Choose a token for each singer; it is fed with the next step where the section goes on."""
        candidates = self._choose(singers).tolist()
        for singer, candidate in zip(singers, candidates, strict=True):
            singer.seen[candidate] = True
            token = token_id(candidate)
            if singer.song.append(token):
                singer.ready = False
                self._samplers = None
            else:
                singer.unfed = token

    def _choose(self, singers: list[_Singer]) -> Tensor:
        """One candidate for each singer (S,), from the hidden states of its rows."""
        samplers = self._samplers = self._samplers or Samplers(
            [singer.song.settings.sampling for singer in singers], self._llama.device
        )
        scores = self._scores(singers)
        if not torch.isfinite(scores).all():
            raise EngineError("stage 1 computed scores that are not numbers")
        seen = torch.stack([singer.seen for singer in singers]).to(scores.device)
        scores = penalise(scores, seen, samplers.penalty)
        scores = forbid_end(scores, torch.tensor([not singer.song.may_end for singer in singers]))
        noise = torch.ones(len(singers), samplers.n_ranks)
        for row, singer in zip(noise, singers, strict=True):
            drawn = singer.song.noise.next()
            row[: len(drawn)] = drawn
        return samplers.draw(scores, noise.to(scores.device))

    def _scores(self, singers: list[_Singer]) -> Tensor:
        """The scores (S, 1025) of all songs: one matrix product for the rows of both kinds."""
        guided = [i for i, singer in enumerate(singers) if singer.guided]
        hidden = [singer.hidden[:1] for singer in singers] + [singers[i].hidden[1:] for i in guided]
        logits = self._llama.logits(torch.cat(hidden))
        conditional, unconditional = logits[: len(singers)], logits[len(singers) :]
        scales = torch.tensor([[singers[i].song.guidance_scale] for i in guided], device=logits.device)
        if len(guided) == len(singers):
            return guide(conditional, unconditional, scales)
        scores = unguided(conditional)
        if guided:
            scores[guided] = guide(conditional[guided], unconditional, scales)
        return scores

    def _feed(self, singers: list[_Singer]) -> None:
        """Give the rows of these singers the token that was chosen last."""
        if not singers:
            return
        guided = [singer for singer in singers if singer.guided]
        rows = [singer.row for singer in singers] + [singer.unprompted_row for singer in guided]
        tokens = torch.tensor([singer.unfed for singer in [*singers, *guided]], device=self._llama.device)
        hidden = self._llama.forward(rows, tokens[:, None])
        unprompted = iter(hidden[len(singers) :, None])
        for singer, with_prompt in zip(singers, hidden[: len(singers), None], strict=True):
            singer.hidden = torch.cat([with_prompt, next(unprompted)]) if singer.guided else with_prompt
            singer.unfed = None


@dataclass(eq=False)
class _Singer:
    """A song and its place in the choir."""

    song: Composition
    row: Row
    unprompted_row: Row
    unread: list[int] | None = None  # what is left of the context; None: the section has not begun
    ready: bool = False  # the whole context has been read
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))  # (1 or 2, H) of its rows
    seen: Tensor = field(default_factory=lambda: torch.zeros(N_CANDIDATES, dtype=torch.bool))
    unfed: int | None = None  # the token that was chosen last

    @property
    def guided(self) -> bool:
        return self.song.guidance_scale != 1


def compose(llama: Llama, song: Composition, report: Callable[[int, int], None]) -> None:
    """Sing every section of one song. `report(section, tokens)` is called every few tokens and may raise to stop."""
    choir = Choir(llama, max_songs=1)
    choir.join(song)
    while not song.finished:
        choir.step()
        if song.n_tokens % _TOKENS_A_REPORT == 0 or song.finished:
            report(len(song.sections), song.n_tokens)


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


def tracks(sections: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Codes (T,) of the vocal and the instrumental track.

    A section's tokens alternate vocal, instrumental; `<EOA>` and an odd last token are left out.
    """
    codes = []
    for section in sections:
        spoken = [token - FIRST_CODE_ID for token in section if token != EOA_ID]
        codes += spoken[: len(spoken) // len(TRACKS) * len(TRACKS)]
    vocal, instrumental = torch.tensor(codes, dtype=torch.long).reshape(-1, len(TRACKS)).T.contiguous()
    return vocal, instrumental


def interleave(reference: Sequence[Tensor]) -> list[int]:
    """Ids of a reference: one row of codes as it is, or two rows alternating, cut to the shorter."""
    length = min(len(codes) for codes in reference)
    return (torch.stack([codes[:length] for codes in reference], dim=1).flatten() + FIRST_CODE_ID).tolist()
