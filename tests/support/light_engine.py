"""A light engine in a real process of its own, and a whole server over it: songs take moments and weigh what is wanted.

Independent of what is tested with it. The process runs `light_engine_process.py`: JSON lines in, JSON lines out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from flask import Flask

from inference import catalog
from inference.catalog import ModelFiles
from inference.errors import Cancelled, EngineError
from inference.song import Progress, SectionSpan, Song, SongPart, SongRequest
from model_manager import ModelManager
from server import create_app
from tests.support.fakes import FakeModels
from tests.support.paths import PROJECT

SONG_BYTES = 20_000


def audio_of(seed: int, size_bytes: int = SONG_BYTES) -> bytes:
    """The song with that seed, always the same and like no other."""
    word = sha256(str(seed).encode()).digest()
    return (word * (size_bytes // len(word) + 1))[:size_bytes]


@dataclass
class _Order:
    request: SongRequest
    on_progress: Callable[[Progress], None]
    future: Future[Song]


class LightEngine:
    """The server's side: songs go to the process, in the order they came, and its words come back."""

    def __init__(self, size_bytes: int = SONG_BYTES) -> None:
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._orders: dict[str, _Order] = {}
        self._dead = False
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.light_engine_process"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def generate(
        self,
        song_id: str,
        request: SongRequest,
        on_progress: Callable[[Progress], None],
        on_part: Callable[[SongPart], None],
    ) -> Future[Song]:
        future: Future[Song] = Future()
        with self._lock:
            self._orders[song_id] = _Order(request, on_progress, future)
        if not self._tell(generate=song_id):
            self._end(song_id, error=EngineError("the engine's process has ended"))
        return future

    def listen(self, song_id: str) -> None:
        """It is as fast as it can be."""

    def cancel(self, song_id: str) -> None:
        self._tell(cancel=song_id)

    def info(self) -> dict[str, object]:
        return {"pid": self._child.pid, "device": "light", "memory_bytes": None, "max_songs": 2}

    @property
    def alive(self) -> bool:
        return not self._dead

    @property
    def ending(self) -> str:
        return "was ended by a signal"

    def close(self) -> None:
        self._child.kill()
        self._thread.join()
        self._child.wait()

    def _tell(self, **words: str) -> bool:
        try:
            with self._lock:
                assert self._child.stdin is not None
                self._child.stdin.write(json.dumps(words) + "\n")
                self._child.stdin.flush()
            return not self._dead
        except (OSError, ValueError):
            return False

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._hear(json.loads(line))
        self._dead = True
        with self._lock:
            left = list(self._orders)
        for song_id in left:
            self._end(song_id, error=EngineError("the engine's process was ended by a signal"))

    def _hear(self, word: dict[str, Any]) -> None:
        song_id = word["song"]
        with self._lock:
            order = self._orders.get(song_id)
        if order is None:
            return
        if word["state"] == "running":
            order.on_progress(Progress("stage1", 1, 1, fraction=word["fraction"]))
        elif word["state"] == "cancelled":
            self._end(song_id, error=Cancelled("the song was cancelled"))
        else:
            audio = {track: audio_of(order.request.seed, self._size_bytes) for track in order.request.tracks}
            span = (SectionSpan("verse", 0.0, 1.5),)
            self._end(song_id, Song(audio, order.request.format, 44_100, 1.5, order.request.seed, span))

    def _end(self, song_id: str, song: Song | None = None, error: Exception | None = None) -> None:
        with self._lock:
            order = self._orders.pop(song_id, None)
        if order and song:
            order.future.set_result(song)
        elif order and error:
            order.future.set_exception(error)


def light_app(size_bytes: int = SONG_BYTES) -> Flask:
    """A whole server but for its networks; its settings come from the environment."""

    def start_engine(files: ModelFiles, on_loading: Callable[[str], None]) -> LightEngine:
        return LightEngine(size_bytes)

    manager = ModelManager(catalog.find("tiny"), FakeModels().fetch, start_engine)
    return create_app(manager=manager)
