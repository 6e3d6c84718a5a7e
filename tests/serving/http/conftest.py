"""What the tests of routes share: a server whose songs wait until a test lets them go on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server import close_app
from tests.support.fakes import Served


@pytest.fixture
def held() -> Iterator[Served]:
    """A server with its model loaded, whose engine generates nothing until it is released."""
    served = Served(may_generate=False)
    served.client.post("/download-models")
    yield served
    close_app(served.app)
