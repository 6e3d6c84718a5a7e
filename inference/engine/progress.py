"""How far a song is, as one number that never falls, and how long the rest will take, as one that never rises.

It does not know how the stages work. What it says rests on how long the song's sections are expected to become, on how
fast tokens came of late, and on how long everything behind stage 1 took with the songs before, beside their stage 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from inference.song import STAGES, Progress

TOKENS_PER_SECOND = 100  # of audio: 50 frames of two tracks
SECONDS_FOR_WORDS = 2.0  # of a section, for each second that its words take to sing: there is music around them
SECONDS_AROUND, SHORTEST_SECONDS = 5.0, 15.0  # of a section beside its words, and without any
OVERRUN_SHARE = 0.2  # a section that becomes longer than expected has so much of what is left of its budget to come
HALF_LIFE_S = 20.0  # in which what was measured counts half: other songs come and go
MEASURED_S, MEASURED_SHARE = 3.0, 0.03  # of stage 1, before its rate says anything
REST = {"stage2": 0.85, "decode": 0.1, "encode": 0.05}  # of what comes behind stage 1, by its stages


@dataclass
class RestShare:
    """How long everything behind stage 1 takes, for each second of stage 1: expected at first, then learned."""

    value: float

    def note(self, timings: dict[str, float]) -> None:
        """A song took so long in each stage."""
        rest = sum(timings.get(stage, 0.0) for stage in REST)
        if timings.get("stage1"):
            self.value = (self.value + rest / timings["stage1"]) / 2


def expected_tokens(singing_seconds: float, max_new_tokens: int) -> float:
    """How many tokens a section is expected to have whose words take so long to sing."""
    seconds = max(SHORTEST_SECONDS, SECONDS_FOR_WORDS * singing_seconds + SECONDS_AROUND)
    return min(float(max_new_tokens), seconds * TOKENS_PER_SECOND)


def tokens_left(lengths: Sequence[float], section: int, before: int, inside: int, max_new_tokens: int) -> float:
    """How many tokens stage 1 has still to make in `section` (1 …) and the later ones.

    `lengths` are the sections' expected ones. `before` is how many the done sections have: as they became longer or
    shorter than expected, so will the others, as if one of the usual length had come with them. `inside` is how many
    this section has; where it overruns what was expected, the rest of its budget shrinks towards nothing.
    """
    usual = sum(lengths) / len(lengths)
    scale = (before + usual) / (sum(lengths[: section - 1]) + usual)
    here, *later = (min(float(max_new_tokens), scale * length) for length in lengths[section - 1 :])
    return max(here - inside, OVERRUN_SHARE * (max_new_tokens - inside)) + sum(later)


def counted_down(shown: float | None, elapsed_s: float, estimate: float) -> float:
    """What a countdown shows `elapsed_s` after it showed `shown`, now that so much is estimated to be left.

    It follows a smaller estimate at once. It never rises towards a larger one, but falls the more slowly the larger
    that is, so that both end together.
    """
    if shown is None or estimate <= 0:
        return max(0.0, estimate)
    pace = min(1.0, shown / (estimate + elapsed_s)) ** 2
    return min(estimate, shown - pace * elapsed_s)


class ProgressTracker:
    """One song's progress. `observe` is called with each change; what it raises ends the song.

    Stages overlap: the shown one is the earliest that is not done, and the time until the next begins is its time.
    `lengths` are the tokens that the sections are expected to have.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        max_new_tokens: int,
        observe: Callable[[Progress], None],
        rest: RestShare,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timings: dict[str, float] = {}
        self._lengths, self._max_new_tokens, self._rest = lengths, max_new_tokens, rest
        self._observe, self._clock = observe, clock
        self._stage_began = self._seen_at = clock()
        self._shown = Progress(stage="", sections=len(lengths))
        self._done = dict.fromkeys(STAGES, 0.0)  # of each stage
        self._tokens_before = 0  # of the sections that are done
        self._tokens_left = sum(lengths)
        self._lately_s = self._lately_tokens = self._measured_s = 0.0  # of stage 1
        self._rest_began: tuple[float, float] | None = None  # when only the rest was to do, and how much of it was done
        self._countdown: float | None = None
        self._counted_at = self._seen_at

    @property
    def stage(self) -> str:
        """The stage that is shown."""
        return self._shown.stage

    @property
    def expected_tokens(self) -> float:
        """How many tokens stage 1 is expected to make in all."""
        return self._shown.tokens + self._tokens_left

    def enter(self, stage: str) -> None:
        """Every stage before `stage` is done."""
        self._close_stage()
        for earlier in STAGES[: STAGES.index(stage)]:
            self._done[earlier] = 1.0
        if self._done["stage1"] == 1:
            self._tokens_left = 0.0
        self._show(stage=stage, section=int(stage == "stage1"))

    def finish(self) -> None:
        """The song is done."""
        self._close_stage()
        self._rest.note(self.timings)
        self._done = dict.fromkeys(STAGES, 1.0)
        self._show()

    def sung(self, section: int, tokens: int) -> None:
        """Stage 1 is in `section` (1 …), with `tokens` in all sections together."""
        if section != self._shown.section:
            self._tokens_before = self._shown.tokens
        self._measure(tokens - self._shown.tokens)
        inside = tokens - self._tokens_before
        self._tokens_left = tokens_left(self._lengths, section, self._tokens_before, inside, self._max_new_tokens)
        self._done["stage1"] = tokens / (tokens + self._tokens_left)
        self._show(section=section, tokens=tokens)

    def upsampled(self, rows: int, frames: int, of_stage: float) -> None:
        """Stage 2 has finished `rows` and `frames`, which is `of_stage` (0 … 1) of all it will have to do."""
        self._done["stage2"] = max(self._done["stage2"], min(1.0, of_stage))
        if self._done["stage1"] == 1 and self._rest_began is None:
            self._rest_began = self._clock(), self._rest_done()
        if (rows, frames) != (self._shown.rows, self._shown.frames):
            self._show(rows=rows, frames=frames)

    def decoded(self, of_stage: float) -> None:
        """Sound has been made of `of_stage` (0 … 1) of the song."""
        if of_stage > self._done["decode"]:
            self._done["decode"] = min(1.0, of_stage)
            self._show()

    def _close_stage(self) -> None:
        now = self._clock()
        if self._shown.stage:
            self.timings[self._shown.stage] = round(now - self._stage_began, 3)
        self._stage_began = now

    def _measure(self, new_tokens: int) -> None:
        """Time without tokens is that of the prompt, of waiting, or of another stage."""
        now = self._clock()
        if new_tokens > 0 and self._shown.tokens:
            elapsed_s = now - self._seen_at
            kept = 0.5 ** (elapsed_s / HALF_LIFE_S)
            self._lately_s = kept * self._lately_s + elapsed_s
            self._lately_tokens = kept * self._lately_tokens + new_tokens
            self._measured_s += elapsed_s
        self._seen_at = now

    def _rest_done(self) -> float:
        """How much is done of all that comes behind stage 1."""
        return sum(share * self._done[stage] for stage, share in REST.items())

    def _estimate(self) -> float | None:
        """The seconds until the song is done; None while too little has been measured."""
        if self._measured_s < MEASURED_S or self._shown.tokens < MEASURED_SHARE * self.expected_tokens:
            return None
        seconds_per_token = self._lately_s / self._lately_tokens
        rest_s = self._rest.value * seconds_per_token * self.expected_tokens
        if self._done["stage1"] < 1:
            return seconds_per_token * self._tokens_left + rest_s * (1 - self._rest_done())
        if self._rest_began is None:
            return rest_s * (1 - self._rest_done())
        began, done_before = self._rest_began
        elapsed_s, done = self._clock() - began, self._rest_done() - done_before
        expected_s = max(rest_s * (1 - done_before) - elapsed_s, OVERRUN_SHARE * rest_s * (1 - self._rest_done()))
        measured_s = elapsed_s * (1 - self._rest_done()) / done if done else expected_s
        weight = done / (1 - done_before)  # of what was measured: nothing at first, all at last
        return weight * measured_s + (1 - weight) * expected_s

    def _show(self, **changes: object) -> None:
        ahead = self._rest.value / (1 + self._rest.value)  # of the song's time: what comes behind stage 1
        fraction = (1 - ahead) * self._done["stage1"] + ahead * self._rest_done()
        fraction = 1.0 if self._done["encode"] == 1 else max(self._shown.fraction, min(0.999, round(fraction, 4)))
        now = self._clock()
        estimate = 0.0 if fraction == 1 else self._estimate()
        if estimate is not None:
            self._countdown = counted_down(self._countdown, now - self._counted_at, estimate)
        self._counted_at = now
        left = None if self._countdown is None else round(self._countdown, 1)
        self._shown = replace(self._shown, fraction=fraction, seconds_left=left, **changes)  # type: ignore[arg-type]
        self._observe(self._shown)
