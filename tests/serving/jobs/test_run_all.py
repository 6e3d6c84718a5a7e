"""Tasks are all done, and what went wrong with them is heard of."""

from __future__ import annotations

import pytest

from serving.jobs.run_all import run_all
from storage import StorageError


def test_every_task_is_done_and_every_error_told(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def fail(name: str) -> None:
        done.append(name)
        raise StorageError(f"{name} failed", "full")

    with pytest.raises(StorageError, match="first failed"):
        run_all([lambda: fail("first"), lambda: fail("second"), lambda: done.append("third")])
    assert done == ["first", "second", "third"]
    assert "second failed" in caplog.text
