"""Songs to ask for in tests, and how to look at what comes back."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from inference.song import SongRequest

THREE_SECTIONS = "[verse]\npaper boats along the rain\n\n[chorus]\ncarry me home\n\n[outro]\nhome again\n"
SHORTEST_BUDGET = 100  # tokens, one second of audio


def request(**changes: object) -> SongRequest:
    """A short song of three sections, one second each, unless `changes` say otherwise."""
    fields: dict[str, object] = {
        "genres": "folk female bright vocal guitar",
        "lyrics": THREE_SECTIONS,
        "seed": 7,
        "max_new_tokens": SHORTEST_BUDGET,
        "format": "wav",
    }
    return SongRequest(**(fields | changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Heard:
    """A decoded audio file."""

    waveform: np.ndarray  # (samples, channels)
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.rate_hz


def hear(file: bytes) -> Heard:
    """Decode an audio file."""
    return Heard(*soundfile.read(io.BytesIO(file), always_2d=True))


def tone(seconds: float, rate_hz: int = 16_000, frequency_hz: float = 220.0) -> bytes:
    """A WAV file of a plain tone."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * frequency_hz * times), rate_hz, format="WAV")
    return file.getvalue()
