"""Waveforms outside the networks: what references are taken, the mix as recorded, and files that decode whole."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from scipy.signal import butter, lfilter, sosfiltfilt

from inference.audio.mixing import (
    ENCODINGS,
    MAX_REFERENCE_SECONDS,
    PEAK,
    TAGS,
    WRITE_SAMPLES,
    check_header,
    cut_reference,
    encode,
    low_band_scale,
    merge_bands,
    mix_16k,
    mix_44k,
    read_reference,
)
from inference.errors import EngineError, InvalidField
from inference.song import MIME_TYPES, Reference
from inference.vocabulary import CODEC_RATE_HZ, VOCODER_RATE_HZ

FORMATS = tuple(MIME_TYPES)


def tone(seconds: float, rate_hz: int, hz: float = 440.0, gain: float = 0.5) -> np.ndarray:
    """A sine (samples,)."""
    return (gain * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def wav(samples: np.ndarray, rate_hz: int = CODEC_RATE_HZ, container: str = "WAV", subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def frequency_hz(waveform: np.ndarray, rate_hz: int) -> float:
    """The loudest frequency."""
    return float(np.abs(np.fft.rfft(waveform)).argmax() * rate_hz / len(waveform))


# --- reference audio ---


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


@pytest.mark.parametrize("format", FORMATS)
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
        (Reference(mix=b"no audio at all"), "reference.audio", "15 bytes that are no audio"),
        (Reference(mix=GOOD, vocal=GOOD), "reference.audio", "a mix and a separate track"),
        (Reference(mix=GOOD, instrumental=GOOD), "reference.audio", "a mix and a separate track"),
        (Reference(vocal=GOOD), "reference.instrumental", "as reference.vocal is given"),
        (Reference(instrumental=GOOD), "reference.vocal", "as reference.instrumental is given"),
        (Reference(vocal=GOOD, instrumental=b"-"), "reference.instrumental", "no audio"),
        (Reference(vocal=b"-", instrumental=GOOD), "reference.vocal", "no audio"),
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


# --- the mix ---


@pytest.fixture(scope="session")
def recorded(parity_dir: Path) -> Mapping[str, np.ndarray]:
    with np.load(parity_dir / "audio.npz") as numbers:
        return dict(numbers)


def signal_to_difference_db(expected: np.ndarray, actual: np.ndarray) -> float:
    """Without the first and last 100 ms, where resamplers start and end differently."""
    edge = VOCODER_RATE_HZ // 10
    expected, actual = expected[edge:-edge], actual[edge:-edge]
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))


def test_mixes_are_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    low = mix_16k(recorded["vocal_16k"], recorded["instrumental_16k"])
    high = mix_44k(recorded["vocal_44k"], recorded["instrumental_44k"])
    np.testing.assert_allclose(low, recorded["mix_16k"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(high, recorded["mix_44k"], rtol=0, atol=1e-6)


def test_loud_mixes_are_clipped_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    low = mix_16k(3 * recorded["vocal_16k"], 3 * recorded["instrumental_16k"])
    high = mix_44k(9 * recorded["vocal_44k"], 9 * recorded["instrumental_44k"])
    np.testing.assert_allclose(low, recorded["loud_mix_16k"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(high, recorded["loud_mix_44k"], rtol=0, atol=1e-6)


def test_the_low_band_is_scaled_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    scale = low_band_scale(recorded["mix_16k"], recorded["mix_44k"])
    assert scale == pytest.approx(float(recorded["low_band_scale"]), rel=2e-3)


def test_the_merged_mix_is_as_recorded(recorded: Mapping[str, np.ndarray]) -> None:
    names = ("vocal_16k", "instrumental_16k", "vocal_44k", "instrumental_44k")
    actual = merge_bands(*(recorded[name] for name in names)).astype(np.float64)
    expected = recorded["final_44k"].astype(np.float64)
    below = butter(12, 5_000, "low", fs=VOCODER_RATE_HZ, output="sos")
    above = butter(12, 9_000, "high", fs=VOCODER_RATE_HZ, output="sos")
    for band in (below, above):
        assert signal_to_difference_db(sosfiltfilt(band, expected), sosfiltfilt(band, actual)) >= 40
    assert signal_to_difference_db(expected, actual) >= 20


def test_silent_tracks_make_a_silent_mix() -> None:
    low, high = np.zeros(3_200, np.float32), np.zeros(8_820, np.float32)
    mix = merge_bands(low, low, high, high)
    assert mix.shape == (8_820,) and mix.dtype == np.float32
    assert not mix.any()


def test_the_factor_is_1_where_the_codec_is_silent() -> None:
    assert low_band_scale(np.zeros(3_200), np.ones(8_820)) == 1.0


def test_the_mix_ends_with_the_shorter_track() -> None:
    mix = merge_bands(tone(2, 16_000), tone(1.5, 16_000), tone(2, 44_100), tone(1, 44_100))
    assert mix.shape == (44_100,)


def test_a_loud_mix_stays_within_the_peak() -> None:
    mix = merge_bands(*(tone(0.5, rate, gain=5) for rate in (16_000, 16_000, 44_100, 44_100)))
    assert np.abs(mix).max() <= PEAK


def test_the_high_band_is_what_a_recursive_filter_passes() -> None:
    high = np.random.default_rng(0).normal(0, 0.1, 44_100)
    angle = 2 * np.pi * 5_500 / VOCODER_RATE_HZ
    alpha, cosine = np.sin(angle) / (2 * 0.707), np.cos(angle)
    passed = lfilter(
        np.array([1, -2, 1]) * (1 + cosine) / 2, np.array([1 + alpha, -2 * cosine, 1 - alpha]), high.astype(np.float64)
    )
    mix = merge_bands(np.zeros(16_000), np.zeros(16_000), high, np.zeros(44_100))
    np.testing.assert_allclose(mix, passed, rtol=0, atol=1e-7)


def test_a_single_frame_can_be_mixed() -> None:
    mix = merge_bands(*(np.full(n, 0.1, np.float32) for n in (320, 320, 882, 882)))
    assert mix.shape == (882,)


# --- files ---


def test_every_format_of_the_interface_can_be_written() -> None:
    assert ENCODINGS.keys() == MIME_TYPES.keys()


@pytest.mark.parametrize("format", FORMATS)
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


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_ten_minutes_are_written_whole(format: str) -> None:
    waveform = np.tile(tone(1, VOCODER_RATE_HZ, gain=0.3), 600)
    assert soundfile.info(io.BytesIO(encode(waveform, VOCODER_RATE_HZ, format, {}))).frames == len(waveform)


def test_mp3_has_192_kbit_a_second() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * VOCODER_RATE_HZ).astype(np.float32)
    kbps = len(encode(noise, VOCODER_RATE_HZ, "mp3", {})) * 8 / 10 / 1_000
    assert kbps == pytest.approx(192, rel=0.05)


@pytest.mark.parametrize("format", FORMATS)
def test_tags_can_be_read_back(format: str) -> None:
    comment = "AI-generated with YuE, model en-cot@454c20e, seed 42; " + 5 * "a long comment is kept whole; "
    tags = dict.fromkeys(TAGS, "AI-generated") | {"comment": comment, "date": "2025"}
    with soundfile.SoundFile(io.BytesIO(encode(tone(1, 44_100), 44_100, format, tags))) as file:
        read = file.copy_metadata()
    software = read.pop("software")
    assert software.startswith("LAME" if format == "mp3" else "AI-generated")
    del tags["software"]
    assert {name: read.get(name) for name in tags} == tags


@pytest.mark.parametrize("format", FORMATS)
def test_peaks_are_clipped_before_they_are_written(format: str) -> None:
    again = decoded(encode(tone(1, 44_100, hz=50, gain=3.0), 44_100, format, {}))
    loudest = {"mp3": 1.2, "ogg": 1.2}.get(format, PEAK + 1e-4)  # lossy decoders overshoot a clipped wave a little
    assert 0.95 < np.abs(again).max() <= loudest


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_waveform_that_holds_no_number_is_an_error(format: str, value: float) -> None:
    waveform = tone(1, 44_100)
    waveform[30_000] = value
    with pytest.raises(EngineError, match="NaN or infinite"):
        encode(waveform, 44_100, format, {})


# --- files that are made to harm ---


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
        (wav(np.full((32_000, 2), [np.inf, -np.inf]), subtype="FLOAT"), "NaN or infinite"),
        (wav(np.full((32_000, 2), 3e38), subtype="FLOAT"), "infinite"),
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
