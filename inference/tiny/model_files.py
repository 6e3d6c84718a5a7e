"""Provides the files of the tiny model, and writes them when they are first needed. The model plays a tune.

It imports no torch unless files must be written: `inference/tiny/checkpoints.py`, which writes them, does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from inference.catalog import TINY, ModelFiles

FORMAT = 3  # increased with each change of the files, so that older ones are not used


def ensure(cache: Path) -> ModelFiles:
    """The tiny model under `cache`, written if it is missing. Several processes may call it at once."""
    target = cache / f"{TINY}-{FORMAT}"
    if not target.exists():
        from inference.tiny import checkpoints

        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{TINY}-", dir=cache) as temporary:
            fresh = Path(temporary) / target.name
            checkpoints.write(fresh)
            try:
                fresh.rename(target)  # atomic; fails if another process was first
            except OSError:
                if not target.exists():
                    raise
    return ModelFiles(TINY, f"format-{FORMAT}", target / "stage1", target / "stage2", target / "codec")
