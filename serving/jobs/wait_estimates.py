"""How long songs take here, and with it when those that wait will begin and be done.

It asks nobody: the songs that wait and run, and the time, are arguments.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from serving.jobs.errors import DeadlineUnreachable, QueueFull

REMEMBERED_SONGS = 16  # the last ones; the next ones are expected to take as long


@dataclass(frozen=True)
class WaitEstimate:
    """What a song that waits can expect: its `position`, 1 for the next, and the seconds until it is done.

    `expected_seconds` is None while nothing has been measured.
    """

    position: int
    expected_seconds: float | None


class WaitEstimator:
    """A running estimate. Whoever calls it holds the lock under which it is kept."""

    def __init__(self) -> None:
        self.max_songs = 1  # songs that the engine runs at once, as far as is known
        self._taken: deque[float] = deque(maxlen=REMEMBERED_SONGS)

    def note(self, seconds: float) -> None:
        """A song took so long from its start to its end, beside as many others as there were."""
        self._taken.append(seconds)

    @property
    def song_seconds(self) -> float | None:
        """How long a song takes; None while none has been generated."""
        return sum(self._taken) / len(self._taken) if self._taken else None

    def check_room(self, running: Sequence[float], waiting: int, max_queue: int, left: float | None) -> None:
        """Raises QueueFull where so many wait already, and DeadlineUnreachable where a song would take longer."""
        begins = self.start_times(running, waiting + 1)
        expected = begins[-1] + (self.song_seconds or 0.0) if begins else None
        if waiting >= max_queue:
            raise QueueFull(max_queue, waiting + 1, begins[0] if begins else None, expected)
        if left is not None and expected is not None and expected > left:
            raise DeadlineUnreachable(left, waiting + 1, expected)

    def estimates(self, running: Sequence[float], job_ids: Sequence[str]) -> dict[str, WaitEstimate]:
        """What each job that waits can expect, by its id; they are given in the order of the queue."""
        taken, begins = self.song_seconds, self.start_times(running, len(job_ids))
        ends: Sequence[float | None] = [begin + (taken or 0.0) for begin in begins] or [None] * len(job_ids)
        waiting = enumerate(zip(job_ids, ends, strict=True), start=1)
        return {job_id: WaitEstimate(position, end) for position, (job_id, end) in waiting}

    def start_times(self, running: Sequence[float], songs: int) -> list[float]:
        """For each of the next songs the seconds until it begins; nothing while nothing has been measured.

        `running` has the seconds for which each song has been running.

            slot 1: |--running--|--first--|--third--|         a song begins where a slot is free first
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
