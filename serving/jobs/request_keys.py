"""Which job a request id belongs to: one file for each request id, the same for every server on a storage.

    keys/<sha256>.json          created: the job that the request id belongs to
    keys/<sha256>-<n>.json      created: the same, where none of those before it can be read

It does not know what a job is. A file that cannot be read is never removed: were it, another could be created in front
of the one that has taken its place.
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
    """Which job a request id belongs to."""

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
        """Give the request id to that job, if it is free; whether it is the job's now."""
        path, content = _path(request_id, 0), json.dumps(asdict(key)).encode()
        for _ in range(MOST_TRIES):
            if self._files.created(path, content):
                return True
            path, found = self._look_up(request_id)
            if found:
                return found.job_id == key.job_id
        raise StorageError(f"{path} can neither be read nor created", "unavailable")

    def release(self, request_id: str, key: Key) -> None:
        """Let go of a request id whose job is no more."""
        path, found = self._look_up(request_id)
        if found == key:
            self._files.storage.delete(path)

    def _look_up(self, request_id: str) -> tuple[str, Key | None]:
        """Where the key lies, or would be created, and the key."""
        for number in count():
            path = _path(request_id, number)
            try:
                record = self._files.read(path)
                if record is None:
                    return path, None
                with well_formed("whose the request id is"):
                    stored = StoredKey.model_validate(record)
                return path, Key(stored.job_id, stored.fingerprint)
            except Malformed as error:
                self._files.report(f"{path} is no key, and the next request takes its place: {error}")
        raise AssertionError("numbers never end")


def _path(request_id: str, number: int) -> str:
    digest = hashlib.sha256(request_id.encode()).hexdigest()
    return f"keys/{digest}-{number}.json" if number else f"keys/{digest}.json"
