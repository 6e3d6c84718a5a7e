"""Estimates when queued songs start and finish, from the durations of recent songs.

Pure computation: queue, running songs and time are arguments.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from serving.jobs.errors import DeadlineUnreachable, QueueFull

REMEMBERED_SONGS = 16  # the mean of their durations is the estimate


@dataclass(frozen=True)
class WaitEstimate:
    """The estimate for a waiting song: its `position`, 1 for the next, and the seconds until it is finished.

    `expected_seconds` is None until a song has been measured.
    """

    position: int
    expected_seconds: float | None


class WaitEstimator:
    """The running estimate. The caller holds the queue's lock."""

    def __init__(self) -> None:
        self.max_songs = 1  # songs that the engine runs at once, as far as is known
        self._taken: deque[float] = deque(maxlen=REMEMBERED_SONGS)

    def note(self, seconds: float) -> None:
        """Record a song's duration, whatever ran beside it."""
        self._taken.append(seconds)

    @property
    def song_seconds(self) -> float | None:
        """The expected duration of a song; None until one has been measured."""
        return sum(self._taken) / len(self._taken) if self._taken else None

    def check_room(self, running: Sequence[float], waiting: int, max_queue: int, left: float | None) -> None:
        """Raise QueueFull at the limit, and DeadlineUnreachable if the song would finish later."""
        begins = self.start_times(running, waiting + 1)
        expected = begins[-1] + (self.song_seconds or 0.0) if begins else None
        if waiting >= max_queue:
            raise QueueFull(max_queue, waiting + 1, begins[0] if begins else None, expected)
        if left is not None and expected is not None and expected > left:
            raise DeadlineUnreachable(left, waiting + 1, expected)

    def estimates(self, running: Sequence[float], job_ids: Sequence[str]) -> dict[str, WaitEstimate]:
        """Return the estimates by job id. `job_ids` are in the order of the queue."""
        taken, begins = self.song_seconds, self.start_times(running, len(job_ids))
        ends: Sequence[float | None] = [begin + (taken or 0.0) for begin in begins] or [None] * len(job_ids)
        waiting = enumerate(zip(job_ids, ends, strict=True), start=1)
        return {job_id: WaitEstimate(position, end) for position, (job_id, end) in waiting}

    def start_times(self, running: Sequence[float], songs: int) -> list[float]:
        """Return the seconds until each of the next songs starts; empty until a song has been measured.

        `running`: for how many seconds each song has been running.

            slot 1: |--running--|--first--|--third--|         a song starts where a slot is free first
            slot 2: |----running----|--second--|
        """
        taken = self.song_seconds
        if taken is None:
            return []
        slots = sorted(max(0.0, taken - seconds) for seconds in running)
        slots += [0.0] * (self.max_songs - len(slots))
        heapq.heapify(slots)
        begins = []
        for _ in range(songs):
            begins.append(slots[0])
            heapq.heapreplace(slots, slots[0] + taken)
        return begins
