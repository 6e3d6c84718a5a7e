"""How a request waits for its songs or for the models: in a wait slot, while its client is connected.

Independent of what it answers afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from flask import request

from serving.http.predictions import Outcome, Pending
from serving.http.problems import problem_of
from serving.http.wait_slots import PEEK_SECONDS, WaitSlots, is_gone
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from storage import StorageError

log = logging.getLogger(__name__)


class Waiting:
    """Waits within the slots that there are; a request that finds none free is answered at once."""

    def __init__(self, jobs: Jobs, slots: WaitSlots) -> None:
        self._jobs, self._slots = jobs, slots

    def for_songs(self, outcomes: list[Outcome], began: float) -> None:
        """Give each song its time, counted from `began`, as long as the client is there.

        An outcome whose job cannot be waited for becomes its problem. Once the client is gone, songs that nobody can
        ask for any more are cancelled.
        """
        with self._slots.slot() as may_wait:
            for index, each in enumerate(outcomes if may_wait else ()):
                if not isinstance(each, Pending):
                    continue
                try:
                    connected = self._wait(partial(self._jobs.wait, each.job), began + each.wait_seconds, each.job)
                except StorageError as error:
                    outcomes[index] = problem_of(error).having(job_id=each.job.id)
                    continue
                if not connected:
                    log.info("the client has disconnected")
                    self._cancel([outcome for outcome in outcomes if isinstance(outcome, Pending)])
                    return

    def for_models(self, outcome: Future[Any], began: float, seconds: float) -> None:
        """Wait until the models are ready or cannot be, up to `seconds` counted from `began`."""
        with self._slots.slot() as may_wait:
            self._wait(lambda left: wait([outcome], left).done, began + (seconds if may_wait else 0))

    def _wait(self, wait_for: Callable[[float], object], end: float, job: Job | None = None) -> bool:
        """Wait until `wait_for` is true, until `end` at the latest; return False as soon as the client is gone."""
        while not wait_for(max(0.0, min(PEEK_SECONDS, end - time.monotonic()))):
            if is_gone(request.environ):
                return False
            if time.monotonic() >= end or (job and self._jobs.is_left(job)):
                break
        return True

    def _cancel(self, pending: list[Pending]) -> None:
        for each in pending:
            if not each.goes_on:
                self._jobs.cancel(each.job.id)
