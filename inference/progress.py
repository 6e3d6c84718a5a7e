"""How far a song is, as one number that never falls, and how long the rest will take.

It does not know how the stages work, only how much of a song's time each usually takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from inference.song import Progress

# A song's time by stage, one song at a time; only the shown fraction depends on it.
SHARES = {"prompt": 0.01, "stage1": 0.60, "stage2": 0.34, "decode": 0.04, "encode": 0.01}
MEASURED = 0.03  # of the song must be done before the rest can be told from it


class Meter:
    """One song's progress. `observe` is called with each change; what it raises ends the song."""

    def __init__(self, sections: int, max_new_tokens: int, observe: Callable[[Progress], None]) -> None:
        self.timings: dict[str, float] = {}
        self._max_new_tokens = max_new_tokens
        self._observe = observe
        self._began = time.monotonic()
        self._shown = Progress(stage="", sections=sections)
        self._share_before = 0.0  # of the stages that are done
        self._tokens_before = 0  # of the sections that are done

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and tell that it begins and that it is done."""
        began = time.monotonic()
        self._show(0.0, stage=name, section=int(name == "stage1"))
        yield
        self.timings[name] = round(time.monotonic() - began, 3)
        self._show(1.0, section=0)
        self._share_before += SHARES[name]

    def sung(self, section: int, tokens: int) -> None:
        """Stage 1 is in `section` (1 …), with `tokens` in all sections together."""
        if section != self._shown.section:
            self._tokens_before = self._shown.tokens
        in_section = min(1.0, (tokens - self._tokens_before) / self._max_new_tokens)
        self._show((section - 1 + in_section) / self._shown.sections, section=section, tokens=tokens)

    def upsampled(self, rows: int, frames: int, total_frames: int) -> None:
        """Stage 2 has finished `rows` and `frames`, of `total_frames` in both tracks."""
        self._show(frames / total_frames, rows=rows, frames=frames)

    def _show(self, of_stage: float, **changes: object) -> None:
        self._shown = replace(self._shown, **changes)  # type: ignore[arg-type]
        fraction = self._share_before + SHARES[self._shown.stage] * of_stage
        fraction = max(self._shown.fraction, round(fraction, 4))
        elapsed = time.monotonic() - self._began
        left = round(elapsed * (1 - fraction) / fraction, 1) if fraction > MEASURED else None
        self._shown = replace(self._shown, fraction=fraction, seconds_left=left)
        self._observe(self._shown)
