"""Idempotency keys: which job a request id belongs to, one file for each, shared by all servers on a storage.

    keys/<sha256>.json          created: the job that the request id belongs to
    keys/<sha256>-<n>.json      created: the same, if none of those before it can be read

Independent of what a job is. A file that cannot be read is never removed: otherwise another could be created in front
of the one that has replaced it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import count

from serving.jobs.record_files import RecordFiles
from serving.jobs.schema import Malformed, StoredKey, well_formed
from storage import StorageError

MOST_TRIES = 10


@dataclass(frozen=True)
class Key:
    """The job that a request id belongs to."""

    job_id: str
    fingerprint: str


class RequestKeys:
    """The keys on one storage. Every method may be called from any thread, and raises StorageError."""

    def __init__(self, files: RecordFiles) -> None:
        self._files = files

    def find(self, request_id: str) -> Key | None:
        """The job that the request id belongs to."""
        return self._look_up(request_id)[1]

    def take(self, request_id: str, key: Key) -> bool:
        """Give the request id to that job if it is free; return true if it is the job's now."""
        path, content = _path(request_id, 0), json.dumps(asdict(key)).encode()
        for _ in range(MOST_TRIES):
            if self._files.created(path, content):
                return True
            path, found = self._look_up(request_id)
            if found:
                return found.job_id == key.job_id
        raise StorageError(f"{path} can neither be read nor created", "unavailable")

    def release(self, request_id: str, key: Key) -> None:
        """Free the request id of a deleted job."""
        path, found = self._look_up(request_id)
        if found == key:
            self._files.storage.delete(path)

    def _look_up(self, request_id: str) -> tuple[str, Key | None]:
        """The path at which the key is, or would be created, and the key."""
        for number in count():
            path = _path(request_id, number)
            try:
                record = self._files.read(path)
                if record is None:
                    return path, None
                with well_formed("the request id"):
                    stored = StoredKey.model_validate(record)
                return path, Key(stored.job_id, stored.fingerprint)
            except Malformed as error:
                self._files.report(f"{path} cannot be read, and the next request replaces it: {error}")
        raise AssertionError("numbers never end")


def _path(request_id: str, number: int) -> str:
    digest = hashlib.sha256(request_id.encode()).hexdigest()
    return f"keys/{digest}-{number}.json" if number else f"keys/{digest}.json"
