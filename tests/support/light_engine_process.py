"""The light engine's process: one step of one song after the other. It imports nothing that takes time to import."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time

STEPS = 5
STEP_SECONDS = 0.05


class _Process:
    """What the child does: one step of one song after the other, with an ear for its parent."""

    def __init__(self) -> None:
        self._heard: queue.Queue[dict[str, str]] = queue.Queue()
        self._waiting: list[str] = []
        self._cancelled: set[str] = set()

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            self._take(block=not self._waiting)
            if self._waiting:
                self._generate(self._waiting.pop(0))

    def _generate(self, song_id: str) -> None:
        for step in range(STEPS):
            time.sleep(STEP_SECONDS)
            self._take(block=False)
            if song_id in self._cancelled:
                self._say(song_id, state="cancelled")
                return
            self._say(song_id, state="running", fraction=(step + 1) / STEPS)
        self._say(song_id, state="generated")

    def _take(self, block: bool) -> None:
        while block or not self._heard.empty():
            word = self._heard.get()
            block = False
            if "generate" in word:
                self._waiting.append(word["generate"])
            else:
                self._cancelled.add(word["cancel"])

    def _listen(self) -> None:
        for line in sys.stdin:
            self._heard.put(json.loads(line))
        os._exit(0)  # the parent is gone

    def _say(self, song_id: str, **words: object) -> None:
        print(json.dumps({"song": song_id, **words}), flush=True)


if __name__ == "__main__":
    _Process().run()
