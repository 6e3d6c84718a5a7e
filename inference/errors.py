"""Defines the errors of inference, as one small tree.

Independent of HTTP: `serving/http/problems.py` turns them into responses. Every error keeps its constructor's arguments
in `args`, so it can be pickled between processes.
"""

from __future__ import annotations


class YueError(Exception):
    """The root of the tree. `str(error)` is one sentence for the person who can fix it.

    A `permanent` error occurs again on every retry until something else changes.
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
        """The message without the value, which may be lyrics, for logs."""
        return f"{self.field}: allowed: {self.allowed}"


class CheckpointError(YueError):
    """A file of weights is missing, damaged, or belongs to another network.

    `path` is the file. `reason` says what is wrong, and names the tensors.
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
    "missing_file": "a file that the model needs is missing from its source",
    "invalid_setting": "an environment variable is invalid",
    "offline": "the network is switched off, and files are missing",
    "unavailable": "the source did not respond, or responded with errors, on every try",
    "corrupted": "a file has the wrong content, even after a second download",
    "no_space": "the disk is full",
    "not_writable": "the folder for the files cannot be written",
    "not_readable": "a local file cannot be read",
    "cancelled": "the download was cancelled",
    "failed": "the download's process ended without a result, or failed because of a bug",
}
TEMPORARY_REASONS = ("unavailable", "cancelled", "failed")  # the others last until somebody fixes the cause


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
    """Generation failed: for one song, or for the whole engine."""


class DeviceMissing(EngineError):
    """This machine does not have the device in the settings."""

    permanent = True


class RecordingFailed(EngineError):
    """CUDA graph capture failed, which leaves torch's memory in an unknown state."""


class EngineCrashed(EngineError):
    """The engine crashed several times in a row. The next start waits for a backoff.

    `crashes` counts the crashes in a row, `last` describes the last one, `retry_seconds` is the remaining wait.
    """

    def __init__(self, crashes: int, last: str, retry_seconds: float) -> None:
        super().__init__(crashes, last, retry_seconds)
        self.crashes, self.last, self.retry_seconds = crashes, last, retry_seconds

    def __str__(self) -> str:
        return (
            f"{self.last}; the engine crashed {self.crashes} times in a row; the next start is in "
            f"{self.retry_seconds:.0f} s, or at once with POST /download-models"
        )


class ServerStopping(EngineError):
    """No engine is running and none is started, because the server is stopping."""

    def __str__(self) -> str:
        return "the server is stopping"


class ModelBusy(YueError):
    """Another model is being loaded. Only one can be loaded at a time."""


class Cancelled(YueError):
    """The song, or the download that it waited for, was cancelled."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if the message is empty."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _shortened(value: object, limit: int = 80) -> str:
    if value is None:
        return "nothing"  # null, or a field that was left out
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    if len(text) <= limit:
        return text
    length = f" ({len(value)} characters)" if isinstance(value, str) else ""
    return f"{text[: limit - 1]}…{length}"
