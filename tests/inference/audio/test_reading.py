"""Reference audio: which files are accepted, what is read of them, and that a small file cannot fill the memory."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from inference.audio.encoding import encode
from inference.audio.reading import MAX_REFERENCE_SECONDS, check_header, cut_reference, read_reference
from inference.errors import InvalidField
from inference.song import MIME_TYPES, Reference
from inference.vocabulary import CODEC_RATE_HZ, VOCODER_RATE_HZ
from tests.support.waveforms import frequency_hz, tone, wav


def test_reference_becomes_mono_at_16_khz() -> None:
    left, right = tone(2, 44_100, gain=0.6), tone(2, 44_100, gain=0.2)
    (mix,) = read_reference(Reference(mix=wav(np.stack([left, right], axis=1), 44_100)))
    assert mix.dtype == np.float32
    assert mix.shape == (2 * CODEC_RATE_HZ,)
    assert frequency_hz(mix, CODEC_RATE_HZ) == pytest.approx(440, abs=1)
    assert np.abs(mix[1_000:-1_000]).max() == pytest.approx(0.4, abs=0.01)


def test_only_the_span_asked_for_is_used() -> None:
    samples = np.concatenate([tone(2, CODEC_RATE_HZ, hz) for hz in (200, 400, 800)])
    (mix,) = read_reference(Reference(mix=wav(samples), start_seconds=2.25, end_seconds=3.75))
    np.testing.assert_allclose(mix, samples[36_000:60_000], atol=1e-6)


def test_a_span_that_reaches_past_the_end_is_cut_there() -> None:
    (mix,) = read_reference(Reference(mix=wav(tone(3, CODEC_RATE_HZ)), start_seconds=1, end_seconds=30))
    assert mix.shape == (2 * CODEC_RATE_HZ,)


def test_uneven_tracks_are_cut_to_the_shorter() -> None:
    reference = Reference(vocal=wav(tone(2.5, 22_050, 300), 22_050), instrumental=wav(tone(2, 48_000, 600), 48_000))
    vocal, instrumental = read_reference(reference)
    assert vocal.shape == instrumental.shape == (2 * CODEC_RATE_HZ,)
    assert frequency_hz(vocal, CODEC_RATE_HZ) == pytest.approx(300, abs=1)
    assert frequency_hz(instrumental, CODEC_RATE_HZ) == pytest.approx(600, abs=1)


@pytest.mark.parametrize("format", MIME_TYPES)
def test_every_format_that_is_written_is_read(format: str) -> None:
    content = encode(tone(3, VOCODER_RATE_HZ), VOCODER_RATE_HZ, format, {})
    (mix,) = read_reference(Reference(mix=content, start_seconds=1, end_seconds=2.5))
    assert mix.shape == (24_000,)
    assert frequency_hz(mix, CODEC_RATE_HZ) == pytest.approx(440, abs=1)


GOOD = wav(tone(3, CODEC_RATE_HZ))


@pytest.mark.parametrize(
    ("reference", "field", "message"),
    [
        (Reference(), "reference.audio", "got nothing; allowed: "),
        (Reference(mix=b""), "reference.audio", "an empty file"),
        (Reference(mix=b"no audio at all"), "reference.audio", "15 bytes that are not audio"),
        (Reference(mix=GOOD, vocal=GOOD), "reference.audio", "a mix and a separate track"),
        (Reference(mix=GOOD, instrumental=GOOD), "reference.audio", "a mix and a separate track"),
        (Reference(vocal=GOOD), "reference.instrumental", "as reference.vocal is given"),
        (Reference(instrumental=GOOD), "reference.vocal", "as reference.instrumental is given"),
        (Reference(vocal=GOOD, instrumental=b"-"), "reference.instrumental", "not audio"),
        (Reference(vocal=b"-", instrumental=GOOD), "reference.vocal", "not audio"),
        (Reference(mix=wav(tone(0.999, CODEC_RATE_HZ))), "reference.audio", "0.999 s"),
        (Reference(mix=wav(np.zeros(0, np.float32))), "reference.audio", "0.000 s"),
        (Reference(mix=GOOD, start_seconds=2.5), "reference.audio", "0.500 s"),
        (Reference(mix=GOOD, start_seconds=3), "reference.start_seconds", "less than 3.000 s"),
        (Reference(mix=GOOD, start_seconds=2, end_seconds=2), "reference.start_seconds", "less than end_seconds, 2"),
        (Reference(mix=GOOD, start_seconds=1, end_seconds=1.5), "reference.end_seconds", "1 to 120 s"),
        (Reference(mix=GOOD, end_seconds=MAX_REFERENCE_SECONDS + 1), "reference.end_seconds", "1 to 120 s"),
        (Reference(mix=GOOD, start_seconds=-1), "reference.start_seconds", "0 or more"),
        (Reference(mix=GOOD, start_seconds=float("nan")), "reference.start_seconds", "0 or more"),
        (Reference(mix=GOOD, end_seconds=-1), "reference.end_seconds", "0 or more"),
        (Reference(mix=GOOD, end_seconds=float("nan")), "reference.end_seconds", "0 or more"),
        (Reference(mix=GOOD, end_seconds=float("inf")), "reference.end_seconds", "0 or more"),
        (Reference(mix=wav(tone(2, CODEC_RATE_HZ, gain=0.0009))), "reference.audio", "louder than -60 dBFS"),
        (Reference(mix=wav(np.full(32_000, np.nan, np.float32))), "reference.audio", "NaN"),
        (Reference(mix=wav(tone(2, 2_000), 2_000)), "reference.audio", "a sample rate of 2000 Hz"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(reference: Reference, field: str, message: str) -> None:
    with pytest.raises(InvalidField) as raised:
        read_reference(reference)
    assert raised.value.field == field
    assert message in str(raised.value)


def test_silence_is_judged_inside_the_span_only() -> None:
    samples = np.concatenate([tone(2, CODEC_RATE_HZ), np.zeros(2 * CODEC_RATE_HZ, np.float32)])
    with pytest.raises(InvalidField, match="silence"):
        read_reference(Reference(mix=wav(samples), start_seconds=2))


def test_quiet_audio_is_taken() -> None:
    assert read_reference(Reference(mix=wav(tone(2, CODEC_RATE_HZ, gain=0.002))))


def test_a_file_cut_short_is_refused() -> None:
    whole = encode(tone(4, VOCODER_RATE_HZ), VOCODER_RATE_HZ, "flac", {})
    with pytest.raises(InvalidField, match=r"reference\.audio"):
        read_reference(Reference(mix=whole[:200]))


def test_hours_of_audio_are_not_decoded_beyond_the_span() -> None:
    file = io.BytesIO()
    hour = np.zeros(4_000 * 3_600, np.int16)
    hour[: 2 * 4_000] = 8_000
    with soundfile.SoundFile(file, "w", samplerate=4_000, channels=1, format="FLAC") as hours:
        for _ in range(10):
            hours.write(hour)
    assert file.tell() < 1_000_000  # it is all silence, and packs well
    tracemalloc.start()
    try:
        (mix,) = read_reference(Reference(mix=file.getvalue(), start_seconds=9 * 3_600, end_seconds=9 * 3_600 + 2))
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(mix) == 2 * CODEC_RATE_HZ
    assert most_bytes < 20_000_000


def test_few_bytes_do_not_unpack_to_many() -> None:
    file = io.BytesIO()
    silence = np.zeros((192_000, 8), np.int16)
    silence[0] = 8_000
    with soundfile.SoundFile(file, "w", samplerate=192_000, channels=8, format="FLAC") as bomb:
        for _ in range(30):
            bomb.write(silence)
    tracemalloc.start()
    try:
        read_reference(Reference(mix=file.getvalue(), end_seconds=30))
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 30 * 192_000 * 8 * 4 / 2  # all channels at once would be twice that


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(np.full((16_000, 9), 0.5)), "9 channels; allowed: up to 8"),
        (wav(np.full(32_000, np.nan, np.float32), subtype="FLOAT"), "NaN"),
        (wav(np.full((32_000, 2), [np.inf, -np.inf]), subtype="FLOAT"), "NaN or Inf"),
        (wav(np.full((32_000, 2), 3e38), subtype="FLOAT"), "Inf"),
        (wav(np.full(32_000, 32_767.0), subtype="FLOAT"), "between -1 and 1"),
    ],
)
def test_samples_that_no_network_takes_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read_reference(Reference(mix=content))
    assert message in str(caught.value).replace("'", "")


def test_the_samples_of_all_channels_together_are_bounded() -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", samplerate=192_000, channels=8, format="FLAC") as flac:
        for _ in range(40):
            flac.write(np.full((192_000, 8), 0.5))
    with pytest.raises(InvalidField, match="8 channels at 192000 Hz"):
        check_header("reference.audio", file.getvalue(), Reference(end_seconds=MAX_REFERENCE_SECONDS))
    check_header("reference.audio", file.getvalue(), Reference(end_seconds=29))


def test_blocks_resample_to_what_the_whole_does() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 3 * 192_000).astype(np.float32)
    (mix,) = read_reference(Reference(mix=wav(samples, 192_000)))
    assert np.array_equal(mix, soxr.resample(samples, 192_000, CODEC_RATE_HZ, quality="VHQ"))


def test_what_is_too_high_for_the_networks_is_silence() -> None:
    with pytest.raises(InvalidField, match="silence"):
        read_reference(Reference(mix=wav(tone(2, 48_000, hz=20_000, gain=0.01), 48_000)))


def test_a_size_that_a_header_makes_up_takes_no_memory() -> None:
    content = wav(tone(2, CODEC_RATE_HZ))
    data = content.index(b"data")
    huge = content[: data + 4] + (0xFFFF_FFF0).to_bytes(4, "little") + content[data + 8 :]
    (mix,) = read_reference(Reference(mix=huge, end_seconds=MAX_REFERENCE_SECONDS))
    assert len(mix) == 2 * CODEC_RATE_HZ


def test_a_cut_reference_is_the_same_to_the_bit() -> None:
    both = Reference(vocal=wav(tone(4, 44_100), 44_100), instrumental=wav(tone(3, 22_050), 22_050), start_seconds=0.7)
    for before, after in zip(read_reference(both), read_reference(cut_reference(both)), strict=True):
        assert np.array_equal(before, after)
