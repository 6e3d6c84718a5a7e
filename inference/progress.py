"""How far a song is, as one number that never falls, and how long the rest will take.

It does not know how the stages work, only how much of a song's time each usually takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inference.song import Progress

# A song's time by stage, one song at a time; only the shown fraction depends on it.
SHARES = {"prompt": 0.01, "stage1": 0.60, "stage2": 0.34, "decode": 0.04, "encode": 0.01}

MEASURED = 0.03  # of the song must be done before the rest can be told from it


class Meter:
    """One song's progress. `observe` is called with each change; what it raises ends the song."""

    def __init__(self, sections: int, max_new_tokens: int, observe: Callable[[Progress], None]) -> None:
        self.timings: dict[str, float] = {}
        self._sections = sections
        self._max_new_tokens = max_new_tokens
        self._observe = observe
        self._began = time.monotonic()
        self._fraction = 0.0
        self._stage = ""
        self._before = 0.0  # shares of the stages that are done
        self._section = 0
        self._tokens = 0  # so far
        self._tokens_before = 0  # of the sections that are done

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell that it begins."""
        began, self._stage = time.monotonic(), name
        self._show(0.0, section=int(name == "stage1"), tokens=self._tokens)
        yield
        self._before += SHARES[name]
        self.timings[name] = round(time.monotonic() - began, 3)

    def sung(self, section: int, tokens: int) -> None:
        """Stage 1 is in `section` (1 …), with `tokens` in all sections together."""
        if section != self._section:
            self._section, self._tokens_before = section, self._tokens
        self._tokens = tokens
        in_section = (tokens - self._tokens_before) / self._max_new_tokens
        self._show((section - 1 + min(1.0, in_section)) / self._sections, section=section, tokens=tokens)

    def upsampled(self, rows: int, frames: int, total_frames: int) -> None:
        """Stage 2 has finished `rows` and `frames`, of `total_frames` in both tracks."""
        self._show(frames / max(1, total_frames), tokens=self._tokens, rows=rows, frames=frames)

    def _show(self, of_stage: float, **counts: int) -> None:
        self._fraction = max(self._fraction, self._before + SHARES[self._stage] * of_stage)
        elapsed = time.monotonic() - self._began
        left = elapsed * (1 - self._fraction) / self._fraction if self._fraction > MEASURED else None
        self._observe(
            Progress(
                stage=self._stage,
                sections=self._sections,
                fraction=round(self._fraction, 4),
                seconds_left=None if left is None else round(left, 1),
                **counts,
            )
        )
