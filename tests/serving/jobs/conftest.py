"""What the tests of jobs share."""

from __future__ import annotations

import pytest

from tests.support.fakes import FakeModels


@pytest.fixture
def held_models() -> FakeModels:
    """Models whose engine begins songs, but ends none until told."""
    return FakeModels(may_generate=False)
