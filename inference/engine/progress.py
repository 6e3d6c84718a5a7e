"""Estimates how far a song is (a fraction that never falls) and the seconds left (which never rise).

The estimates use the expected lengths of the sections, the recent token rate, and how long earlier songs took after
stage 1 in proportion to stage 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from inference.song import STAGES, Progress
from inference.text.lyrics import expected_seconds
from inference.vocabulary import TOKENS_PER_SECOND

OVERRUN_SHARE = 0.2  # of the remaining budget, when a section is longer than expected
HALF_LIFE_S = 20.0  # of a measurement's weight: the rate changes as other songs join and leave
MEASURED_S, MEASURED_SHARE = 3.0, 0.03  # of stage 1, until its rate is used
TAIL = {"stage2": 0.85, "decode": 0.1, "encode": 0.05}  # the stages after stage 1 and their shares of the time


@dataclass
class TailRatio:
    """Seconds after stage 1 per second of stage 1: an estimate at first, then the running average of songs."""

    value: float

    def note(self, timings: dict[str, float]) -> None:
        """Include the timings of a finished song in the average."""
        tail = sum(timings.get(stage, 0.0) for stage in TAIL)
        if timings.get("stage1"):
            self.value = (self.value + tail / timings["stage1"]) / 2


def expected_tokens(words_seconds: float, max_new_tokens: int) -> float:
    """The expected number of tokens of a section whose words last `words_seconds`."""
    return min(float(max_new_tokens), expected_seconds(words_seconds) * TOKENS_PER_SECOND)


def tokens_left(lengths: Sequence[float], section: int, before: int, inside: int, max_new_tokens: int) -> float:
    """The expected number of tokens that are left in `section` (1 …) and the later ones.

    `lengths` are the expected lengths of all sections. `before` counts the tokens of the done sections: the others are
    scaled by how much these deviate, damped by one section of average length. `inside` counts the tokens of this
    section; if it is longer than expected, a share of its remaining budget is left.
    """
    average = sum(lengths) / len(lengths)
    scale = (before + average) / (sum(lengths[: section - 1]) + average)
    here, *later = (min(float(max_new_tokens), scale * length) for length in lengths[section - 1 :])
    return max(here - inside, OVERRUN_SHARE * (max_new_tokens - inside)) + sum(later)


def counted_down(shown: float | None, elapsed_s: float, estimate: float) -> float:
    """The countdown's next value, `elapsed_s` after it showed `shown`, for a new estimate.

    A smaller estimate is shown at once. Towards a larger one the countdown never rises; it falls more slowly, so that
    both reach 0 together.
    """
    if shown is None or estimate <= 0:
        return max(0.0, estimate)
    pace = min(1.0, shown / (estimate + elapsed_s)) ** 2
    return min(estimate, shown - pace * elapsed_s)


class ProgressTracker:
    """The progress of one song. `observe` is called with each change; an exception that it raises ends the song.

    Stages overlap. The earliest unfinished stage is shown, and its time lasts until the next one is shown.
    `lengths` are the expected tokens of the sections.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        max_new_tokens: int,
        observe: Callable[[Progress], None],
        tail_ratio: TailRatio,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timings: dict[str, float] = {}
        self._lengths, self._max_new_tokens, self._tail_ratio = lengths, max_new_tokens, tail_ratio
        self._observe, self._clock = observe, clock
        self._stage_started = self._seen_at = clock()
        self._shown = Progress(stage="", sections=len(lengths))
        self._done = dict.fromkeys(STAGES, 0.0)  # fraction of each stage
        self._tokens_before = 0  # in the sections that are done
        self._tokens_left = sum(lengths)
        self._lately_s = self._lately_tokens = self._measured_s = 0.0  # of stage 1
        self._tail_started: tuple[float, float] | None = None  # when stage 1 ended, and how much of the tail was done
        self._countdown: float | None = None
        self._counted_at = self._seen_at

    @property
    def stage(self) -> str:
        """The stage that is shown."""
        return self._shown.stage

    @property
    def expected_tokens(self) -> float:
        """The expected number of tokens of stage 1 in total."""
        return self._shown.tokens + self._tokens_left

    def enter(self, stage: str) -> None:
        """Show `stage`. All earlier stages are done."""
        self._close_stage()
        for earlier in STAGES[: STAGES.index(stage)]:
            self._done[earlier] = 1.0
        if self._done["stage1"] == 1:
            self._tokens_left = 0.0
        self._show(stage=stage, section=int(stage == "stage1"))

    def finish(self) -> None:
        """The song is done."""
        self._close_stage()
        self._tail_ratio.note(self.timings)
        self._done = dict.fromkeys(STAGES, 1.0)
        self._show()

    def note_stage1(self, section: int, tokens: int) -> None:
        """Note that stage 1 is in `section` (1 …), with `tokens` in all sections."""
        if section != self._shown.section:
            self._tokens_before = self._shown.tokens
        self._measure(tokens - self._shown.tokens)
        inside = tokens - self._tokens_before
        self._tokens_left = tokens_left(self._lengths, section, self._tokens_before, inside, self._max_new_tokens)
        self._done["stage1"] = tokens / (tokens + self._tokens_left)
        self._show(section=section, tokens=tokens)

    def note_stage2(self, rows: int, frames: int, of_stage: float) -> None:
        """Note that stage 2 has finished `rows` and `frames`, which is `of_stage` (0 … 1) of its work."""
        self._done["stage2"] = max(self._done["stage2"], min(1.0, of_stage))
        if self._done["stage1"] == 1 and self._tail_started is None:
            self._tail_started = self._clock(), self._tail_done()
        if (rows, frames) != (self._shown.rows, self._shown.frames):
            self._show(rows=rows, frames=frames)

    def note_decoded(self, of_stage: float) -> None:
        """Note that `of_stage` (0 … 1) of the song is decoded."""
        if of_stage > self._done["decode"]:
            self._done["decode"] = min(1.0, of_stage)
            self._show()

    def _close_stage(self) -> None:
        now = self._clock()
        if self._shown.stage:
            self.timings[self._shown.stage] = round(now - self._stage_started, 3)
        self._stage_started = now

    def _measure(self, new_tokens: int) -> None:
        """Update the token rate. Time without new tokens (prefill, waiting, other stages) does not count."""
        now = self._clock()
        if new_tokens > 0 and self._shown.tokens:
            elapsed_s = now - self._seen_at
            kept = 0.5 ** (elapsed_s / HALF_LIFE_S)
            self._lately_s = kept * self._lately_s + elapsed_s
            self._lately_tokens = kept * self._lately_tokens + new_tokens
            self._measured_s += elapsed_s
        self._seen_at = now

    def _tail_done(self) -> float:
        """The fraction (0 … 1) of the work after stage 1 that is done."""
        return sum(share * self._done[stage] for stage, share in TAIL.items())

    def _estimate(self) -> float | None:
        """The seconds until the song is done; None until enough has been measured."""
        if self._measured_s < MEASURED_S or self._shown.tokens < MEASURED_SHARE * self.expected_tokens:
            return None
        seconds_per_token = self._lately_s / self._lately_tokens
        tail_s = self._tail_ratio.value * seconds_per_token * self.expected_tokens
        if self._done["stage1"] < 1:
            return seconds_per_token * self._tokens_left + tail_s * (1 - self._tail_done())
        if self._tail_started is None:
            return tail_s * (1 - self._tail_done())
        started, done_before = self._tail_started
        elapsed_s, done = self._clock() - started, self._tail_done() - done_before
        expected_s = max(tail_s * (1 - done_before) - elapsed_s, OVERRUN_SHARE * tail_s * (1 - self._tail_done()))
        measured_s = elapsed_s * (1 - self._tail_done()) / done if done else expected_s
        weight = done / (1 - done_before)  # of the measurement: 0 at first, 1 at the end
        return weight * measured_s + (1 - weight) * expected_s

    def _show(self, **changes: object) -> None:
        tail = self._tail_ratio.value / (1 + self._tail_ratio.value)  # the tail's share of the song's time
        fraction = (1 - tail) * self._done["stage1"] + tail * self._tail_done()
        fraction = 1.0 if self._done["encode"] == 1 else max(self._shown.fraction, min(0.999, round(fraction, 4)))
        now = self._clock()
        estimate = 0.0 if fraction == 1 else self._estimate()
        if estimate is not None:
            self._countdown = counted_down(self._countdown, now - self._counted_at, estimate)
        self._counted_at = now
        left = None if self._countdown is None else round(self._countdown, 1)
        self._shown = replace(self._shown, fraction=fraction, seconds_left=left, **changes)  # type: ignore[arg-type]
        self._observe(self._shown)
