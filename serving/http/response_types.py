"""What the models of answers are made of: their base, and the types of single values.

Independent of what is answered.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from serving.jobs.layout import ID

Natural = Annotated[int, Field(ge=0)]
Place = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(ge=0)]
Timestamp = Annotated[datetime, PlainSerializer(lambda moment: moment.isoformat(timespec="milliseconds"))]
# Whole songs: the pattern is for the contract, as checking it would take as long as encoding.
Base64 = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9+/]*=*$"})]
JobId = Annotated[str, Field(pattern=f"^{ID.pattern}$")]


def maybe(description: str, **limits: Any) -> Any:
    """A member that is there only where it is known."""
    return Field(None, description=description, **limits)


class Answer(BaseModel):
    """A JSON object that is sent."""

    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of(cls, **members: object) -> Self:
        """The answer with these members, each of which it has."""
        return cls.model_validate(members, extra="forbid")

    @classmethod
    def unchecked(cls, **members: object) -> Self:
        """The answer with these members, with values as other processes or servers report them."""
        assert cls.model_config.get("extra") == "allow" or members.keys() <= cls.model_fields.keys()
        return cls.model_construct(**members)  # type: ignore[arg-type]  # none of them is `_fields_set`

    def as_json(self) -> dict[str, object]:
        """The answer as a JSON object, with the members that it was given."""
        return self.model_dump(mode="json", exclude_unset=True, warnings=False)
