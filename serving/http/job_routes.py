"""The routes of jobs: list, show, follow, cancel, delete, and their audio."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flask import Response, jsonify, request
from flask.typing import ResponseReturnValue

from serving.http import access, audio_files, events
from serving.http.job_query import read_query
from serving.http.predictions import Answers
from serving.http.problems import no_wait_slot
from serving.http.wait_slots import WaitSlots, is_gone
from serving.jobs.service import Jobs
from serving.settings import Settings

View = Callable[..., ResponseReturnValue]
Route = tuple[str | None, tuple[str, ...], View]  # path, methods, view; without a path there is no route

UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class JobRoutes:
    """The views of jobs."""

    def __init__(self, settings: Settings, jobs: Jobs, answers: Answers, wait_slots: WaitSlots) -> None:
        self._settings, self._jobs, self._answers, self._wait_slots = settings, jobs, answers, wait_slots

    def table(self) -> list[Route]:
        """The paths and methods of the views."""
        either = ("GET", "POST")
        return [
            ("/jobs", either, self.list_jobs),
            ("/jobs/<job_id>", either, self.show_job),
            ("/jobs/<job_id>", ("DELETE",), self.delete_job),
            ("/jobs/<job_id>/cancel", ("POST",), self.cancel_job),
            ("/jobs/<job_id>/events", either, self.job_events),
            ("/jobs/<job_id>/audio/<track>.<audio_format>", either, self.job_audio),
        ]

    def list_jobs(self) -> Response:
        """All jobs, page by page: unfinished ones, then the others, each the newest first."""
        access.check_admin(self._settings)
        return jsonify(self._answers.job_list(self._jobs.page(read_query(request.args))))

    def show_job(self, job_id: str) -> Response:
        """One job."""
        return jsonify(self._answers.job_view(self._jobs.get(job_id)))

    def job_events(self, job_id: str) -> Response:
        """The progress of one job, as server-sent events."""
        job, last_id = self._jobs.get(job_id), request.headers.get("Last-Event-ID")
        if job.finished and last_id == events.end_id(job):
            return Response(status=204)  # which tells a browser not to reconnect
        if not self._wait_slots.take():
            raise no_wait_slot()
        told = events.stream(self._jobs, job, last_id, partial(is_gone, request.environ))
        response = Response(told, mimetype=events.EVENT_STREAM, headers=UNBUFFERED)
        response.call_on_close(self._wait_slots.give_back)
        return response

    def cancel_job(self, job_id: str) -> Response:
        """Cancel one job."""
        return jsonify(self._answers.job_view(self._jobs.cancel(job_id)))

    def delete_job(self, job_id: str) -> Response:
        """Delete one finished job, or cancel an unfinished one."""
        return jsonify(self._answers.job_view(*self._jobs.delete(job_id)))

    def job_audio(self, job_id: str, track: str, audio_format: str) -> Response:
        """One track of a finished song, or a range of it."""
        return audio_files.named_track(self._jobs.get(job_id), track, audio_format)
