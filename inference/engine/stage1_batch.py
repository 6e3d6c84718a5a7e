"""Stage 1 for many songs at once: each takes one token further with every pass through the model.

It knows nothing of lyrics or finite, and nothing of a song but its `Composition`.

A song has two rows, one with the prompt and one without it, for guidance. Both are fed the same tokens; the row without
a prompt begins with the prompt's last one:

    with the prompt      p p p p p p p p | x a b c d …
    without it                             x a b c d …

On a CPU the rows of the active songs are gathered for each token. On a GPU the step is recorded for the first rows of
both caches (`RecordedStage1Step`), and a whole window of tokens is drawn before the program looks at them. Tokens drawn
behind a section's end are discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.engine.cuda_graphs import Recorder, even
from inference.engine.sampling import (
    N_CANDIDATES,
    Samplers,
    Sampling,
    forbid_end,
    penalise,
    scores_of,
    seen_candidates,
    token_id,
    token_ids,
)
from inference.engine.stage1 import Composition
from inference.errors import EngineError
from inference.models.llama import PREFILL_CHUNK, Llama, Row, RowCache, StaticRows, agree, kept_length
from inference.song import MAX_NEW_TOKENS

TOKENS_A_WINDOW = 16  # drawn before the program looks at them
_TOKENS_A_REPORT = 16


@dataclass(eq=False)
class _Slot:
    """A song and its place in the batch."""

    song: Composition
    row: Row
    unprompted_row: Row
    unread: list[int] | None = None  # what is left of the context; None: the section has not begun
    ready: bool = False  # the whole context has been read, but for its last token
    token: int = 0  # what is fed next
    seen: Tensor = field(default_factory=lambda: torch.zeros(N_CANDIDATES, dtype=torch.bool))


class Stage1Batch:
    """The songs that stage 1 sings together.

    Who joins or leaves changes no other song: a song draws from its own noise, and its rows are computed as if alone.
    """

    def __init__(self, llama: Llama, max_songs: int, recorder: Recorder | None = None) -> None:
        context = llama.context
        self._llama = llama
        self._with_prompt = llama.new_cache(max_songs, context)
        self._without = llama.new_cache(max_songs, min(context, MAX_NEW_TOKENS + 1))
        self._slots: list[_Slot] = []
        self.reading: Composition | None = None  # whose prompt is being read, or for which memory ran out then
        self._samplers: Samplers | None = None  # of those who are ready, until that changes
        self.static = RecordedStage1Step(llama, self._with_prompt, self._without, recorder) if recorder else None

    @property
    def n_free(self) -> int:
        """How many more songs can join."""
        return self._with_prompt.n_free

    def join(self, song: Composition) -> None:
        """Sing this song too, from the next step on."""
        self._slots.append(_Slot(song, self._with_prompt.take(), self._without.take()))

    def leave(self, song: Composition) -> None:
        """Sing this song no further. Nothing happens to one that has been sung to its end."""
        for slot in [slot for slot in self._slots if slot.song is song]:
            self._slots.remove(slot)
            self._with_prompt.give_back(slot.row)
            self._without.give_back(slot.unprompted_row)
            self._note_change()

    def step(self) -> int:
        """Take every song a token further, or a window of them, or a chunk of its prompt; how many tokens at the most.

        Finished songs leave. Raises EngineError where the model's numbers are none. After a torch.OutOfMemoryError the
        step can be taken again: a row counts a token only once it holds it.
        """
        with torch.inference_mode():
            for slot in self._slots:
                if not slot.ready:
                    self.reading = slot.song
                    self._read(slot)
            self.reading = None
            ready = [slot for slot in self._slots if slot.ready]
            n_tokens = self._advance(ready) if ready else 1
        for slot in [slot for slot in self._slots if slot.song.finished]:
            self.leave(slot.song)
        return n_tokens

    def _read(self, slot: _Slot) -> None:
        """Read on in the section's context; the last chunk makes the slot ready."""
        if slot.unread is None:
            context = slot.song.begin_section()
            slot.unread, slot.token = context[:-1], context[-1]
            slot.seen = seen_candidates(context)
            slot.row.length = slot.unprompted_row.length = 0
        chunk = slot.unread[:PREFILL_CHUNK]
        if chunk:
            self._llama.forward([slot.row], torch.tensor([chunk], device=self._llama.device))
        slot.unread = slot.unread[len(chunk) :]
        if not slot.unread:
            slot.unread, slot.ready = None, True
        self._note_change()

    def _advance(self, slots: list[_Slot]) -> int:
        """One token for each of these slots, or a window of them."""
        drawn = self.static.draw(slots, self._slots) if self.static else None
        if drawn is None:
            drawn = self._draw(slots)[:, None]
        for slot, candidates in zip(slots, drawn.tolist(), strict=True):
            for row in (slot.row, slot.unprompted_row):
                row.length += len(candidates)
            self._take(slot, candidates)
        return drawn.shape[1]

    def _take(self, slot: _Slot, candidates: list[int]) -> None:
        """Give a song what was drawn for it, up to the end of its section."""
        taken = 0
        while slot.ready and taken < len(candidates):
            candidate = candidates[taken]
            taken += 1
            slot.seen[candidate] = True
            slot.token = token_id(candidate)
            if slot.song.append(slot.token):
                slot.ready = False
                self._note_change()
        slot.song.noise.advance(taken)

    def _draw(self, slots: list[_Slot]) -> Tensor:
        """Feed each slot's rows, which count it not yet, and choose its next candidate (S,)."""
        device = self._llama.device
        samplers = self._samplers = self._samplers or Samplers([slot.song.settings.sampling for slot in slots], device)
        noise = torch.ones(len(slots), samplers.n_ranks)
        for row, slot in zip(noise, slots, strict=True):
            drawn = slot.song.noise.ahead(1)[0]
            row[: len(drawn)] = drawn
        scales = torch.tensor([[slot.song.guidance_scale] for slot in slots], device=device)
        hidden = _plain_hidden(self._llama, slots, guided=bool((scales != 1).any()))
        scores = scores_of(self._llama.logits(hidden), scales)
        _require_finite(bool(torch.isfinite(scores).all()))
        seen = torch.stack([slot.seen for slot in slots]).to(device)
        too_short = torch.tensor([_too_short(slot.song) for slot in slots], device=device)
        return _chosen(scores, seen, too_short, samplers, noise.to(device))

    def _note_change(self) -> None:
        self._samplers = None
        if self.static:
            self.static.stale = True


class RecordedStage1Step:
    """The step for the songs in the first rows of both caches, on tensors that stay where they are.

    The program's own record of the songs is what counts: it is copied here when it changes otherwise than by a step.
    A row at rest is computed too; what comes of it is written behind its last token, where the next true one overwrites
    it.
    """

    def __init__(self, llama: Llama, with_prompt: RowCache, without: RowCache, recorder: Recorder) -> None:
        songs, device = with_prompt.n_free, llama.device
        self.stale = True
        self._llama, self._with_prompt, self._without = llama, with_prompt, without
        self._samplers = Samplers([Sampling()] * songs, device, N_CANDIDATES)
        self._seen = torch.zeros(songs, N_CANDIDATES, dtype=torch.bool, device=device)
        self._scales = torch.ones(songs, 1, device=device)
        # Of each song: whether it sings (1 or 0), what is fed, tokens of its section, the least of them, rows' lengths.
        self._counts = torch.zeros(6, even(songs), dtype=torch.long, device=device)
        self._noise = torch.ones(songs, TOKENS_A_WINDOW, N_CANDIDATES, device=device)
        self._noise_here = torch.ones(songs, TOKENS_A_WINDOW, N_CANDIDATES, pin_memory=device.type == "cuda")
        self._drawn = torch.zeros(songs, TOKENS_A_WINDOW, dtype=torch.long, device=device)
        self._taken = torch.zeros(1, dtype=torch.long, device=device)  # steps of the window
        self._finite = torch.ones((), dtype=torch.bool, device=device)  # whether all numbers were numbers
        self._hidden = torch.zeros(2, songs, llama.config.hidden_size, dtype=llama.dtype, device=device)
        self._verified: set[int] = set()  # buckets whose first step was compared
        self.recordings = recorder.recordings("stage 1", self._step, songs)

    def draw(self, slots: Sequence[_Slot], everyone: Sequence[_Slot]) -> Tensor | None:
        """A window of candidates (S, W) for these slots of `everyone` in the batch.

        Their rows have taken it in but count it not yet. None where the step is not recorded. Raises EngineError.
        """
        bucket = self.recordings.bucket(1 + max(slot.row.index for slot in everyone))
        if not self._ready_for(bucket, everyone):
            return None
        if self.stale:
            self._copy(everyone)
        verified = bucket in self._verified
        width = min(TOKENS_A_WINDOW, *(slot.song.n_left for slot in slots)) if verified else 1
        expected = None if verified else _plain_hidden(self._llama, slots, guided=True).unflatten(0, (2, len(slots)))
        self._begin_window(slots, bucket, width)
        for _ in range(width):
            self.recordings.replay(bucket)
        places = [slot.row.index for slot in slots]
        drawn = self._drawn[places, :width].cpu()
        _require_finite(bool(self._finite))
        if expected is not None and not agree(self._hidden[:, places], expected):
            self.recordings.give_up("the recorded step of stage 1 computes other numbers than the plain one")
            return None
        self._verified.add(bucket)
        return drawn

    def prepare(self, bucket: int, everyone: Sequence[_Slot] = ()) -> bool:
        """Record the step for so many songs, while `everyone` rests; whether it can be replayed."""
        self._copy(everyone)
        self._counts[0] = 0
        self._taken.zero_()
        self.stale = True
        return self.recordings.prepare(bucket)

    def _ready_for(self, bucket: int, everyone: Sequence[_Slot]) -> bool:
        if bucket in self.recordings.missing:
            return self.prepare(bucket, everyone)
        return self.recordings.ready(bucket)

    def _step(self, bucket: int) -> None:
        active, fed, n_new, least, length, length_without = self._counts[:, :bucket]
        samplers, seen = self._samplers.first(bucket), self._seen[:bucket]
        static_rows = [StaticRows(self._with_prompt, length), StaticRows(self._without, length_without)]
        hidden = self._llama.static_forward(static_rows, fed.repeat(2)[:, None])
        scores = scores_of(self._llama.logits(hidden), self._scales[:bucket])
        noise = self._noise[:bucket].index_select(1, self._taken).squeeze(1)
        chosen = _chosen(scores, seen, n_new < least, samplers, noise)
        finite = torch.isfinite(scores).all(-1) | (active == 0)
        self._finite.logical_and_(finite.all())
        self._hidden[:, :bucket] = hidden.unflatten(0, (2, bucket))
        self._drawn[:bucket].index_copy_(1, self._taken, chosen[:, None])
        self._taken.add_(1)
        here = chosen[:, None]
        seen.scatter_(1, here, seen.gather(1, here) | (active > 0)[:, None])
        fed.copy_(torch.where(active > 0, token_ids(chosen), fed))
        for count in (n_new, length, length_without):
            count.add_(active)

    def _copy(self, everyone: Sequence[_Slot]) -> None:
        """Bring the program's record of the slots here."""
        songs, device = len(self._seen), self._llama.device
        settings, counts = [Sampling()] * songs, torch.zeros(self._counts.shape, dtype=torch.long)
        seen, scales = torch.zeros(songs, N_CANDIDATES, dtype=torch.bool), torch.ones(songs, 1)
        for slot in everyone:
            place, song = slot.row.index, slot.song
            assert place == slot.unprompted_row.index, "a song has the same place in both caches"
            counts[4:, place] = torch.tensor([slot.row.length, slot.unprompted_row.length])
            if slot.ready:
                counts[:4, place] = torch.tensor([1, slot.token, song.n_new, song.settings.min_new_tokens])
                settings[place], seen[place], scales[place] = song.settings.sampling, slot.seen, song.guidance_scale
        samplers = Samplers(settings, device, N_CANDIDATES)
        for here, there in zip(self._samplers.columns(), samplers.columns(), strict=True):
            here.copy_(there)
        self._seen.copy_(seen)
        self._scales.copy_(scales)
        self._counts.copy_(counts)
        self.stale = False

    def _begin_window(self, slots: Sequence[_Slot], bucket: int, width: int) -> None:
        for slot in slots:
            ahead = slot.song.noise.ahead(width)
            self._noise_here[slot.row.index, :width, : ahead.shape[1]] = ahead
        self._noise[:bucket, :width].copy_(self._noise_here[:bucket, :width], non_blocking=True)
        self._taken.zero_()
        self._finite.fill_(True)


def compose(
    llama: Llama, song: Composition, report: Callable[[int, int], None], recorder: Recorder | None = None
) -> None:
    """Sing every section of one song. `report(section, tokens)` is called every few tokens and may raise to stop."""
    batch = Stage1Batch(llama, max_songs=1, recorder=recorder)
    batch.join(song)
    while not song.finished:
        batch.step()
        if song.n_tokens % _TOKENS_A_REPORT == 0 or song.finished:
            report(len(song.sections), song.n_tokens)


def _plain_hidden(llama: Llama, slots: Sequence[_Slot], guided: bool) -> Tensor:
    """Feed each slot's rows: hidden states (2 S, H) of those with the prompt and those without it; (S, H) unguided.

    The rows have taken it in but count it not yet.
    """
    rows = [slot.row for slot in slots]
    if guided:
        rows += [slot.unprompted_row for slot in slots]
    fed = torch.tensor([slot.token for slot in slots], device=llama.device).repeat(2 if guided else 1)
    with kept_length(rows):
        return llama.forward(rows, fed[:, None])


def _chosen(scores: Tensor, seen: Tensor, too_short: Tensor, samplers: Samplers, noise: Tensor) -> Tensor:
    """One candidate for each song (S,), from its guided scores (S, 1025)."""
    return samplers.draw(forbid_end(penalise(scores, seen, samplers.penalty), too_short), noise)


def _too_short(song: Composition) -> bool:
    return song.n_new < song.settings.min_new_tokens


def _require_finite(finite: bool) -> None:
    if not finite:
        raise EngineError("stage 1 computed scores that are not numbers")
