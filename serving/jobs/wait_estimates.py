"""How long songs take here, and with it when those that wait will be sung and done.

It knows nothing of queues or models: who waits and who sings is told, and so is the time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

REMEMBERED_SONGS = 16  # that were finished last; what they took is what the next ones are expected to take


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
        self.max_songs = 1  # songs that the engine sings at once, as far as is known
        self._taken: deque[float] = deque(maxlen=REMEMBERED_SONGS)

    def note(self, seconds: float) -> None:
        """A song took so long from its beginning to its end, beside as many others as there were."""
        self._taken.append(seconds)

    @property
    def song_seconds(self) -> float | None:
        """How long a song takes; None while none has been sung."""
        return sum(self._taken) / len(self._taken) if self._taken else None

    def start_times(self, running: Sequence[float], songs: int) -> list[float]:
        """For each of the next songs the seconds until it begins; nothing while nothing has been measured.

        `running` says of each song that is sung for how many seconds it has been.

            place 1: |--running--|--first--|--third--|         a song begins where a place is free first
            place 2: |----running----|--second--|
        """
        taken = self.song_seconds
        if taken is None:
            return []
        places = sorted(max(0.0, taken - seconds) for seconds in running)
        places += [0.0] * (self.max_songs - len(places))
        heapq.heapify(places)
        begins = []
        for _ in range(songs):
            begins.append(places[0])
            heapq.heapreplace(places, places[0] + taken)
        return begins
