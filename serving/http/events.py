"""The progress of a job as server-sent events, from the client's last event to the job's end.

Independent of routes, and of how jobs run and are stored. A stream is finite:

    event: progress    state, position and progress, whenever they have changed
    event: end         the job's whole view without audio; the stream ends
    event: problem     the job cannot be followed now; the stream ends, and the client may reconnect

The `id` of the first two is a hash of their content, so a client that reconnects, to this server or another, gets no
event twice. A stream that ends without one of the last two belongs to a server that stops: the client reconnects for
the rest.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping

from serving.http import job_views
from serving.http.problems import problem_of
from serving.http.wait_slots import PEEK_SECONDS
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from storage import StorageError

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_SECONDS = 15.0  # without an event, before a comment is sent
RETRY_MILLISECONDS = 2_000  # after which a client reconnects
SHOWN = ("job_id", "status", "position", "expected_seconds", "progress", "cancel_requested")
FLEETING = ("expected_seconds",)  # it changes all the time, so it triggers no event


def stream(jobs: Jobs, job: Job, last_id: str | None, is_gone: Callable[[], bool]) -> Iterator[str]:
    """The events after the last one that the client has received. It holds no lock while the client reads."""
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    spoken_at = time.monotonic()
    while not job.finished:
        view = job_views.job_view(job, jobs.wait_estimates().get(job.id))
        event_id = _id_of("progress", view)
        if event_id != last_id:
            yield _event("progress", event_id, {name: view[name] for name in SHOWN if name in view})
            last_id, spoken_at = event_id, time.monotonic()
        elif time.monotonic() - spoken_at >= KEEP_ALIVE_SECONDS:
            yield ": keep-alive\n\n"
            spoken_at = time.monotonic()
        if jobs.is_left(job) or is_gone():
            return
        try:
            jobs.wait_for_change(job, PEEK_SECONDS)
        except StorageError as error:
            yield f"event: problem\ndata: {json.dumps(problem_of(error).having(job_id=job.id).as_dict())}\n\n"
            return
    view = job_views.job_view(job)
    if _id_of("end", view) != last_id:
        yield _event("end", _id_of("end", view), view)


def end_id(job: Job) -> str:
    """The id of the final event of a finished job: a client that has received it needs no stream."""
    return _id_of("end", job_views.job_view(job))


def _event(name: str, event_id: str, data: Mapping[str, object]) -> str:
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


def _id_of(name: str, view: Mapping[str, object]) -> str:
    told = {each: view[each] for each in SHOWN if each in view and each not in FLEETING}
    if name == "end":
        told = {each: view[each] for each in ("job_id", "status")}
    return hashlib.sha256(json.dumps([name, told], sort_keys=True).encode()).hexdigest()[:16]
