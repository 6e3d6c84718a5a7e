"""JSON files in a storage: read, created exclusively, and reported where they cannot be read.

Independent of their content.
"""

from __future__ import annotations

import logging

from serving.jobs.schema import Json, Malformed, parsed
from storage import Storage, StorageError

log = logging.getLogger(__name__)

MOST_REPORTED = 1_000


class RecordFiles:
    """The JSON files of one storage. Every method may be called from any thread, and raises StorageError."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._reported: set[str] = set()

    def read(self, path: str) -> Json | None:
        """The JSON in the file; None if there is no such file. Raises Malformed."""
        try:
            content = self.storage.get(path)
        except StorageError as error:
            if error.kind == "missing":
                return None
            if error.kind == "invalid":
                raise Malformed(str(error), "unavailable") from error
            raise
        try:
            return parsed(content)
        except ValueError as error:
            raise Malformed(f"{path} {error}", "unavailable") from error

    def created(self, path: str, content: bytes) -> bool:
        """Create the file; return False if it exists already."""
        try:
            self.storage.put(path, content, create=True)
        except StorageError as error:
            if error.kind == "exists":
                return False
            raise
        return True

    def report(self, trouble: str) -> None:
        """Log an error once, however often it occurs."""
        if trouble not in self._reported:
            if len(self._reported) >= MOST_REPORTED:
                self._reported.clear()
            self._reported.add(trouble)
            log.error("%s", trouble)
