"""Shows progress: a bar on a terminal, a line for each step elsewhere, or nothing."""

from __future__ import annotations

import shutil
from typing import TextIO

from yue_client.errors import ClientError, Json

BAR_WIDTH, PLAIN_STEPS = 30, 10  # where there is no terminal: a line for each tenth
MADE_HERE = "tiny"  # the model that is made on the server instead of downloaded
STAGES = {"prompt": "reading the lyrics", "stage2": "filling in the sound", "decode": "decoding", "encode": "encoding"}


class Progress:
    """Shows the progress of a command on a stream."""

    def __init__(self, stream: TextIO, quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet
        self._terminal = not quiet and stream.isatty()
        self._shown = ""  # the last step; on a terminal: whether the cursor stands behind a bar

    def show(self, label: str, fraction: float) -> None:
        """Show a step and how much of it is done, 0 … 1."""
        step = f"{label.split(',')[0]} {int(fraction * PLAIN_STEPS)}"
        if self._terminal:
            bar = ("#" * round(fraction * BAR_WIDTH)).ljust(BAR_WIDTH, "-")
            line = f"[{bar}] {fraction:4.0%} {label}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line}\033[K", end="", file=self._stream, flush=True)
        elif step != self._shown:
            self.say(f"{fraction:4.0%} {label}")
        self._shown = step

    def pause(self, error: ClientError, seconds: float) -> None:
        """Show that the request is sent again in so many seconds."""
        first_line = str(error).partition("\n")[0]
        if self._terminal:
            self.show(f"{first_line}; again in {seconds:.0f} s", 0.0)
        elif self._shown != str(error):
            self.say(f"{first_line}; again in {seconds:g} s")
            self._shown = str(error)

    def end(self) -> None:
        """End the line of the bar."""
        if self._terminal and self._shown:
            print(file=self._stream)
        self._shown = ""

    def say(self, text: str) -> None:
        """Print a line."""
        if not self._quiet:
            self.end()
            print(text, file=self._stream, flush=True)


def job_words(job: Json, models: Json) -> tuple[str, float]:
    """What a job is doing, in a few words, and how much of it is done, 0 … 1."""
    progress = job.get("progress") or {}
    if job["status"] not in ("queued", "running"):
        return job["status"], float(job["status"] == "succeeded")
    stage = progress.get("stage")
    if job["status"] == "queued" or not stage:
        words = models_words(models)[0]
        if not words and job.get("position"):
            return f"waiting as number {job['position']}" + _left(job.get("expected_seconds")), 0.0
        return "waiting" + (f" for the models: {words}" if words else ""), 0.0
    words = STAGES.get(stage, f"generating section {progress.get('section')} of {progress.get('sections')}")
    return words + _left(progress.get("seconds_left")), progress.get("fraction", 0.0)


def models_words(models: Json) -> tuple[str, float]:
    """What the models are doing, in a few words, and how much of it is done, 0 … 1; no words while nothing happens."""
    state = models.get("status")
    if state == "loading":
        return f"loading {models.get('loading') or ''}".rstrip(), 1.0
    if state != "downloading":
        return "", 0.0
    download = models.get("download") or {}
    total = download.get("bytes_total")
    fraction = min(1.0, download.get("bytes_done", 0) / total) if total else 0.0
    waiting_for = (download.get("waiting") or {}).get("reason")
    if waiting_for:
        return f"trying again: {waiting_for}", fraction
    if download.get("proving"):
        return f"checking {download['proving']}", fraction
    doing = "making the demo model" if models.get("model") == MADE_HERE else "downloading"
    return doing + (f" {fraction:.0%}" if total else "") + _left(download.get("seconds_left")), fraction


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
