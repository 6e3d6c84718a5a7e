"""Runs a scheduler until no song is left."""

from __future__ import annotations

from collections.abc import Callable

from inference.engine.scheduler import EndedSong, Scheduler
from inference.song import Progress


def ignore(progress: Progress) -> None:
    """An observer who does not look."""


def run(engine: Scheduler, until_idle: Callable[[int], None] = lambda step: None) -> dict[str, EndedSong]:
    """Step until nothing is left; `until_idle(step)` may add or cancel songs before each step."""
    outcomes: dict[str, EndedSong] = {}
    step = 0
    while step == 0 or not engine.idle:
        until_idle(step)
        for outcome in engine.step():
            assert outcome.song_id not in outcomes, "a song ends once"
            outcomes[outcome.song_id] = outcome
        step += 1
    return outcomes
