"""A checkout whose example is a short song, for tests of what people are told to type in one.

Independent of what is typed.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.paths import PROJECT as ROOT

SHORT_LYRICS = "[verse]\nLa\n"


def short_checkout(folder: Path) -> Path:
    """Make the folder look like this project, but for the words of its example."""
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in (".git", ".venv", "examples", "data") and entry.suffix not in (".mp3", ".flac", ".wav"):
            (folder / entry.name).symlink_to(entry)
    (folder / "examples").mkdir()
    (folder / "examples" / "genres.txt").write_text((ROOT / "examples" / "genres.txt").read_text())
    (folder / "examples" / "lyrics.txt").write_text(SHORT_LYRICS)
    return folder
