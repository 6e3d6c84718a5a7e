"""The views of liveness and readiness, which need no key.

They show no data, start nothing and read no storage; `/health`, which platforms ask, is in `server.py`.
"""

from __future__ import annotations

from flask import Response, jsonify
from flask.typing import ResponseReturnValue

from serving.http.problems import RETRY_AFTER_SECONDS
from serving.http.response_models import Alive, Readiness
from serving.jobs.service import Jobs
from serving.models.states import ERROR, NOT_LOADED, READY, ObservedModels
from serving.settings import STARTUP


class OpenViews:
    """The views, for a server with that `YUE_LOADING`."""

    def __init__(self, manager: ObservedModels, jobs: Jobs, loading: str) -> None:
        self._manager, self._jobs, self._loading = manager, jobs, loading

    def livez(self) -> Response:
        """Liveness: the process answers."""
        return jsonify(Alive.of(status="alive").as_json())

    def readyz(self) -> ResponseReturnValue:
        """Readiness: a song that is sent now is accepted."""
        status = self._readiness()
        answer = Readiness.of(status=status).as_json()
        if status == "ready":
            return jsonify(answer)
        return jsonify(answer), 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}

    def _readiness(self) -> str:
        if self._jobs.draining:
            return "draining"
        if self._manager.refuses_songs:
            return "unhealthy"
        state, _, attempt = self._manager.snapshot()
        displaced = attempt is not None and attempt.displaced  # songs wait for the model that replaces it
        if self._loading != STARTUP or state == READY or displaced:
            return "ready"
        return "unhealthy" if state in (NOT_LOADED, ERROR) else "starting"
