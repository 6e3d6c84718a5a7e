"""The answer to a check of lyrics in words: the sections with their expected length, warnings and errors.

It is independent of servers.
"""

from __future__ import annotations

from yue_client.errors import Json


def without_genres(answer: Json) -> Json:
    """The answer for lyrics alone: that genres are missing is no error."""
    errors = [error for error in answer["errors"] if error["field"] != "genres"]
    return {**answer, "errors": errors, "ok": not errors}


def words(answer: Json) -> str:
    """The answer as lines of text."""
    sections = answer["sections"]
    lines = [f"{_counted(len(sections), 'section')}, about {answer['expected_seconds']:.0f} s"] if sections else []
    places = [f"line {section['line']}" for section in sections]
    tags = [f"[{section['tag']}]" for section in sections]
    for section, place, tag in zip(sections, places, tags, strict=True):
        length = f"{section['expected_seconds']:3.0f} s" if section["generated"] else "not generated"
        content = _counted(len(section["lines"]), "line") if section["lines"] else "no words"
        lines.append(f"  {place:{_width(places)}}  {tag:{_width(tags)}}  {length}, {content}")
    lines += [f"warning: {warning['detail']}" for warning in answer["warnings"]]
    lines += [f"error: {error['detail']}" for error in answer["errors"]]
    return "\n".join(lines)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _width(texts: list[str]) -> int:
    return max(map(len, texts))
