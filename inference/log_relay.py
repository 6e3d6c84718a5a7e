"""What a child process writes, as log records of its parent.

It does not know how the parent shows them. A child that calls `write_lines` sends each record as a line of JSON, and
whatever else it prints, a library's complaint or a crash's last words, is a warning to its parent.
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

LONGEST_LINE = 1 << 16  # characters that are taken for one line; more is cut into several
JOB = "job_id"  # what a song's id is called in the log, to be passed as `extra`
_KEPT = ("name", "levelno", "created", "process")

log = logging.getLogger(__name__)


def write_lines() -> None:
    """Have this child's log written for `relay`, on stderr. Of libraries only warnings, which is where tokens of
    theirs cannot be: some log the addresses that they ask, signatures and all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("inference", "storage"):
        logging.getLogger(ours).setLevel(logging.INFO)
    log_the_uncaught()


def log_the_uncaught() -> None:
    """Log what Python would print by itself: warnings, and exceptions that nobody catches."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def relay(stream: IO[bytes] | IO[str], name: str) -> threading.Thread:
    """Log what a child writes, in a thread that ends when the child's side is closed; `name` is its logger's."""

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
    """The traceback. A request's values in errors' own words, which may be lyrics, only `with_values`."""
    text = "".join(traceback.format_exception(error))
    if with_values:
        return text
    for each in _chain(error):
        text = text.replace(str(each), without_value(each)) if str(each) else text
    return text


def without_value(error: BaseException) -> str:
    """The error's words, without the request's value in them."""
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
    while line := stream.readline(LONGEST_LINE):
        text = (line if isinstance(line, str) else line.decode(errors="replace")).strip()
        if text:
            yield text


def _record(line: str, name: str) -> logging.LogRecord:
    """The record that a line is; a warning where it is none."""
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
    """The error, and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _log_uncaught(kind: type[BaseException], error: BaseException | None, at: TracebackType | None) -> None:
    if issubclass(kind, SystemExit):  # a thread's, which Python ignores too
        return
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), at)
        return
    log.error("an error that nobody caught: %s", kind.__name__, exc_info=error or kind())
