"""What the tests of weights share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.catalog import ModelFiles
from tests.support.hub_server import HubServer, serve_tiny

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def hub(tiny_files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that the processes started by the test use, with an empty cache."""
    with serve_tiny(tiny_files) as server:
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield server
