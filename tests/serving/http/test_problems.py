"""Every error has a kind from one list, and the document of errors is that list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from werkzeug.exceptions import BadGateway, ExpectationFailed, MethodNotAllowed

from inference.errors import EngineCrashed
from serving.http import problem_kinds
from serving.http.problem_kinds import KINDS
from serving.http.problems import Problem, problem_of
from serving.jobs.errors import FilesLost, JobError, QueueFull
from tests.support.paths import PROJECT

SOURCES = [PROJECT / "server.py", *(PROJECT / "serving").rglob("*.py")]


def texts() -> Iterator[str]:
    """Every string in the server's code, but for the list itself."""
    for path in SOURCES:
        if path.name != "problem_kinds.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def raised() -> Iterator[tuple[int, str]]:
    """The status and kind of each Problem that is made with both spelled out."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                values = [each.value if isinstance(each, ast.Constant) else None for each in node.args[:2]]
                if len(values) == 2 and isinstance(values[0], int) and isinstance(values[1], str):
                    yield values[0], values[1]


def test_the_document_of_errors_is_the_list_of_kinds() -> None:
    assert (PROJECT / "docs" / "errors.md").read_text() == problem_kinds.markdown(), (
        "write it anew: python -m serving.http.problem_kinds > docs/errors.md"
    )


def test_every_problem_in_the_code_is_in_the_list_with_its_status() -> None:
    found = set(raised())
    assert len(found) > 10
    for status, kind in found:
        assert KINDS[kind].status in (status, None), kind


def test_every_kind_in_the_list_is_given_somewhere() -> None:
    of_http = {"bad-request", "method-not-allowed", "precondition-failed", "requested-range-not-satisfiable"}
    assert KINDS.keys() - set(texts()) <= of_http  # werkzeug's own names


def test_names_are_unique_and_every_kind_says_what_to_do() -> None:
    assert len(KINDS) == len(problem_kinds._KINDS)
    assert all(kind.meaning.endswith(".") and kind.advice.endswith(".") for kind in KINDS.values())


@pytest.mark.parametrize(("status", "kind"), [(400, "made-up"), (404, "conflict")])
def test_an_unknown_kind_and_another_status_are_refused(status: int, kind: str) -> None:
    with pytest.raises(AssertionError, match=kind):
        Problem(status, kind, "something")


def test_what_http_refuses_otherwise_has_a_known_kind_too(caplog: pytest.LogCaptureFixture) -> None:
    assert problem_of(MethodNotAllowed(valid_methods=["POST"])).kind == "method-not-allowed"
    unlisted = problem_of(ExpectationFailed())
    assert (unlisted.status, unlisted.kind) == (400, "bad-request")
    broken = problem_of(BadGateway())
    assert (broken.status, broken.kind) == (500, "internal-error")
    assert "unforeseen error" in caplog.text


def test_an_error_of_another_version_has_a_known_kind() -> None:
    problem = problem_of(JobError("teapot", "no", {"a": 1}))
    assert (problem.status, problem.kind, problem.detail) == (500, "song-failed", "no")
    assert problem_of(JobError("cancelled", "no")).status == 409


def test_every_kind_of_job_error_is_in_the_list() -> None:
    code = (PROJECT / "serving" / "jobs" / "errors.py").read_text()
    named = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', code))
    assert len(named) > 10 and named <= KINDS.keys()


def test_a_problem_says_when_to_try_again_where_its_error_does() -> None:
    assert problem_of(EngineCrashed(3, "it was ended", 41.2)).headers == {"Retry-After": "42"}
    assert problem_of(QueueFull(3, 4, retry_seconds=None, expected_seconds=None)).headers == {"Retry-After": "30"}
    assert problem_of(QueueFull(3, 4, retry_seconds=0.0, expected_seconds=9.5)).headers == {"Retry-After": "1"}
    assert problem_of(FilesLost()).headers == {}
