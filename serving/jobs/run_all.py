"""Tasks that run one after the other, whether or not the ones before succeed.

Independent of what they do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from storage import StorageError

log = logging.getLogger(__name__)


def run_all(tasks: Iterable[Callable[[], object]]) -> None:
    """Run every task. After the last one, raise the first error; the others are logged."""
    errors = [error for task in tasks if (error := _error_of(task))]
    for error in errors[1:]:
        log.warning("%s", error, exc_info=None if isinstance(error, StorageError) else error)
    if errors:
        raise errors[0]


def _error_of(task: Callable[[], object]) -> Exception | None:
    try:
        task()
    except Exception as error:
        return error
    return None
