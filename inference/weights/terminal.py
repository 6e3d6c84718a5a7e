"""Shows the progress of a download at a terminal: one line that is overwritten, and a line for every other event.

The events are the same ones that a program gets as JSON lines.
"""

from __future__ import annotations

import shutil
from typing import IO, Any

BAR_WIDTH = 30
GIGABYTE, MEGABYTE = 1e9, 1e6
CLEAR_REST = "\033[K"


class Terminal:
    """The display of one download."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._in_bar = False  # the cursor is at the end of a line that will be overwritten

    def emit(self, event: str, **fields: Any) -> None:
        """Show an event."""
        match event:
            case "progress":
                self._overwrite(progress_text(**fields))
            case "verifying":
                self._overwrite(f"verifying {fields['repository']}/{fields['file']}")
            case "waiting" if fields["seconds"] is None:
                self._say(f"waiting: {fields['reason']}")
            case "waiting":
                self._say(f"{fields['reason']}; again in {fields['seconds']:.0f} s")
            case "done":
                self._say(f"The weights of {fields['files']['model']} are complete and verified.")
            case "error":
                self._say(f"The download failed: {fields['message']}")

    def _overwrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._output.write(f"\r{line[:width]}{CLEAR_REST}")
        self._output.flush()
        self._in_bar = True

    def _say(self, line: str) -> None:
        self._output.write(("\n" if self._in_bar else "") + line + "\n")
        self._output.flush()
        self._in_bar = False


def progress_text(
    overall_done: int, overall_total: int, bytes_per_second: float, seconds_left: float | None, **_: object
) -> str:
    """A progress bar with bytes, rate and time left."""
    share = overall_done / overall_total if overall_total else 1.0
    bar = ("#" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, "-")
    words = [f"{overall_done / GIGABYTE:.2f} of {overall_total / GIGABYTE:.2f} GB"]
    if bytes_per_second:
        words.append(f"{bytes_per_second / MEGABYTE:.1f} MB/s")
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        words.append(f"{minutes} min {seconds:02d} s left" if minutes else f"{seconds} s left")
    return f"[{bar}] {share:4.0%} " + ", ".join(words)
