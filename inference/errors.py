"""Defines the errors of inference, as one small tree.

It does not know how they are shown: `serving/http/problems.py` turns them into HTTP responses. Every error keeps its
constructor's arguments in `args`, so it can be pickled between processes.
"""

from __future__ import annotations


class YueError(Exception):
    """The root of the tree. `str(error)` is one sentence for the person who has to act on it.

    A `permanent` error happens again on every retry until something else changes.
    """

    permanent = False


class InvalidField(YueError):
    """A request holds an invalid value.

    `field` is a dotted path (`reference.start_seconds`), `value` the given value, `allowed` what would be accepted.
    """

    def __init__(self, field: str, value: object, allowed: str, line: int | None = None) -> None:
        super().__init__(field, value, allowed, line)
        self.field, self.value, self.allowed, self.line = field, value, allowed, line

    def __str__(self) -> str:
        where = f" (line {self.line})" if self.line is not None else ""
        return f"{self.field}{where}: got {_shortened(self.value)}; allowed: {self.allowed}"

    @property
    def without_value(self) -> str:
        """The message for readers who must not see the value: it may be lyrics."""
        return f"{self.field}: allowed: {self.allowed}"


class CheckpointError(YueError):
    """A file of weights is missing, damaged, or of another network.

    `path` is the file. `reason` says what is wrong with it, down to the tensor.
    """

    permanent = True

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnknownModel(YueError):
    """The name is neither in the catalogue nor an `owner/name@revision`."""

    def __init__(self, name: str, allowed: str) -> None:
        super().__init__(name, allowed)
        self.name, self.allowed = name, allowed

    def __str__(self) -> str:
        return f"model: got {_shortened(self.name)}; allowed: {self.allowed}"


DOWNLOAD_REASONS = {
    "gated": "its terms must be accepted, or a token is needed",
    "no_repository": "there is no such repository or folder, or it is private",
    "no_revision": "the repository has no such revision",
    "missing_file": "a file that the model needs is not there",
    "invalid_setting": "an environment variable is invalid",
    "offline": "the network is switched off, and not all files are here",
    "unavailable": "the other side did not answer, or answered with errors, on every try",
    "corrupted": "a file has the wrong content, also after it was fetched again",
    "no_space": "the disk is too small",
    "not_writable": "the folder for the files cannot be written",
    "not_readable": "a file that is here cannot be read",
    "cancelled": "the download was cancelled",
    "failed": "the download's process ended without an answer, or because of a bug",
}
TEMPORARY_REASONS = ("unavailable", "cancelled", "failed")  # the others last until somebody acts


class DownloadError(YueError):
    """The weights could not be downloaded. The message says what to do.

    `reason` is one of DOWNLOAD_REASONS, for programs.
    """

    def __init__(self, message: str, reason: str = "unavailable") -> None:
        super().__init__(message, reason)
        assert reason in DOWNLOAD_REASONS, reason
        self.message, self.reason = message, reason
        self.permanent = reason not in TEMPORARY_REASONS

    def __str__(self) -> str:
        return self.message


class EngineError(YueError):
    """The engine's process failed or ended. Its songs are lost; the server goes on."""


class DeviceMissing(EngineError):
    """This machine does not have the device in the settings."""

    permanent = True


class RecordingFailed(EngineError):
    """A step failed while it was recorded, which leaves torch's memory in an unknown state."""


class EngineCrashed(EngineError):
    """The engine crashed several times in a row. The next start waits for a backoff.

    `crashes` counts the crashes in a row, `last` says how the last one ended, `retry_seconds` is the remaining wait.
    """

    def __init__(self, crashes: int, last: str, retry_seconds: float) -> None:
        super().__init__(crashes, last, retry_seconds)
        self.crashes, self.last, self.retry_seconds = crashes, last, retry_seconds

    def __str__(self) -> str:
        return (
            f"{self.last}; that was the end of {self.crashes} engines in a row, so songs are not tried again for "
            f"{self.retry_seconds:.0f} s, unless an administrator asks /download-models"
        )


class ServerStopping(EngineError):
    """There is no engine, and none is started, because the server is stopping."""

    def __str__(self) -> str:
        return "the server is stopping"


class ModelBusy(YueError):
    """Another model is being loaded. Only one can be loaded at a time."""


class Cancelled(YueError):
    """The song, or the download that it waited for, was cancelled."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type's name where it says nothing."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _shortened(value: object, limit: int = 80) -> str:
    if value is None:
        return "nothing"  # null, or a field that was left out
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    if len(text) <= limit:
        return text
    length = f" ({len(value)} characters)" if isinstance(value, str) else ""
    return f"{text[: limit - 1]}…{length}"
