"""Encodes waveforms as audio files: WAV, FLAC, MP3, Ogg Vorbis.

Independent of codes and networks. It never imports torch.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np
import soundfile

from inference.audio.mixing import clip
from inference.errors import EngineError

WRITE_SAMPLES = 65_536  # libsndfile crashes on a very long single write of Vorbis


@dataclass(frozen=True)
class Encoding:
    """libsndfile's settings for a format. `compression` is 0 (the best quality) to 1."""

    container: str
    subtype: str
    compression: float | None = None
    bitrate_mode: str | None = None


ENCODINGS = {
    "wav": Encoding("WAV", "PCM_16"),  # every player supports it
    "flac": Encoding("FLAC", "PCM_24"),  # for further editing: rounding stays inaudible
    "mp3": Encoding("MP3", "MPEG_LAYER_III", compression=0.4, bitrate_mode="CONSTANT"),  # 192 kbit/s for mono
    "ogg": Encoding("OGG", "VORBIS", compression=0.2),  # Vorbis quality 8, up to about 170 kbit/s
}
TAGS = ("title", "artist", "comment", "software", "date", "genre")


def song_tags(model: str, seed: int) -> dict[str, str]:
    """The tags of a song's files."""
    origin = f"AI-generated with YuE, model {model}, seed {seed}"
    return {"title": "YuE song", "comment": origin, "software": "yue-server"}


def encode(waveform: np.ndarray, rate_hz: int, format: str, tags: Mapping[str, str]) -> bytes:
    """Encode the mono waveform (samples,), clipped to ±0.99, as a file that decodes to the same number of samples.

    LAME keeps 3 % of headroom, so an MP3 is 0.26 dB quieter than the other formats.

    `tags` may hold the names in TAGS, in ASCII. All formats keep them, except `software`: MP3 names its encoder there
    instead, and the others append the library's name. Use `comment` for text that every format must keep.
    """
    assert waveform.ndim == 1 and waveform.size, f"a mono waveform is (samples,), not {waveform.shape}"
    assert format in ENCODINGS, format
    if not np.isfinite(waveform).all():
        raise EngineError(f"the {format} file was not written: the waveform has non-finite samples (NaN or Inf)")
    buffer = io.BytesIO()
    with opened(buffer, rate_hz, ENCODINGS[format], tags) as file:
        for first in range(0, len(waveform), WRITE_SAMPLES):
            file.write(clip(waveform[first : first + WRITE_SAMPLES]))
    return buffer.getvalue()


def opened(
    target: IO[bytes] | io.RawIOBase, rate_hz: int, encoding: Encoding, tags: Mapping[str, str]
) -> soundfile.SoundFile:
    """A mono file in `target`, to write samples to."""
    for name, text in tags.items():
        assert name in TAGS and text.isascii(), (name, text)
    file = soundfile.SoundFile(
        target,
        "w",
        samplerate=rate_hz,
        channels=1,
        format=encoding.container,
        subtype=encoding.subtype,
        compression_level=encoding.compression,
        bitrate_mode=encoding.bitrate_mode,
    )
    for name, text in tags.items():  # before the samples: most formats drop tags set later
        setattr(file, name, text)
    return file
