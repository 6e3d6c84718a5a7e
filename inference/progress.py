"""How far a song is, as one number that never falls, and how long the rest will take.

It does not know how the stages work, only how much of a song's time each usually takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from inference.song import Progress

# A song's time by stage, one song at a time; only the shown fraction depends on it.
SHARES = {"prompt": 0.01, "stage1": 0.60, "stage2": 0.34, "decode": 0.04, "encode": 0.01}
MEASURED = 0.03  # of the song must be done before the rest can be told from it


class Meter:
    """One song's progress. `observe` is called with each change; what it raises ends the song.

    Stages overlap: the shown one is the earliest that is not done, and the time until the next begins is its time.
    """

    def __init__(self, sections: int, max_new_tokens: int, observe: Callable[[Progress], None]) -> None:
        self.timings: dict[str, float] = {}
        self.sections = sections
        self._max_new_tokens = max_new_tokens
        self._observe = observe
        self._began = self._stage_began = time.monotonic()
        self._shown = Progress(stage="", sections=sections)
        self._done = dict.fromkeys(SHARES, 0.0)  # of each stage
        self._tokens_before = 0  # of the sections that are done

    @property
    def stage(self) -> str:
        """The stage that is shown."""
        return self._shown.stage

    def enter(self, stage: str) -> None:
        """Every stage before `stage` is done."""
        self._close_stage()
        for earlier in list(SHARES)[: list(SHARES).index(stage)]:
            self._done[earlier] = 1.0
        self._show(stage=stage, section=int(stage == "stage1"))

    def finish(self) -> None:
        """The song is done."""
        self._close_stage()
        self._done = dict.fromkeys(SHARES, 1.0)
        self._show()

    def sung(self, section: int, tokens: int) -> None:
        """Stage 1 is in `section` (1 …), with `tokens` in all sections together."""
        if section != self._shown.section:
            self._tokens_before = self._shown.tokens
        in_section = min(1.0, (tokens - self._tokens_before) / self._max_new_tokens)
        self._done["stage1"] = (section - 1 + in_section) / self._shown.sections
        self._show(section=section, tokens=tokens)

    def upsampled(self, rows: int, frames: int, of_stage: float) -> None:
        """Stage 2 has finished `rows` and `frames`, which is `of_stage` (0 … 1) of all it will have to do."""
        self._done["stage2"] = max(self._done["stage2"], of_stage)
        if (rows, frames) != (self._shown.rows, self._shown.frames):
            self._show(rows=rows, frames=frames)

    def decoded(self, of_stage: float) -> None:
        """Sound has been made of `of_stage` (0 … 1) of the song."""
        if of_stage > self._done["decode"]:
            self._done["decode"] = of_stage
            self._show()

    def _close_stage(self) -> None:
        now = time.monotonic()
        if self._shown.stage:
            self.timings[self._shown.stage] = round(now - self._stage_began, 3)
        self._stage_began = now

    def _show(self, **changes: object) -> None:
        fraction = round(sum(share * self._done[stage] for stage, share in SHARES.items()), 4)
        fraction = max(self._shown.fraction, fraction)
        elapsed = time.monotonic() - self._began
        left = round(elapsed * (1 - fraction) / fraction, 1) if fraction > MEASURED else None
        self._shown = replace(self._shown, fraction=fraction, seconds_left=left, **changes)  # type: ignore[arg-type]
        self._observe(self._shown)
