"""Where the project's own files lie.

It does not look at them, nor at the current directory.
"""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent
