"""Starts engines one after the other, each in a process of its own, and remembers what broke the last one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from inference.catalog import ModelFiles
from inference.errors import RecordingFailed
from inference.options import EngineOptions
from inference.process.engine_process import EngineProcess

log = logging.getLogger(__name__)


class EngineSeries:
    """Starts engines with the same options, one after the other. After a failed CUDA graph capture, they use none.

    Only one thread at a time may call it.
    """

    def __init__(self, options: EngineOptions, kind: type[EngineProcess] = EngineProcess) -> None:
        self._options, self._kind = options, kind
        self._last: EngineProcess | None = None

    def start(self, files: ModelFiles, on_loading: Callable[[str], None]) -> EngineProcess:
        """Start the next engine. Raises YueError."""
        if self._last and self._last.recording_failed:
            self._disable_recording()
        try:
            self._last = self._kind.start(files, self._options, on_loading)
        except RecordingFailed:
            if not self._options.compile:
                raise
            self._disable_recording()
            self._last = self._kind.start(files, self._options, on_loading)
        return self._last

    def _disable_recording(self) -> None:
        log.error("CUDA graph capture crashed the engine; the server's next engines capture none")
        self._options = replace(self._options, compile=False)
