"""How a line of the log looks, for machines and for people, and what is never in it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from structlog.contextvars import clear_contextvars

from inference.errors import EngineError, InvalidField
from serving.observability import logs
from serving.settings import Settings

WORDS = "xylophonic zanzibar"


def record(message: str, *args: object, error: BaseException | None = None, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord(
        "serving.jobs.service", logging.INFO, "here.py", 1, message, args, error and (type(error), error, None)
    )
    vars(made).update(fields)
    return made


def as_json(made: logging.LogRecord, **settings: Any) -> dict[str, Any]:
    return json.loads(logs.formatter(Settings(aip_mode=None, log_format="json", **settings)).format(made))


def caught(error: Exception) -> Exception:
    """The error as it is when it was raised, while another one was handled."""
    try:
        try:
            raise InvalidField("lyrics", WORDS, "a [tag] first", line=1)
        except InvalidField as cause:
            raise error from cause
    except type(error) as raised:
        return raised


def test_a_line_has_googles_fields() -> None:
    clear_contextvars()  # what a request of another test has bound
    made = record("job %s: queued", "a")
    made.created = 1_764_158_400.25
    line = as_json(made)
    assert line == {
        "severity": "INFO",
        "message": "job a: queued",
        "time": "2025-11-26T12:00:00.250000Z",
        "logger": "serving.jobs.service",
    }


@pytest.mark.parametrize("message", ['"quoted"', "two\nlines", "\udcff", "naïve ♪", "{}", "100%"])
def test_any_text_is_one_line_of_valid_json(message: str) -> None:
    formatted = logs.formatter(Settings(aip_mode=None, log_format="json")).format(record(message))
    assert formatted.isascii() and len(formatted.splitlines()) == 1
    assert json.loads(formatted)["message"] == message


def test_a_field_that_is_no_json_is_shown_as_text() -> None:
    assert as_json(record("m", where={1}))["where"] == "{1}"


def test_the_words_of_a_song_are_withheld_wherever_an_error_repeats_them() -> None:
    error = caught(EngineError("the song could not be read"))
    made = record("refused: %s", InvalidField("genres", WORDS, "tags"), error=error, lyrics=WORDS, genres=WORDS)
    line = as_json(made)
    assert WORDS not in json.dumps(line)
    assert line["message"] == "refused: genres: allowed: tags"
    assert "lyrics: allowed: a [tag] first" in line["stack_trace"]  # the cause is told of, but for the words
    assert line["stack_trace"].rstrip().endswith("EngineError: the song could not be read")


def test_the_words_are_there_where_a_setting_says_so() -> None:
    line = as_json(record("m", error=caught(EngineError("e")), lyrics=WORDS), log_lyrics=True)
    assert line["lyrics"] == WORDS and WORDS in line["stack_trace"]


def test_without_a_project_a_trace_has_its_plain_name() -> None:
    assert as_json(record("m", trace_id="t"))["trace_id"] == "t"
    named = as_json(record("m", trace_id="t"), aip_project_number="12")
    assert named["logging.googleapis.com/trace"] == "projects/12/traces/t" and "trace_id" not in named


@pytest.mark.parametrize("log_format", ["auto", "console"])
def test_a_person_at_a_terminal_gets_colours_and_a_stack_below(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    text = logs.formatter(Settings(aip_mode=None, log_format=log_format)).format(
        record("it broke", error=caught(EngineError("the boiler burst")), lyrics=WORDS)
    )
    assert "\x1b[" in text and "it broke" in text
    assert text.rstrip().endswith("EngineError: the boiler burst") and WORDS not in text


def test_libraries_are_heard_from_warnings_on_even_when_we_debug() -> None:
    config = logs.config(Settings(aip_mode=None, log_level="debug"))
    assert config["root"]["level"] == logging.WARNING
    assert {name: own["level"] for name, own in config["loggers"].items()}["serving"] == "DEBUG"
