"""A download on a terminal: a bar that is written over, and a line for what a person has to know."""

from __future__ import annotations

import io

from inference.weights.download import main
from inference.weights.terminal import Terminal


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_that_is_written_over() -> None:
    screen = Screen()
    terminal = Terminal(screen)
    for done, left in ((4_000_000_000, 130.4), (16_000_000_000, 0.0)):
        terminal.emit(
            "progress",
            repository="a/b",
            bytes_done=1,
            bytes_total=2,
            overall_done=done,
            overall_total=16_000_000_000,
            bytes_per_second=92_000_000,
            seconds_left=left,
        )
    terminal.emit("waiting", seconds=2.0, reason="a/b: no answer")
    first, second = screen.getvalue().split("\r")[1:]
    assert first.startswith("[########----------------------]  25% 4.00 of 16.00 GB, 92.0 MB/s, 2 min 10 s")
    assert "100%" in second and second.endswith("\na/b: no answer; again in 2 s\n")


def test_an_error_is_told_in_words_and_what_is_no_terminal_gets_json(tmp_path: object) -> None:
    screen, pipe = Screen(), io.StringIO()
    arguments = ["--model", "opera", "--cache", str(tmp_path)]
    assert main(arguments, screen) == main(arguments, pipe) == 1
    assert screen.getvalue().startswith("The download failed: ") and "opera" in screen.getvalue()
    assert pipe.getvalue().startswith('{"event": "error"')
