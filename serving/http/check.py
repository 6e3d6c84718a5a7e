"""Checks a song before it is generated: its sections with their expected length, and what is wrong or doubtful.

It starts nothing and stores nothing. Wrong fields are part of the answer, in the words that /predict has for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import Response, jsonify

from inference.catalog import Model
from inference.errors import YueError
from inference.song import SongRequest
from inference.text import lyrics, prompt
from inference.vocabulary import TOKENS_PER_SECOND
from serving.http.check_models import CheckedError, CheckedSection, CheckedWarning, SongCheck
from serving.http.job_routes import Route
from serving.http.json_body import read_json
from serving.http.problems import Problem, problem_of
from serving.http.request_models import Instance, as_object, without_nulls
from serving.http.song_instances import SongInstance, read_song_instance

STAND_IN = "pop"  # for genres that are still missing, so that the rest is checked

Errors = list[Mapping[str, Any]]


class Checks:
    """The view, and the operation of /predict. `model` returns the model that would generate the song."""

    def __init__(self, model: Callable[[], Model]) -> None:
        self._model = model

    def table(self) -> list[Route]:
        """The path and method of the view."""
        return [("/check", ("POST",), self.check)]

    def check(self) -> Response:
        """Check a song without generating it."""
        return jsonify(self.answer(read_json(), {}))

    def answer(self, instance: object, parameters: Mapping[str, object]) -> dict[str, object]:
        """What there is to say about an instance. Raises Problem if it is no object."""
        fields = {**parameters, **without_nulls(as_object(instance), Instance)}
        fields.pop("operation", None)
        song, errors = self._read(fields)
        sections = _sections(song.request) if song else []
        return SongCheck.of(
            ok=not errors,
            sections=sections,
            expected_seconds=round(sum(section.expected_seconds for section in sections), 1),
            warnings=[_warning(str(each), each.lines) for each in song.cautions] if song else [],
            errors=[CheckedError.of(**_located(error)) for error in errors],
        ).as_json()

    def _read(self, fields: dict[str, object]) -> tuple[SongInstance | None, Errors]:
        """The song without its wrong fields, and their errors; no song where the lyrics are wrong."""
        errors: Errors = []
        while True:
            try:
                return read_song_instance(fields, {}, self._model()), errors
            except (Problem, YueError) as error:
                found = _errors_in(problem_of(error))
            errors += found
            wrong = {str(error["field"]) for error in found}
            rest = {name: value for name, value in fields.items() if not any(_is_within(each, name) for each in wrong)}
            if "genres" in wrong:
                rest["genres"] = STAND_IN
            if "lyrics" in wrong or rest == fields:
                return None, errors
            fields = rest


def _errors_in(problem: Problem) -> Errors:
    """The error of each field. Raises the problem if it is about no field."""
    several = problem.members.get("errors")
    found: Any = several if isinstance(several, list) else [problem.as_dict()]
    if not all("field" in error for error in found):
        raise problem
    return list(found)


def _is_within(field: str, name: str) -> bool:
    return field == name or field.startswith(f"{name}.")


def _located(error: Mapping[str, Any]) -> dict[str, object]:
    return {"field": error["field"], "line": error.get("line"), "detail": error["detail"]}


def _warning(detail: str, lines: tuple[int, ...]) -> CheckedWarning:
    return CheckedWarning.of(line=lines[0] if lines else None, lines=list(lines), detail=detail)


def _sections(song: SongRequest) -> list[CheckedSection]:
    """Each section, with the length that is expected of those that are generated."""
    sections = lyrics.parse(song.lyrics).sections
    generated = prompt.sections_generated(song.segments, len(sections))
    longest_seconds = song.max_new_tokens / TOKENS_PER_SECOND
    return [
        CheckedSection.of(
            number=number,
            tag=section.tag,
            line=section.line,
            lines=[line for line in section.body.split("\n") if line.strip()],
            generated=number <= generated,
            expected_seconds=round(min(longest_seconds, section.expected_seconds), 1) if number <= generated else 0.0,
        )
        for number, section in enumerate(sections, 1)
    ]
