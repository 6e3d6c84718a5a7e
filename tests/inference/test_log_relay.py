"""A child's words as its parent's log: records, warnings, last words, and whatever a library prints."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from inference import log_relay
from tests.support.paths import PROJECT

SECONDS = 60.0
BEGIN = "import logging, os, sys, threading, warnings; from inference import log_relay; log_relay.write_lines()\n"


def records_of(program: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What a child with that program gives its parent to log."""
    command = [sys.executable, "-u", "-c", BEGIN + program]
    with caplog.at_level(logging.INFO):
        child = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert child.stdout is not None
        log_relay.relay(child.stdout, "the.child").join(SECONDS)
        child.wait(SECONDS)
    return caplog.records


def test_records_keep_their_logger_level_and_text(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = records_of("logging.getLogger('inference.x').info('%d rows\\nof %s', 3, 'ä')", caplog)
    assert (record.name, record.levelname, record.getMessage()) == ("inference.x", "INFO", "3 rows\nof ä")


def test_a_record_says_which_job_it_is_about(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = records_of("logging.getLogger('inference.x').error('it broke', extra={'job_id': 'a1'})", caplog)
    assert vars(record)["job_id"] == "a1"


def test_libraries_are_heard_from_warnings_on(caplog: pytest.LogCaptureFixture) -> None:
    program = "for say in (logging.getLogger('httpx').info, logging.getLogger('httpx').warning): say('GET /?token=t')"
    assert [record.levelname for record in records_of(program, caplog)] == ["WARNING"]


def test_an_error_comes_in_one_piece_without_the_songs_words(caplog: pytest.LogCaptureFixture) -> None:
    program = """
from inference.errors import InvalidField
try:
    raise InvalidField("lyrics", "xylophonic", "a tag")
except InvalidField:
    logging.getLogger("inference.x").exception("it broke")
"""
    (record,) = records_of(program, caplog)
    stack = vars(record)["stack_trace"]
    assert stack.startswith("Traceback") and "InvalidField: lyrics: allowed: a tag" in stack
    assert "xylophonic" not in caplog.text + stack.replace('raise InvalidField("lyrics", "xylophonic"', "")


def test_whatever_else_is_printed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    program = "print('from a print'); os.write(2, b'from \\xff C\\n\\n'); os.write(1, b'{\"json\": 1}\\n')"
    found = [(record.name, record.levelname, record.getMessage()) for record in records_of(program, caplog)]
    texts = ("from a print", "from � C", '{"json": 1}')
    assert found == [("the.child", "WARNING", text) for text in texts]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("raise ValueError('burst')", "ValueError"),
        ("thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()", "ZeroDivisionError"),
    ],
)
def test_what_nobody_catches_is_an_error_with_its_stack(
    program: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    (record,) = records_of(program, caplog)
    assert record.levelname == "ERROR" and told in record.getMessage() and told in vars(record)["stack_trace"]


def test_pythons_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = records_of("warnings.warn('old')", caplog)
    assert (record.name, record.levelname) == ("py.warnings", "WARNING") and "UserWarning: old" in record.getMessage()


def test_a_line_without_an_end_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    records = records_of(f"os.write(1, b'x' * {3 * log_relay.MAX_LINE})", caplog)
    assert "".join(record.getMessage() for record in records) == "x" * 3 * log_relay.MAX_LINE
    assert max(len(record.getMessage()) for record in records) <= log_relay.MAX_LINE
