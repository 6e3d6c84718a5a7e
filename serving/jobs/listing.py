"""The list of jobs, page by page: unfinished ones first, the newest first, then the others, the last ended first.

Independent of HTTP. A page ends with a cursor, a place in that order: the next page begins behind it, whatever was
deleted or has ended meanwhile. A job that ends moves to a later place, never to an earlier one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from serving.jobs.errors import NotFound
from serving.jobs.job import FINISHED, QUEUED, RUNNING, Job
from serving.jobs.layout import ID, Ended, inverted
from serving.jobs.queue import JobQueue
from serving.jobs.schema import Malformed
from serving.jobs.store import JobStore

STATES = (QUEUED, RUNNING, *FINISHED)
LISTED_JOBS, MOST_LISTED_JOBS = 100, 1_000
CURSOR = re.compile(f"[01]-[0-9]{{14}}-{ID.pattern}")
OPEN_PLACE, ENDED_PLACE = "0", "1"  # what a cursor begins with
READERS = 16  # files that are read concurrently
Entry = tuple[str, str, Job | None]  # a job's place, as a cursor; its id; the job, if it is known


@dataclass(frozen=True)
class JobQuery:
    """A selection of jobs: in these states, at most `limit`, behind the job or cursor `before`."""

    states: frozenset[str] = frozenset(STATES)
    limit: int = LISTED_JOBS
    before: str | None = None


@dataclass(frozen=True)
class Page:
    """Some jobs in their order, and the cursor of the next page; None after the last."""

    jobs: list[Job]
    following: str | None


class JobList:
    """All jobs on a storage. Every method may be called from any thread, and raises StorageError."""

    def __init__(self, store: JobStore, queue: JobQueue) -> None:
        self._store, self._queue = store, queue
        self._remembered: dict[str, Job] = {}  # finished ones that were listed last

    def page(self, query: JobQuery) -> Page:
        """The page. Raises NotFound if `before` is not the id of a listed job."""
        live = {job.id: job for job in self._queue.living()}
        everything = query.before or not query.states.issuperset(FINISHED)
        ended = self._store.ended(None if everything else query.limit + 1)
        places = self._open_places({each.job_id for each in ended}, live)
        places += [(_place_of(each), each.job_id, None) for each in ended]
        behind = self._behind(places, query.before)
        found = [(place, job) for place, job in self._read(behind, query.limit + 1, query.states)]
        page, more = found[: query.limit], len(found) > query.limit
        self._remembered = {job.id: job for _, job in page if job.finished and job.id not in live}
        return Page([job for _, job in page], page[-1][0] if more else None)

    def _open_places(self, ended: set[str], live: dict[str, Job]) -> list[Entry]:
        """Each unfinished job with its place. Their number is small; each record is read."""
        opened = {job_id for _, job_id in self._store.live_state().opened}
        job_ids = sorted((opened | live.keys()) - ended)
        with ThreadPoolExecutor(READERS) as readers:
            jobs = [job for job in readers.map(lambda job_id: self._look(job_id, live.get(job_id)), job_ids) if job]
        return sorted((_cursor(OPEN_PLACE, job.created_at, job.id), job.id, job) for job in jobs)

    def _behind(self, places: list[Entry], before: str | None) -> list[Entry]:
        if before is None:
            return places
        if not CURSOR.fullmatch(before):
            named = [place for place, job_id, _ in places if job_id == before]
            if not named:
                raise NotFound(f"before: no job {before!r} is in the list", {"field": "before"})
            before = named[0]
        return [each for each in places if each[0] > before]

    def _read(self, places: list[Entry], limit: int, states: frozenset[str]) -> Iterator[tuple[str, Job]]:
        """The first of these jobs in one of these states, each with its place."""
        found = 0
        with ThreadPoolExecutor(READERS) as readers:
            for first in range(0, len(places), limit):
                some = places[first : first + limit]
                jobs = readers.map(lambda each: self._look(each[1], each[2]), some)
                for (place, _, _), job in zip(some, jobs, strict=True):
                    if job and job.state in states and found < limit:
                        found += 1
                        yield place, job
                if found == limit:
                    return

    def _look(self, job_id: str, known: Job | None) -> Job | None:
        try:
            return known or self._remembered.get(job_id) or self._store.read(job_id)
        except Malformed:  # it is reported; the others are listed
            return None


def _place_of(ended: Ended) -> str:
    return _cursor(ENDED_PLACE, ended.finished_at, ended.job_id)


def _cursor(place: str, moment: datetime, job_id: str) -> str:
    return f"{place}-{inverted(moment):014d}-{job_id}"
