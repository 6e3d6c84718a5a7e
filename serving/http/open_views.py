"""What everybody is answered, with a key or without: whether the server lives and takes songs, and the way to its page.

It shows no data, begins nothing and reads no storage; `/health`, which platforms ask, is in `server.py`.
"""

from __future__ import annotations

from flask import Response, jsonify, redirect
from flask.typing import ResponseReturnValue
from werkzeug import Response as WerkzeugResponse

from serving.http.problems import RETRY_AFTER_SECONDS
from serving.jobs.service import Jobs
from serving.models.states import ERROR, NOT_LOADED, READY, ObservedModels
from serving.settings import STARTUP


class OpenViews:
    """The views, for a server that loads its models that way."""

    def __init__(self, manager: ObservedModels, jobs: Jobs, loading: str) -> None:
        self._manager, self._jobs, self._loading = manager, jobs, loading

    def livez(self) -> Response:
        """Whether the process answers."""
        return jsonify(status="alive")

    def readyz(self) -> ResponseReturnValue:
        """Whether a song that is sent now is taken."""
        status = self._readiness()
        if status == "ready":
            return jsonify(status=status)
        return jsonify(status=status), 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}

    def home(self) -> WerkzeugResponse:
        """The way to the contract's page."""
        return redirect("docs")

    def _readiness(self) -> str:
        if self._jobs.draining:
            return "draining"
        if self._manager.refuses_songs:
            return "unhealthy"
        state, _, attempt = self._manager.snapshot()
        displaced = attempt is not None and attempt.displaced  # songs wait for the model that takes its place
        if self._loading != STARTUP or state == READY or displaced:
            return "ready"
        return "unhealthy" if state in (NOT_LOADED, ERROR) else "starting"
