"""Stores the parts of one running song in a thread of its own, so that no storage delays or fails the song.

A part counts as playable once it is stored. After an error, or if too many parts wait, the song goes on without more.
"""

from __future__ import annotations

import logging
import queue
import threading

from inference.song import SongPart
from serving.jobs.job import Job, about
from serving.jobs.queue import JobQueue
from serving.jobs.store import JobStore
from storage import StorageError

log = logging.getLogger(__name__)

MOST_WAITING = 32  # parts in memory, three minutes of a song


class PartWriter:
    """Takes the parts of a song from one thread, in order. Its own thread starts with the first."""

    def __init__(self, job: Job, jobs: JobQueue, store: JobStore) -> None:
        self._job, self._jobs, self._store = job, jobs, store
        self._waiting: queue.SimpleQueue[SongPart | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="jobs-parts", daemon=True)
        self._n_stored = 0
        self._ends = False

    def put(self, part: SongPart) -> None:
        """Store the part soon. Never blocks."""
        if not self._ends and self._waiting.qsize() >= MOST_WAITING:
            self._give_up("the storage is too slow")
        if self._ends:
            return
        self._waiting.put(part)
        if not self._thread.ident:
            self._thread.start()

    def close(self, seconds: float, discard: bool = False) -> int:
        """Store what waits, or discard it, in up to `seconds`. Return the number of parts that are stored."""
        self._ends = self._ends or discard
        self._waiting.put(None)
        if self._thread.ident:
            self._thread.join(seconds)
        self._ends = True
        return self._n_stored

    def _write_all(self) -> None:
        with about(self._job):
            while (part := self._waiting.get()) is not None and not self._ends:
                try:
                    self._write(part)
                except StorageError as error:
                    self._give_up(error)

    def _write(self, part: SongPart) -> None:
        job = self._job
        if part.index != self._n_stored or not self._jobs.has(job):
            self._give_up("a part is missing" if self._jobs.has(job) else "the job is no longer here")
            return
        self._store.parts.write(job.id, job.claim, part)
        if job.finished:  # it ended without waiting any longer, and may have been deleted
            self._store.parts.remove(job.id, job.claim, part)
            return
        self._n_stored += 1
        if part.end_seconds > job.playable_seconds:  # otherwise an earlier attempt had got further
            job.playable_seconds, job.sections = part.end_seconds, part.sections
        self._jobs.note_progress(job)
        self._store.note(job)  # for listeners of other servers

    def _give_up(self, reason: object) -> None:
        self._ends = True
        log.warning("job %s: cannot be streamed any further: %s", self._job.id, reason)
