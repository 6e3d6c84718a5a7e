"""The tiny model, where it is kept: it is made when it is asked for first. It sings noise, not music.

It imports no torch where there is nothing to be made: `inference/tiny/checkpoints.py`, which makes it, does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from inference.catalog import TINY, ModelFiles

FORMAT = 2  # counted up whenever what is written changes, so that no older set is taken for it


def ensure(cache: Path) -> ModelFiles:
    """The tiny set under `cache`, written if it is not there yet. Any number of processes may ask at once."""
    target = cache / f"{TINY}-{FORMAT}"
    if not target.exists():
        from inference.tiny import checkpoints

        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{TINY}-", dir=cache) as temporary:
            fresh = Path(temporary) / target.name
            checkpoints.write(fresh)
            try:
                fresh.rename(target)  # atomic, and refused where another process came first
            except OSError:
                if not target.exists():
                    raise
    return ModelFiles(TINY, f"format-{FORMAT}", target / "stage1", target / "stage2", target / "codec")
