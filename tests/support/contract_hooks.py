"""What a tool that draws requests from the contract cannot know of songs; loaded by schemathesis itself.

Independent of which server is asked.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection

TAG = "[verse]\n"
LONGEST = 20_000 - len(TAG)


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Lyrics begin with a tag, which no schema can say: otherwise hardly a song would be generated."""
    parts = [body, body.get("parameters"), *_instances(body)] if isinstance(body, dict) else []
    for part in parts:
        words = part.get("lyrics") if isinstance(part, dict) else None
        if isinstance(words, str) and 0 < len(words) <= LONGEST:
            part["lyrics"] = TAG + words
    return body


@schemathesis.check
def what_is_wrong_is_refused(ctx: Any, response: schemathesis.Response, case: schemathesis.Case) -> bool | None:
    """As `negative_data_rejection` has it; beside good instances, a bad one is refused in its prediction."""
    is_json = "application/json" in response.headers.get("content-type", [])
    if response.status_code == 200 and is_json and case.operation.path == "/predict":
        predictions = response.json()["predictions"]
        if any("error" in prediction and "status" not in prediction for prediction in predictions):
            return None
    return negative_data_rejection(ctx, response, case)


def _instances(body: dict[str, Any]) -> list[Any]:
    instances = body.get("instances")
    return instances if isinstance(instances, list) else []
