"""Formats the log: one JSON object a line for Google Cloud, or coloured lines for a terminal.

Lyrics and genres are left out unless `YUE_LOG_LYRICS` is set. Every module logs with `logging`; fields bound to a
request or a job with `structlog.contextvars` appear in each of its lines.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from inference.log_relay import log_the_uncaught, traceback_text, without_value
from serving.settings import Settings

OURS = ("gunicorn", "inference", "model_manager", "serving.models.states", "server", "serving", "storage")
PRIVATE = ("lyrics", "genres")  # fields that are logged only if YUE_LOG_LYRICS is set
_GOOGLE = "logging.googleapis.com/"
_FIRST = ("severity", "message", "time", "logger")


def config(settings: Settings) -> dict[str, Any]:
    """Return a `logging.config.dictConfig`. Everything goes to stdout: platforms take stderr for errors."""
    level = settings.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter, "settings": settings}},
        "handlers": {"stdout": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
        # Libraries log from WARNING on: below, some log addresses and headers that contain tokens.
        "root": {"level": max(logging.WARNING, logging.getLevelName(level)), "handlers": ["stdout"]},
        "loggers": {name: {"level": level} for name in OURS}
        | {"gunicorn.error": {"level": level, "handlers": [], "propagate": True}}
        | {"gunicorn.access": {"level": "WARNING"}},  # `serving/observability/requests.py` logs requests
    }


def catch_all() -> None:
    """Log warnings and uncaught exceptions instead of writing them to stderr."""
    log_the_uncaught()


def formatter(settings: Settings) -> logging.Formatter:
    """Return the formatter that the settings ask for."""
    terminal = sys.stdout.isatty()
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not terminal)
    return Lines(as_json, settings.project, settings.log_lyrics, terminal)


class Lines(ProcessorFormatter):
    """Formats records. `project` is the Google Cloud project for trace names; `private` keeps lyrics and genres."""

    def __init__(self, as_json: bool, project: str | None = None, private: bool = False, colours: bool = False) -> None:
        last: tuple[Processor, ...] = (_traces(project), _in_order, _json) if as_json else (_console(colours),)
        steps = (_stamped, _stack(private), *(() if private else (_withheld,)), self.remove_processors_meta)
        super().__init__(processors=(*steps, *last), foreign_pre_chain=(ExtraAdder(), merge_contextvars))
        self._private = private

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; on a terminal, an exception adds more lines."""
        if not self._private and isinstance(record.args, tuple):
            record = logging.makeLogRecord(record.__dict__)
            record.args = tuple(
                without_value(arg) if isinstance(arg, BaseException) else arg for arg in record.args or ()
            )
        return super().format(record)


def _stamped(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    record: logging.LogRecord = line["_record"]
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    return {
        "severity": record.levelname,
        "time": moment.replace("+00:00", "Z"),
        "logger": record.name,
        **line,
    }


def _stack(private: bool) -> Processor:
    """Put the exception into `stack_trace`, where Google's Error Reporting looks for it."""

    def render(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
        error = line.pop("exc_info", None)
        error = error[1] if isinstance(error, tuple) else error
        if isinstance(error, BaseException):
            line["stack_trace"] = traceback_text(error, private)
        return line

    return render


def _withheld(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    return {name: value for name, value in line.items() if name not in PRIVATE}


def _traces(project: str | None) -> Processor:
    """Rename the trace fields to those that link Google's log entries to its traces."""

    def rename(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
        if project and "trace_id" in line:
            line[_GOOGLE + "trace"] = f"projects/{project}/traces/{line.pop('trace_id')}"
            for ours, theirs in (("span_id", "spanId"), ("trace_sampled", "trace_sampled")):
                if ours in line:
                    line[_GOOGLE + theirs] = line.pop(ours)
        return line

    return rename


def _in_order(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    line["message"] = line.pop("event")
    return {**{name: line[name] for name in _FIRST}, **line}


def _json(logger: WrappedLogger, method: str, line: EventDict) -> str:
    return json.dumps(line, default=repr)


def _console(colours: bool) -> Processor:
    write = ConsoleRenderer(colors=colours, timestamp_key="time")

    def render(logger: WrappedLogger, method: str, line: EventDict) -> str:
        line["level"] = line.pop("severity").lower()
        line.pop("httpRequest", None)
        if "stack_trace" in line:
            line["exception"] = line.pop("stack_trace")
        return str(write(logger, method, line))

    return render
