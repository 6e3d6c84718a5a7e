"""The errors of inference, one small tree.

It does not know how they are shown: `serving/http/problems.py` turns them into HTTP responses.
Every error keeps its constructor's arguments in `args`, so it survives the way between processes.
"""

from __future__ import annotations


class YueError(Exception):
    """The root: `str(error)` is one sentence for the person who has to act on it.

    `permanent` says that trying again, with nothing else changed, can only end the same way.
    """

    permanent = False


class InvalidField(YueError):
    """A request holds a value that cannot be sung.

    `field` is a dotted path (`reference.start_seconds`), `value` what was given, `allowed` what would be taken.
    """

    def __init__(self, field: str, value: object, allowed: str, line: int | None = None) -> None:
        super().__init__(field, value, allowed, line)
        self.field, self.value, self.allowed, self.line = field, value, allowed, line

    def __str__(self) -> str:
        where = f" (line {self.line})" if self.line is not None else ""
        return f"{self.field}{where}: got {_shortened(self.value)}; allowed: {self.allowed}"

    @property
    def without_value(self) -> str:
        """What it says, for those who must not read what was given: it may be lyrics."""
        return f"{self.field}: allowed: {self.allowed}"


class CheckpointError(YueError):
    """A file of weights is missing, cut short, or not the network it should be.

    `path` is the file, `reason` names what is wrong with it, down to the tensor.
    """

    permanent = True

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnknownModel(YueError):
    """No model of that name is in the catalogue and it is no `owner/name@revision`."""

    def __init__(self, name: str, allowed: str) -> None:
        super().__init__(name, allowed)
        self.name, self.allowed = name, allowed

    def __str__(self) -> str:
        return f"model: got {_shortened(self.name)}; allowed: {self.allowed}"


DOWNLOAD_REASONS = {
    "gated": "its terms must be accepted, or a token is needed",
    "no_repository": "there is no such repository or folder, or it is private",
    "no_revision": "the repository has no such revision",
    "missing_file": "a file that singing needs is not there",
    "invalid_setting": "a variable of the environment cannot be used",
    "offline": "the network is switched off, and not all is here",
    "unavailable": "the other side did not answer, or with errors, again and again",
    "corrupted": "a file is not what it should be, also when fetched again",
    "no_space": "the disk is too small",
    "not_writable": "the folder for the files cannot be written",
    "not_readable": "a file that is here cannot be read",
    "cancelled": "somebody asked for the end",
    "failed": "the download's process ended without an answer, or by a mistake of ours",
}


PASSING_REASONS = ("unavailable", "cancelled", "failed")  # the others stay until somebody acts


class DownloadError(YueError):
    """The weights could not be brought here; the message says what to do.

    `reason` is one of DOWNLOAD_REASONS, for programs.
    """

    def __init__(self, message: str, reason: str = "unavailable") -> None:
        super().__init__(message, reason)
        assert reason in DOWNLOAD_REASONS, reason
        self.message, self.reason = message, reason
        self.permanent = reason not in PASSING_REASONS

    def __str__(self) -> str:
        return self.message


LASTING = ("denied", "missing", "invalid")  # kinds of a StorageError that stay until somebody acts


class EngineError(YueError):
    """The engine's process failed or ended; the song in it is lost, the server is not."""


class DeviceMissing(EngineError):
    """The machine does not have the device that the settings name."""

    permanent = True


class RecordingFailed(EngineError):
    """A step failed in the middle of its recording, which leaves torch's memory in no known state."""


class EngineCrashed(EngineError):
    """The engine ended by itself again and again, and is not started before a pause is over.

    `crashes` is how often in a row, `last` how it ended the last time, `retry_seconds` how long the pause still is.
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
    """No engine is there, and none is started any more, because the server is stopping."""

    def __str__(self) -> str:
        return "the server is stopping"


class ModelBusy(YueError):
    """Another model is being loaded; only one is at a time."""


class Cancelled(YueError):
    """The song, or the download that it waited for, was cancelled by somebody."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type's name where it says nothing."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _shortened(value: object, limit: int = 80) -> str:
    if value is None:
        return "nothing"  # which is what a request says by null, and by leaving a field out
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    if len(text) <= limit:
        return text
    length = f" ({len(value)} characters)" if isinstance(value, str) else ""
    return f"{text[: limit - 1]}…{length}"
