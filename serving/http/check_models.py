"""What the answer to a check holds.

`serving/http/check.py` makes it.
"""

from __future__ import annotations

from pydantic import Field

from serving.http.response_types import Answer, Number, Place


class CheckedSection(Answer):
    """A section of lyrics."""

    number: Place
    tag: str = Field(description="as the lyrics name it, or YuE's name for one in another language")
    line: Place = Field(description="of its tag")
    lines: list[str] = Field(description="its words")
    generated: bool = Field(description="false for those after `segments`")
    expected_seconds: Number = Field(description="in the song, about; 0 if it is not generated")


class CheckedWarning(Answer):
    """Something that would be generated otherwise than was probably meant."""

    line: Place | None = Field(description="the first line of the lyrics that it is about; null for the whole")
    lines: list[Place] = Field(description="all of these lines")
    detail: str = Field(description="as a prediction's `warnings` have it")


class CheckedError(Answer):
    """A field for which /predict would refuse the song."""

    field: str = Field(description="a dotted path")
    line: Place | None = Field(description="of the lyrics, where it is known")
    detail: str


class SongCheck(Answer):
    """What there is to say of a song before it is generated."""

    ok: bool = Field(description="true if there are no errors: /predict would accept it")
    sections: list[CheckedSection] = Field(description="none while the lyrics are wrong")
    expected_seconds: Number = Field(description="of the song, about")
    warnings: list[CheckedWarning]
    errors: list[CheckedError]
