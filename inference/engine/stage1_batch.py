"""Runs stage 1 for many songs at once: each forward pass decodes one token of every song.

Independent of lyrics and audio: a song is its `Composition`.

For guidance a song has two rows, one with the prompt (conditional) and one without (unconditional). Both are fed the
same tokens; the unconditional row starts with the prompt's last one:

    conditional          p p p p p p p p | x a b c d …
    unconditional                          x a b c d …

On a CPU an eager step takes the rows of the active songs. On a GPU the step is recorded for the first rows of both
caches (`RecordedStage1Step`), and up to 16 tokens are decoded before the host reads them. Tokens after the end of a
section are discarded.

In shapes, S is the number of songs, H the hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.engine.cuda_graphs import GraphRecorder, RecordedStep, require_finite
from inference.engine.sampling import (
    N_CANDIDATES,
    Samplers,
    Sampling,
    forbid_end,
    guided_logits,
    penalise,
    seen_candidates,
    token_id,
    token_ids,
)
from inference.engine.stage1 import Composition
from inference.models.llama import PREFILL_CHUNK, Llama, Row, RowCache, StaticRows, kept_length
from inference.song import MAX_NEW_TOKENS

NAME = "stage 1"
TOKENS_PER_SYNC = 16  # decoded before the host reads them


@dataclass(eq=False)
class Stage1Slot:
    """A song in the batch, with its two cache rows."""

    song: Composition
    row: Row
    unconditional_row: Row
    pending_prompt: list[int] | None = None  # the context that is not prefilled yet; None: the section has not started
    prefilled: bool = False  # the whole context is in the KV cache, except for its last token
    token: int = 0  # fed next
    seen: Tensor = field(default_factory=lambda: torch.zeros(N_CANDIDATES, dtype=torch.bool))  # (1025,)

    @property
    def index(self) -> int:
        """The song's row in both caches."""
        assert self.row.index == self.unconditional_row.index, "a song has the same row in both caches"
        return self.row.index

    @property
    def n_left(self) -> int:
        """The number of tokens that the section may still have."""
        return self.song.n_left


class Stage1Batch:
    """The songs that are in stage 1.

    Songs that join or leave do not affect the others: a song has its own random numbers, and its rows are computed as
    if it were alone.
    """

    def __init__(self, llama: Llama, max_songs: int, recorder: GraphRecorder | None = None) -> None:
        context = llama.context
        self._llama = llama
        self._conditional = llama.new_cache(max_songs, context)
        self._unconditional = llama.new_cache(max_songs, min(context, MAX_NEW_TOKENS + 1))
        self._slots: list[Stage1Slot] = []
        self.prefilling: Composition | None = None  # the song in prefill, also after its prefill failed
        self._samplers: Samplers | None = None  # of the prefilled songs; None after a change of them
        caches = self._conditional, self._unconditional
        self.recorded = RecordedStage1Step(llama, *caches, recorder) if recorder else None

    @property
    def n_free(self) -> int:
        """How many more songs can join."""
        return self._conditional.n_free

    def join(self, song: Composition) -> None:
        """Add a song. It takes part from the next step on."""
        self._slots.append(Stage1Slot(song, self._conditional.take(), self._unconditional.take()))

    def leave(self, song: Composition) -> None:
        """Remove a song. Does nothing for a finished song, which has left already."""
        for slot in [slot for slot in self._slots if slot.song is song]:
            self._slots.remove(slot)
            self._conditional.give_back(slot.row)
            self._unconditional.give_back(slot.unconditional_row)
            self._note_change()

    def step(self) -> int:
        """Prefill one chunk or decode up to 16 tokens of every song. Returns the largest number of tokens per song.

        Finished songs leave. Raises EngineError for non-finite logits. After a torch.OutOfMemoryError the step can be
        repeated: a row counts a token only when it holds it.
        """
        with torch.inference_mode():
            for slot in self._slots:
                if not slot.prefilled:
                    self.prefilling = slot.song
                    self._prefill(slot)
            self.prefilling = None
            prefilled = [slot for slot in self._slots if slot.prefilled]
            n_tokens = self._advance(prefilled) if prefilled else 1
        for slot in [slot for slot in self._slots if slot.song.finished]:
            self.leave(slot.song)
        return n_tokens

    def _prefill(self, slot: Stage1Slot) -> None:
        """Prefill the next chunk of the section's context."""
        if slot.pending_prompt is None:
            context = slot.song.start_section()
            slot.pending_prompt, slot.token = context[:-1], context[-1]
            slot.seen = seen_candidates(context)
            slot.row.length = slot.unconditional_row.length = 0
        chunk = slot.pending_prompt[:PREFILL_CHUNK]
        if chunk:
            self._llama.forward([slot.row], torch.tensor([chunk], device=self._llama.device))
        slot.pending_prompt = slot.pending_prompt[len(chunk) :]
        if not slot.pending_prompt:
            slot.pending_prompt, slot.prefilled = None, True
        self._note_change()

    def _advance(self, slots: list[Stage1Slot]) -> int:
        """Decode one token, or up to 16 in recorded steps, for each of the slots."""
        drawn = self.recorded.draw(slots, self._slots) if self.recorded else None  # (S, n_steps)
        if drawn is None:
            drawn = self._eager_step(slots)[:, None]
        for slot, candidates in zip(slots, drawn.tolist(), strict=True):
            for row in (slot.row, slot.unconditional_row):
                row.length += len(candidates)
            self._take(slot, candidates)
        return drawn.shape[1]

    def _take(self, slot: Stage1Slot, candidates: list[int]) -> None:
        """Append the candidates to the song, up to the end of its section."""
        taken = 0
        while slot.prefilled and taken < len(candidates):
            candidate = candidates[taken]
            taken += 1
            slot.seen[candidate] = True
            slot.token = token_id(candidate)
            if slot.song.append(slot.token):
                slot.prefilled = False
                self._note_change()
        slot.song.noise.advance(taken)

    def _eager_step(self, slots: list[Stage1Slot]) -> Tensor:
        """Take an eager step: the next candidates (S,). The rows hold the fed token, but do not count it yet."""
        device = self._llama.device
        samplers = self._samplers = self._samplers or Samplers([slot.song.settings.sampling for slot in slots], device)
        noise = torch.ones(len(slots), samplers.n_top)
        for row, slot in zip(noise, slots, strict=True):
            drawn = slot.song.noise.ahead(1)[0]
            row[: len(drawn)] = drawn
        scales = torch.tensor([[slot.song.guidance_scale] for slot in slots], device=device)
        hidden = _eager_hidden(self._llama, slots, guided=bool((scales != 1).any()))
        logits = guided_logits(self._llama.logits(hidden), scales)
        require_finite(NAME, bool(torch.isfinite(logits).all()))
        seen = torch.stack([slot.seen for slot in slots]).to(device)
        too_short = torch.tensor([_too_short(slot.song) for slot in slots], device=device)
        return _sample(logits, seen, too_short, samplers, noise.to(device))

    def _note_change(self) -> None:
        self._samplers = None
        if self.recorded:
            self.recorded.stale = True


class RecordedStage1Step(RecordedStep[Stage1Slot]):
    """One token for the songs in the first rows of both caches."""

    steps_per_sync = TOKENS_PER_SYNC
    tolerance = 0.05

    def __init__(self, llama: Llama, conditional: RowCache, unconditional: RowCache, recorder: GraphRecorder) -> None:
        songs, device = conditional.n_free, llama.device
        # Counts (6, S): active (1 or 0), the token to feed, the section's new tokens and their minimum, the
        # lengths of the conditional and the unconditional row.
        super().__init__(NAME, llama, recorder, songs, n_counts=6)
        self._conditional, self._unconditional = conditional, unconditional
        self._samplers = Samplers([Sampling()] * songs, device, N_CANDIDATES)
        self._seen = torch.zeros(songs, N_CANDIDATES, dtype=torch.bool, device=device)
        self._scales = torch.ones(songs, 1, device=device)
        self._noise = torch.ones(songs, TOKENS_PER_SYNC, N_CANDIDATES, device=device)
        self._host_noise = torch.ones(songs, TOKENS_PER_SYNC, N_CANDIDATES, pin_memory=device.type == "cuda")
        self._drawn = torch.zeros(songs, TOKENS_PER_SYNC, dtype=torch.long, device=device)
        self._hidden = torch.zeros(2, songs, llama.config.hidden_size, dtype=llama.dtype, device=device)

    def _step(self, batch_size: int) -> None:
        active, fed, n_new, min_new, length, unconditional_length = self._counts[:, :batch_size]
        samplers, seen = self._samplers.first(batch_size), self._seen[:batch_size]
        static_rows = [StaticRows(self._conditional, length), StaticRows(self._unconditional, unconditional_length)]
        hidden = self._llama.static_forward(static_rows, fed.repeat(2)[:, None])
        logits = guided_logits(self._llama.logits(hidden), self._scales[:batch_size])
        noise = self._noise[:batch_size].index_select(1, self._taken).squeeze(1)
        chosen = _sample(logits, seen, n_new < min_new, samplers, noise)
        finite = torch.isfinite(logits).all(-1) | (active == 0)
        self._finite.logical_and_(finite.all())
        self._hidden[:, :batch_size] = hidden.unflatten(0, (2, batch_size))
        self._drawn[:batch_size].index_copy_(1, self._taken, chosen[:, None])
        self._taken.add_(1)
        column = chosen[:, None]
        seen.scatter_(1, column, seen.gather(1, column) | (active > 0)[:, None])
        fed.copy_(torch.where(active > 0, token_ids(chosen), fed))
        for count in (n_new, length, unconditional_length):
            count.add_(active)

    def _copy(self, everyone: Sequence[Stage1Slot]) -> None:
        songs, device = len(self._seen), self._llama.device
        settings, counts = [Sampling()] * songs, torch.zeros(self._counts.shape, dtype=torch.long)
        seen, scales = torch.zeros(songs, N_CANDIDATES, dtype=torch.bool), torch.ones(songs, 1)
        for slot in everyone:
            i, song = slot.index, slot.song
            counts[4:, i] = torch.tensor([slot.row.length, slot.unconditional_row.length])
            if slot.prefilled:
                counts[:4, i] = torch.tensor([1, slot.token, song.n_new, song.settings.min_new_tokens])
                settings[i], seen[i], scales[i] = song.settings.sampling, slot.seen, song.guidance_scale
        samplers = Samplers(settings, device, N_CANDIDATES)
        for target, source in zip(self._samplers.columns(), samplers.columns(), strict=True):
            target.copy_(source)
        self._seen.copy_(seen)
        self._scales.copy_(scales)
        self._counts.copy_(counts)

    def _before_replays(self, active: Sequence[Stage1Slot], batch_size: int, n_steps: int) -> None:
        for slot in active:
            ahead = slot.song.noise.ahead(n_steps)
            self._host_noise[slot.index, :n_steps, : ahead.shape[1]] = ahead
        self._noise[:batch_size, :n_steps].copy_(self._host_noise[:batch_size, :n_steps], non_blocking=True)

    def _eager_hidden(self, active: Sequence[Stage1Slot]) -> Tensor:
        return _eager_hidden(self._llama, active, guided=True).unflatten(0, (2, len(active)))


def _eager_hidden(llama: Llama, slots: Sequence[Stage1Slot], guided: bool) -> Tensor:
    """Feed each slot's token. Returns hidden states (2 S, H), conditional rows first; (S, H) if not `guided`.

    The rows hold the token, but do not count it yet.
    """
    rows = [slot.row for slot in slots]
    if guided:
        rows += [slot.unconditional_row for slot in slots]
    fed = torch.tensor([slot.token for slot in slots], device=llama.device).repeat(2 if guided else 1)
    with kept_length(rows):
        return llama.forward(rows, fed[:, None])


def _sample(logits: Tensor, seen: Tensor, too_short: Tensor, samplers: Samplers, noise: Tensor) -> Tensor:
    """One candidate for each song (S,), from its guided logits (S, 1025)."""
    return samplers.draw(forbid_end(penalise(logits, seen, samplers.penalty), too_short), noise)


def _too_short(song: Composition) -> bool:
    return song.n_new < song.settings.min_new_tokens
