"""The project's own folder, independent of the current directory."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent
