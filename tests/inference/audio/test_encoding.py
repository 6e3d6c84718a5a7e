"""Encoded files decode whole, sound like the waveform and keep their tags."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from inference.audio.encoding import ENCODINGS, TAGS, WRITE_SAMPLES, encode
from inference.audio.mixing import PEAK
from inference.errors import EngineError
from inference.song import MIME_TYPES
from inference.vocabulary import VOCODER_RATE_HZ
from tests.support.waveforms import decoded, signal_to_difference_db, tone


def test_every_format_of_the_interface_can_be_written() -> None:
    assert ENCODINGS.keys() == MIME_TYPES.keys()


@pytest.mark.parametrize("format", MIME_TYPES)
@pytest.mark.parametrize("n_samples", [1, 882, 44_100, 3 * WRITE_SAMPLES + 1])
def test_a_file_decodes_to_as_many_samples(format: str, n_samples: int) -> None:
    waveform = tone(n_samples / VOCODER_RATE_HZ, VOCODER_RATE_HZ)
    content = encode(waveform, VOCODER_RATE_HZ, format, {"title": "AI-generated"})
    info = soundfile.info(io.BytesIO(content))
    assert (info.frames, info.samplerate, info.channels) == (n_samples, VOCODER_RATE_HZ, 1)
    assert decoded(content).shape == (n_samples,)


@pytest.mark.parametrize(
    ("format", "gain", "min_db"), [("wav", 1.0, 70), ("flac", 1.0, 120), ("mp3", 0.97, 60), ("ogg", 1.0, 35)]
)
def test_a_file_sounds_like_the_waveform(format: str, gain: float, min_db: float) -> None:
    """LAME alone turns the volume down a little, by the same factor throughout."""
    waveform = (tone(2, VOCODER_RATE_HZ) + tone(2, VOCODER_RATE_HZ, 3_000, 0.2)).astype(np.float64)
    again = decoded(encode(waveform, VOCODER_RATE_HZ, format, {})).astype(np.float64)
    actual_gain = again @ waveform / (waveform @ waveform)
    assert actual_gain == pytest.approx(gain, abs=0.01)  # Vorbis rounds pure tones by nearly 1 %
    assert signal_to_difference_db(waveform, again / actual_gain) >= min_db


@pytest.mark.parametrize("format", MIME_TYPES)
def test_minutes_are_written_whole(format: str) -> None:
    minutes = 10 if format == "ogg" else 2  # what is long for libsndfile's Vorbis
    waveform = np.tile(tone(1, VOCODER_RATE_HZ, gain=0.3), 60 * minutes)
    assert soundfile.info(io.BytesIO(encode(waveform, VOCODER_RATE_HZ, format, {}))).frames == len(waveform)


def test_mp3_has_192_kbit_a_second() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * VOCODER_RATE_HZ).astype(np.float32)
    kbps = len(encode(noise, VOCODER_RATE_HZ, "mp3", {})) * 8 / 10 / 1_000
    assert kbps == pytest.approx(192, rel=0.05)


@pytest.mark.parametrize("format", MIME_TYPES)
def test_tags_can_be_read_back(format: str) -> None:
    comment = "AI-generated with YuE, model en-cot@454c20e, seed 42; " + 5 * "a long comment is kept whole; "
    tags = dict.fromkeys(TAGS, "AI-generated") | {"comment": comment, "date": "2025"}
    with soundfile.SoundFile(io.BytesIO(encode(tone(1, 44_100), 44_100, format, tags))) as file:
        read = file.copy_metadata()
    software = read.pop("software")
    assert software.startswith("LAME" if format == "mp3" else "AI-generated")
    del tags["software"]
    assert {name: read.get(name) for name in tags} == tags


@pytest.mark.parametrize("format", MIME_TYPES)
def test_peaks_are_clipped_before_they_are_written(format: str) -> None:
    again = decoded(encode(tone(1, 44_100, hz=50, gain=3.0), 44_100, format, {}))
    loudest = {"mp3": 1.2, "ogg": 1.2}.get(format, PEAK + 1e-4)  # lossy decoders overshoot a clipped wave a little
    assert 0.95 < np.abs(again).max() <= loudest


@pytest.mark.parametrize("format", MIME_TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_waveform_that_holds_no_number_is_an_error(format: str, value: float) -> None:
    waveform = tone(1, 44_100)
    waveform[30_000] = value
    with pytest.raises(EngineError, match="non-finite samples"):
        encode(waveform, 44_100, format, {})
