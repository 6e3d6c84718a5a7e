"""The project's own folder, and the folder for its files on this machine, independent of the current directory."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent


def cache_folder() -> Path:
    """The folder for this program's own files: `$XDG_CACHE_HOME/yue-server` or `~/.cache/yue-server`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "yue-server"
