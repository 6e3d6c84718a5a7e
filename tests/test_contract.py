"""The server keeps to its contract: every route is in it, every answer is as it says, whatever is asked.

Requests are drawn from the document itself, right ones and wrong ones, always the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from server import close_app
from tests.fakes import Served

EXAMPLES = 40  # requests of each operation, besides those that try each limit of each field
"""Right by the schema, and yet refused: lyrics without a tag, unknown models, ids of no job."""
MAY_REFUSE = ("positive_data_acceptance",)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served(max_queue=10_000)
    yield served
    close_app(served.app)


@pytest.fixture(scope="module")
def contract(served: Served) -> Any:
    return schemathesis.openapi.from_wsgi("/openapi.json", served.app)


schema = schemathesis.pytest.from_fixture("contract")
print(CHECKS.get_all_names())


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_answer_is_as_the_contract_says(case: schemathesis.Case) -> None:
    case.call_and_validate()
