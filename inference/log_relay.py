"""Relays the log of a child process to its parent.

A child that calls `write_lines` sends each record as a line of JSON. Anything else that it prints, such as a library's
message or a crash report, becomes a warning in the parent.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import IO

MAX_LINE = 1 << 16  # characters; a longer line is split
JOB = "job_id"  # the name of a song's id in the log, passed as `extra`
_KEPT = ("name", "levelno", "created", "process")

log = logging.getLogger(__name__)


def write_lines() -> None:
    """Write this child's log to stderr, for `relay`.

    Libraries log warnings only: at lower levels, some log the URLs of their requests, including signatures.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("inference", "storage"):
        logging.getLogger(ours).setLevel(logging.INFO)
    log_the_uncaught()


def log_the_uncaught() -> None:
    """Log what Python would otherwise print: warnings and uncaught exceptions."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def relay(stream: IO[bytes] | IO[str], name: str) -> threading.Thread:
    """Log what a child writes, in a thread that ends when the child closes its side. `name` is that of the logger."""

    def pass_on() -> None:
        with stream:
            for line in _lines(stream):
                record = _record(line, name)
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)

    thread = threading.Thread(target=pass_on, name="child-log", daemon=True)
    thread.start()
    return thread


def traceback_text(error: BaseException, with_values: bool = False) -> str:
    """The traceback. Request values in error messages, which may be lyrics, are left out unless `with_values`."""
    text = "".join(traceback.format_exception(error))
    if with_values:
        return text
    for each in _chain(error):
        text = text.replace(str(each), without_value(each)) if str(each) else text
    return text


def without_value(error: BaseException) -> str:
    """The error's message, without the request's value."""
    return getattr(error, "without_value", None) or str(error)


class _Line(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: getattr(record, name) for name in _KEPT}
        fields["message"] = record.getMessage()
        if hasattr(record, JOB):
            fields[JOB] = getattr(record, JOB)
        error = record.exc_info[1] if record.exc_info else None
        if error:
            fields["stack_trace"] = traceback_text(error)
        return json.dumps(fields)


def _lines(stream: IO[bytes] | IO[str]) -> Iterator[str]:
    while line := stream.readline(MAX_LINE):
        text = (line if isinstance(line, str) else line.decode(errors="replace")).strip()
        if text:
            yield text


def _record(line: str, name: str) -> logging.LogRecord:
    """The record in a line; a line without a record becomes a warning."""
    try:
        fields = json.loads(line)
        record = logging.makeLogRecord({**{kept: fields[kept] for kept in _KEPT}, "msg": fields["message"]})
        record.levelname = logging.getLevelName(record.levelno)
        for name in ("stack_trace", JOB):
            if name in fields:
                setattr(record, name, fields[name])
    except (ValueError, TypeError, KeyError):
        record = logging.makeLogRecord({"name": name, "levelno": logging.WARNING, "levelname": "WARNING", "msg": line})
    return record


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _log_uncaught(kind: type[BaseException], error: BaseException | None, at: TracebackType | None) -> None:
    if issubclass(kind, SystemExit):  # in a thread, where Python ignores it too
        return
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), at)
        return
    log.error("uncaught error: %s", kind.__name__, exc_info=error or kind())
