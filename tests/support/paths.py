"""Where the tests find the project's own files."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PROJECT = TESTS.parent
DATA = TESTS / "data"
