"""Why a job ends without a song, and why a request for one is refused.

Independent of HTTP: `serving/http/problem_kinds.py` has the status of each kind. An error is stored with its job.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping, Sequence

from inference.errors import (
    Cancelled,
    CheckpointError,
    DownloadError,
    EngineCrashed,
    EngineError,
    InvalidField,
    ModelBusy,
    ServerStopping,
    UnknownModel,
    YueError,
)
from inference.text.characters import whole, whole_value
from storage import StorageError

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # about one song's time
LONGEST_VALUE = 80  # characters of a wrong value that are repeated


class JobError(Exception):
    """An error of a job or of a request for one.

    `kind` is for programs, `detail` is one sentence for the person who has to act, `fields` is the machine-readable
    rest as JSON, and `retry_seconds` is the time after which the same request may succeed, where it may.
    """

    def __init__(
        self, kind: str, detail: str, fields: Mapping[str, object] | None = None, retry_seconds: float | None = None
    ) -> None:
        super().__init__(detail := whole(detail))
        self.kind, self.detail, self.retry_seconds = kind, detail, retry_seconds
        self.fields = {name: whole_value(value) for name, value in (fields or {}).items()}


class NotFound(JobError):
    """No such job is here; `fields` has the part of the request that names it."""

    def __init__(self, detail: str, fields: Mapping[str, object]) -> None:
        super().__init__("not-found", detail, fields)


class Conflict(JobError):
    """The request does not fit the state of the server."""

    def __init__(self, detail: str, fields: Mapping[str, object] | None = None) -> None:
        super().__init__("conflict", detail, fields)


class QueueFull(JobError):
    """No more songs may wait. The next place is free in `retry_seconds`, as far as songs have been measured."""

    def __init__(self, limit: int, position: int, retry_seconds: float | None, expected_seconds: float | None) -> None:
        detail = f"{limit} songs are waiting already; try again later"
        fields = {"position": position, "expected_seconds": _whole_seconds(expected_seconds)}
        super().__init__("queue-full", detail, fields, RETRY_SECONDS if retry_seconds is None else retry_seconds)


class DeadlineUnreachable(JobError):
    """The song would be late, by the duration of the songs before it."""

    def __init__(self, deadline_seconds: float, position: int, expected_seconds: float) -> None:
        detail = (
            f"the song is expected in {math.ceil(expected_seconds)} s, and deadline_seconds is {deadline_seconds:.1f}; "
            "allow more time, or ask again when fewer songs wait"
        )
        expected = _whole_seconds(expected_seconds)
        fields = {
            "deadline_seconds": round(deadline_seconds, 1),
            "position": position,
            "expected_seconds": expected,
        }
        super().__init__("deadline-unreachable", detail, fields, expected_seconds - deadline_seconds)


class DeadlinePassed(JobError):
    """The song did not begin in time."""

    def __init__(self) -> None:
        super().__init__("deadline-passed", "the song's deadline passed while it waited, so it was not generated")


class BeingAccepted(JobError):
    """Another request with the same request id is not accepted yet."""

    def __init__(self) -> None:
        detail = "another request with this request_id is still being accepted; send this one again"
        super().__init__("being-accepted", detail, retry_seconds=RETRY_SECONDS)


class Stopping(JobError):
    """The server takes no more work."""

    def __init__(self) -> None:
        super().__init__("stopping", "the server is stopping; send the request again", retry_seconds=RETRY_SECONDS)


class Interrupted(JobError):
    """The servers that generated the song ended before it was done."""

    def __init__(self) -> None:
        detail = "the servers that generated it ended before it was done, twice; send it again, as a new request"
        super().__init__("interrupted", detail)


class Unreadable(JobError):
    """The record of the request cannot be read, so the song cannot be generated."""

    def __init__(self, reason: str) -> None:
        detail = (
            f"the stored request cannot be read any more, so no song was generated: {reason}; "
            "send it again as a new request"
        )
        super().__init__("song-failed", detail)


class EndUnreadable(JobError):
    """The record of the job's end cannot be read."""

    def __init__(self, reason: str) -> None:
        detail = f"how the job ended cannot be read any more: {reason}; send it again, as a new request"
        super().__init__("song-failed", detail)


class FilesLost(JobError):
    """The job's files are gone, and with them its song."""

    def __init__(self) -> None:
        detail = "the job is no longer in the storage: it was deleted, or YUE_DATA was; send it again, as a new request"
        super().__init__("storage-failed", detail)


class ReferenceLost(JobError):
    """The reference audio is gone. Without it the song would not be the one that was requested."""

    def __init__(self) -> None:
        detail = "the reference audio is lost, so no song was generated; send it again, as a new request"
        super().__init__("song-failed", detail)


class AudioDamaged(JobError):
    """The stored file of a track has another size than when it was written."""

    def __init__(self, path: str, size_bytes: int, written_bytes: int) -> None:
        detail = (
            f"{path} has {size_bytes} bytes, but {written_bytes} were written: the song's file is damaged; "
            "generate the song again, as a new request"
        )
        super().__init__("song-failed", detail)


class InvalidFields(JobError):
    """One error for all the fields of a request that are wrong."""

    def __init__(self, errors: Sequence[InvalidField]) -> None:
        assert errors, "nothing is wrong"
        if len(errors) == 1:
            super().__init__("invalid-field", str(errors[0]), _told(errors[0]))
            return
        detail = f"{len(errors)} fields are wrong: " + "; ".join(str(error) for error in errors)
        listed = [{"detail": str(error), **_told(error)} for error in errors]
        super().__init__("invalid-fields", detail, {"errors": listed})


class Unforeseen(JobError):
    """An unexpected error. The log has all of it, the client gets its id."""

    def __init__(self, error: BaseException) -> None:
        error_id = uuid.uuid4().hex
        log.error("unforeseen error %s", error_id, exc_info=error)
        detail = f"the server failed; its log has error {error_id}"
        super().__init__("internal-error", detail, {"error_id": error_id})


def described(error: BaseException) -> JobError:
    """Any error as a JobError: the one list of what each exception means to a client."""
    match error:
        case JobError():
            return error
        case InvalidField():
            return InvalidFields([error])
        case UnknownModel():
            fields = {"field": "model", "value": shown(error.name), "allowed": error.allowed}
            return JobError("unknown-model", str(error), fields)
        case Cancelled():
            return JobError("cancelled", str(error) or "the song was cancelled")
        case ModelBusy():
            return Conflict(str(error))
        case CheckpointError():
            return JobError("checkpoint-broken", str(error))
        case DownloadError():
            return JobError("download-failed", str(error), retry_seconds=RETRY_SECONDS)
        case ServerStopping():
            return Stopping()
        case EngineCrashed():
            return JobError("engine-failed", str(error), retry_seconds=error.retry_seconds)
        case EngineError():
            return JobError("engine-failed", str(error), retry_seconds=RETRY_SECONDS)
        case StorageError(kind="full"):
            detail = f"there is no room for another song: {error}"
            return JobError("storage-full", detail, retry_seconds=RETRY_SECONDS)
        case StorageError():
            detail = f"songs cannot be kept or found now: {error}"
            return JobError("storage-failed", detail, retry_seconds=RETRY_SECONDS)
        case YueError():
            return JobError("song-failed", str(error))
    return Unforeseen(error)


def another_model(wanted: str | None, loaded: str) -> InvalidField:
    """One song never makes the server load another model."""
    return InvalidField("model", wanted, f"{loaded}; another model is loaded by download-models first")


def shown(value: object) -> object:
    """A client's value as it is repeated to the client: valid JSON, and short."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and value.bit_length() < 64:
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _told(error: InvalidField) -> dict[str, object]:
    fields = {"field": error.field, "value": shown(error.value), "allowed": error.allowed}
    return fields if error.line is None else {**fields, "line": error.line}


def _whole_seconds(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds)
