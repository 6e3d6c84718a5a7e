"""Waveforms outside the networks: reading reference audio, mixing the two tracks, writing files.

It does not know of codes or networks, and it never imports torch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

from inference.audio.file_formats import recognised
from inference.errors import EngineError, InvalidField
from inference.song import Reference
from inference.vocabulary import CODEC_RATE_HZ, VOCODER_RATE_HZ

MIN_REFERENCE_SECONDS = 1.0
# Two tracks of this length are 12,000 tokens of stage 1's 16,384; it also bounds what a small file can unpack to.
MAX_REFERENCE_SECONDS = 120.0
SILENCE_PEAK = 10.0 ** (-60.0 / 20.0)  # -60 dBFS
MIN_FILE_RATE_HZ = 4_000
MAX_FILE_RATE_HZ = 192_000
MAX_FILE_CHANNELS = 8
# Of all channels: stereo at the highest rate for the longest time. A small file can unpack to hours of silence.
MAX_SPAN_SAMPLES = round(2 * MAX_FILE_RATE_HZ * MAX_REFERENCE_SECONDS)
READ_SAMPLES = 1 << 18  # of all channels, at once
READ_FORMATS = "WAV, FLAC, MP3 or OGG"
CONVERT = "convert to WAV, FLAC or MP3"
LOUDEST_PEAK = 16.0  # 24 dB above full scale; the networks would make no numbers of far more

PEAK = 0.99
CROSSOVER_HZ = 5_500.0
CROSSOVER_Q = 0.707
RESPONSE_SAMPLES = 72  # of a filter at the crossover: after so many it has faded below float64's rounding
SILENCE_RMS = 1e-9  # far below the last bit of 24: there is nothing to match the loudness of
RESAMPLING_QUALITY = "VHQ"

# libsndfile crashes on a very long single write of Vorbis.
WRITE_SAMPLES = 65_536


# --- reference audio ---


def read_reference(reference: Reference) -> tuple[np.ndarray, ...]:
    """The reference as mono float32 at 16 kHz: (mix,), or (vocal, instrumental) of equal length.

    Each is (samples,), the part from `start_seconds` to `end_seconds` or to the end of the file. Raises InvalidField.
    """
    files = check_reference(reference)
    tracks = [_read_track(field, content, reference) for field, content in files.items()]
    return _cut_to_shortest(*tracks)


def check_reference(reference: Reference) -> dict[str, bytes]:
    """The one or two files by the names of their fields; none of them is read. Raises InvalidField."""
    files = _reference_files(reference)
    _check_span(reference.start_seconds, reference.end_seconds)
    return files


def cut_reference(reference: Reference) -> Reference:
    """The same reference, in files that hold no more than what `read_reference` gives. Raises InvalidField."""
    tracks = read_reference(reference)
    end_seconds = len(tracks[0]) / CODEC_RATE_HZ
    if len(tracks) == 1:
        return Reference(mix=_as_wav(tracks[0]), end_seconds=end_seconds)
    return Reference(vocal=_as_wav(tracks[0]), instrumental=_as_wav(tracks[1]), end_seconds=end_seconds)


def _as_wav(waveform: np.ndarray) -> bytes:
    """The waveform (samples,) at 16 kHz as a file, to the bit."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, CODEC_RATE_HZ, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _reference_files(reference: Reference) -> dict[str, bytes]:
    """The one or two files by the names of their fields."""
    vocal, instrumental = reference.vocal, reference.instrumental
    if reference.mix is not None:
        if vocal is not None or instrumental is not None:
            allowed = "either reference.audio or reference.vocal with reference.instrumental"
            raise InvalidField("reference.audio", "a mix and a separate track", allowed)
        return {"reference.audio": reference.mix}
    if vocal is None and instrumental is None:
        allowed = "an audio file, or reference.vocal and reference.instrumental instead"
        raise InvalidField("reference.audio", None, allowed)
    if vocal is None:
        raise InvalidField("reference.vocal", None, "an audio file, as reference.instrumental is given")
    if instrumental is None:
        raise InvalidField("reference.instrumental", None, "an audio file, as reference.vocal is given")
    return {"reference.vocal": vocal, "reference.instrumental": instrumental}


def _check_span(start_seconds: float, end_seconds: float) -> None:
    for field, value in (("reference.start_seconds", start_seconds), ("reference.end_seconds", end_seconds)):
        if not (math.isfinite(value) and value >= 0):
            raise InvalidField(field, value, "seconds from the file's beginning, 0 or more")
    if start_seconds >= end_seconds:
        raise InvalidField("reference.start_seconds", start_seconds, f"less than end_seconds, {end_seconds:g}")
    if not MIN_REFERENCE_SECONDS <= end_seconds - start_seconds <= MAX_REFERENCE_SECONDS:
        span = f"{MIN_REFERENCE_SECONDS:g} to {MAX_REFERENCE_SECONDS:g} s"
        allowed = f"{span} after start_seconds, {start_seconds:g}"
        raise InvalidField("reference.end_seconds", end_seconds, allowed)


def check_header(field: str, content: bytes, reference: Reference) -> None:
    """What the file says of itself without being decoded. Raises InvalidField."""
    with _opened(field, content) as file:
        _span_samples(field, file, reference.start_seconds, reference.end_seconds)


def _read_track(field: str, content: bytes, reference: Reference) -> np.ndarray:
    """One file's span, (samples,) at 16 kHz. No more of the file is decoded than the span."""
    with _opened(field, content) as file:
        samples = _span_samples(field, file, reference.start_seconds, reference.end_seconds)
        if reference.start_seconds:
            file.seek(round(reference.start_seconds * file.samplerate))
        track = np.concatenate([_checked(field, block) for block in _blocks_at_16k(file, samples)])
    if len(track) < MIN_REFERENCE_SECONDS * CODEC_RATE_HZ:
        raise _too_short(field, len(track) / CODEC_RATE_HZ)
    if np.abs(track).max() < SILENCE_PEAK:
        allowed = "audio that is louder than -60 dBFS, below 8 kHz, between start_seconds and end_seconds"
        raise InvalidField(field, "silence", allowed)
    return track


@contextmanager
def _opened(field: str, content: bytes) -> Iterator[soundfile.SoundFile]:
    """The file, open. Raises InvalidField, also where reading it further fails."""
    if not content:
        raise InvalidField(field, "an empty file", f"an audio file, such as {READ_FORMATS}")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            yield file
    except soundfile.SoundFileError as error:
        found = recognised(content) or f"{len(content)} bytes that are no audio"
        raise InvalidField(field, found, f"an audio file, such as {READ_FORMATS}; {CONVERT}") from error


def _span_samples(field: str, file: soundfile.SoundFile, start_seconds: float, end_seconds: float) -> int:
    """How many samples of each channel lie in the span, by the file's header. Raises InvalidField."""
    rate_hz, duration_s = file.samplerate, file.frames / file.samplerate
    if not MIN_FILE_RATE_HZ <= rate_hz <= MAX_FILE_RATE_HZ:
        raise InvalidField(field, f"a sample rate of {rate_hz} Hz", f"{MIN_FILE_RATE_HZ} to {MAX_FILE_RATE_HZ} Hz")
    if file.channels > MAX_FILE_CHANNELS:
        raise InvalidField(field, f"{file.channels} channels", f"up to {MAX_FILE_CHANNELS} channels")
    if start_seconds >= duration_s > 0:
        allowed = f"less than {duration_s:.3f} s, the length of {field}"
        raise InvalidField("reference.start_seconds", start_seconds, allowed)
    span_s = max(min(end_seconds, duration_s) - start_seconds, 0.0)
    samples = round(span_s * rate_hz)
    if samples < MIN_REFERENCE_SECONDS * rate_hz:
        raise _too_short(field, span_s)
    if samples * file.channels > MAX_SPAN_SAMPLES:
        value = f"{span_s:.3f} s of {file.channels} channels at {rate_hz} Hz"
        allowed = f"up to {MAX_SPAN_SAMPLES} samples, of all channels together; send fewer channels or a lower rate"
        raise InvalidField(field, value, allowed)
    return samples


def _too_short(field: str, seconds: float) -> InvalidField:
    allowed = f"at least {MIN_REFERENCE_SECONDS:g} s between start_seconds and the end of the file"
    return InvalidField(field, f"{seconds:.3f} s", allowed)


def _blocks_at_16k(file: soundfile.SoundFile, samples: int) -> Iterator[np.ndarray]:
    """The mean of the channels, float32 at 16 kHz, of the next so many samples, or fewer where the file ends before.

    All of it is there only a block at a time; the blocks together are what resampling the whole would give.
    """
    to_16k = soxr.ResampleStream(file.samplerate, CODEC_RATE_HZ, 1, dtype="float32", quality=RESAMPLING_QUALITY)
    most = READ_SAMPLES // file.channels
    while samples > 0 and len(block := file.read(min(samples, most), dtype="float32", always_2d=True)):
        samples -= len(block)
        with np.errstate(invalid="ignore", over="ignore"):  # what is infinite is told by whoever asked
            mono = block.mean(axis=1)
        yield mono if file.samplerate == CODEC_RATE_HZ else to_16k.resample_chunk(mono)
    yield to_16k.resample_chunk(np.zeros(0, np.float32), last=True)


def _checked(field: str, block: np.ndarray) -> np.ndarray:
    """The block (samples,), if it is what a network can hear. Raises InvalidField."""
    if not np.isfinite(block).all():
        raise InvalidField(field, "samples that are not numbers (NaN or infinite)", "finite samples")
    peak = np.abs(block).max(initial=0)
    if peak > LOUDEST_PEAK:
        allowed = f"samples between -1 and 1; what is far beyond, above {LOUDEST_PEAK:g}, is a mistake"
        raise InvalidField(field, f"a sample of {peak:g}", allowed)
    return block


# --- the mix ---


def merge_bands(
    vocal_16k: np.ndarray, instrumental_16k: np.ndarray, vocal_44k: np.ndarray, instrumental_44k: np.ndarray
) -> np.ndarray:
    """Both tracks, each (samples,) from X-Codec and from Vocos, to one mix (samples,) at 44.1 kHz, float32.

    X-Codec gives what lies below 5.5 kHz, as loud as Vocos has it, and Vocos what lies above.
    """
    low, high = mix_16k(vocal_16k, instrumental_16k), mix_44k(vocal_44k, instrumental_44k)
    low_44k, high = _cut_to_shortest(_resample_to_44k(low), high.astype(np.float64))
    low_band = _low_pass(low_44k)
    return _clip(low_band * _loudness_ratio(_low_pass(high), low_band) + _high_pass(high)).astype(np.float32)


def mix_16k(vocal: np.ndarray, instrumental: np.ndarray) -> np.ndarray:
    """X-Codec's tracks (samples,) to their sum, each clipped for itself: it may reach twice the peak."""
    vocal, instrumental = _cut_to_shortest(vocal, instrumental)
    return _clip(vocal) + _clip(instrumental)


def mix_44k(vocal: np.ndarray, instrumental: np.ndarray) -> np.ndarray:
    """Vocos's tracks (samples,) to their clipped sum."""
    vocal, instrumental = _cut_to_shortest(vocal, instrumental)
    return _clip(vocal + instrumental)


def low_band_scale(low_mix_16k: np.ndarray, high_mix_44k: np.ndarray) -> float:
    """The factor that makes X-Codec's mix as loud below the crossover as Vocos's; 1 where there is nothing to scale."""
    low_44k, high = _cut_to_shortest(_resample_to_44k(low_mix_16k), high_mix_44k.astype(np.float64))
    return _loudness_ratio(_low_pass(high), _low_pass(low_44k))


def _loudness_ratio(wanted: np.ndarray, given: np.ndarray) -> float:
    wanted_rms, given_rms = _rms(wanted), _rms(given)
    return wanted_rms / given_rms if given_rms > SILENCE_RMS else 1.0


def _rms(waveform: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(waveform))) if waveform.size else 0.0


def _resample_to_44k(waveform: np.ndarray) -> np.ndarray:
    return soxr.resample(waveform.astype(np.float64), CODEC_RATE_HZ, VOCODER_RATE_HZ, quality=RESAMPLING_QUALITY)


def _clip(waveform: np.ndarray) -> np.ndarray:
    return np.clip(waveform, -PEAK, PEAK)


def _cut_to_shortest(*waveforms: np.ndarray) -> tuple[np.ndarray, ...]:
    length = min(len(waveform) for waveform in waveforms)
    return tuple(waveform[:length] for waveform in waveforms)


def _low_pass(waveform: np.ndarray) -> np.ndarray:
    cosine, denominator = _biquad()
    return _filtered(np.array([0.5, 1.0, 0.5]) * (1 - cosine), denominator, waveform)


def _high_pass(waveform: np.ndarray) -> np.ndarray:
    cosine, denominator = _biquad()
    return _filtered(np.array([0.5, -1.0, 0.5]) * (1 + cosine), denominator, waveform)


def _biquad() -> tuple[float, np.ndarray]:
    """cos(w) and the denominator that both filters of the audio cookbook share, at the crossover."""
    angle = 2 * math.pi * CROSSOVER_HZ / VOCODER_RATE_HZ
    alpha, cosine = math.sin(angle) / (2 * CROSSOVER_Q), math.cos(angle)
    return cosine, np.array([1 + alpha, -2 * cosine, 1 - alpha])


def _filtered(numerator: np.ndarray, denominator: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """The waveform behind a filter of second order: convolved with the filter's impulse response."""
    response = np.concatenate([[0.0, 0.0], numerator, np.zeros(RESPONSE_SAMPLES - len(numerator))])
    for i in range(2, len(response)):
        response[i] -= denominator[2] * response[i - 2] + denominator[1] * response[i - 1]
        response[i] /= denominator[0]
    return np.convolve(waveform, response[2:])[: len(waveform)]


# --- files ---


@dataclass(frozen=True)
class _Encoding:
    """How libsndfile writes a format. `compression` runs from 0, the best quality, to 1."""

    container: str
    subtype: str
    compression: float | None = None
    bitrate_mode: str | None = None


ENCODINGS = {
    "wav": _Encoding("WAV", "PCM_16"),  # what every player takes
    "flac": _Encoding("FLAC", "PCM_24"),  # the one to edit further: nothing audible is rounded away
    "mp3": _Encoding("MP3", "MPEG_LAYER_III", compression=0.4, bitrate_mode="CONSTANT"),  # 192 kbit/s for one channel
    "ogg": _Encoding("OGG", "VORBIS", compression=0.2),  # Vorbis quality 8, up to about 170 kbit/s
}
TAGS = ("title", "artist", "comment", "software", "date", "genre")


def encode(waveform: np.ndarray, rate_hz: int, format: str, tags: Mapping[str, str]) -> bytes:
    """The mono waveform (samples,) as the bytes of a file that decodes to as many samples, clipped to ±0.99.

    LAME keeps 3 % of headroom, so an MP3 is 0.26 dB quieter than the other formats.

    `tags` may hold the names in TAGS, in ASCII. All formats keep all of them, but for `software`: MP3 names its
    encoder there instead, and the others add the library's name to it. Put into `comment` what must be kept.
    """
    assert waveform.ndim == 1 and waveform.size, f"a mono waveform is (samples,), not {waveform.shape}"
    assert format in ENCODINGS, format
    for name, text in tags.items():
        assert name in TAGS and text.isascii(), (name, text)
    if not np.isfinite(waveform).all():
        raise EngineError(f"the {format} file was not written: the waveform holds NaN or infinite samples")
    encoding, buffer = ENCODINGS[format], io.BytesIO()
    with soundfile.SoundFile(
        buffer,
        "w",
        samplerate=rate_hz,
        channels=1,
        format=encoding.container,
        subtype=encoding.subtype,
        compression_level=encoding.compression,
        bitrate_mode=encoding.bitrate_mode,
    ) as file:
        for name, text in tags.items():  # ahead of the samples: behind them, most formats would drop the tags
            setattr(file, name, text)
        for first in range(0, len(waveform), WRITE_SAMPLES):
            file.write(_clip(waveform[first : first + WRITE_SAMPLES]))
    return buffer.getvalue()
