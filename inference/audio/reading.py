"""Reads reference audio: files in, mono float32 waveforms at 16 kHz out.

Independent of codes and networks. It never imports torch. Every limit on a file is checked here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import soundfile
import soxr

from inference.audio.file_formats import recognised
from inference.audio.mixing import RESAMPLING_QUALITY, cut_to_shortest
from inference.errors import InvalidField
from inference.song import Reference
from inference.vocabulary import CODEC_RATE_HZ

MIN_REFERENCE_SECONDS = 1.0
# Two tracks of this length are 12,000 tokens of stage 1's 16,384. It also limits the decoded size of a small file.
MAX_REFERENCE_SECONDS = 120.0
SILENCE_PEAK = 10.0 ** (-60.0 / 20.0)  # -60 dBFS
MIN_FILE_RATE_HZ = 4_000
MAX_FILE_RATE_HZ = 192_000
MAX_FILE_CHANNELS = 8
# Of all channels: stereo at the highest rate for the longest time. A small file can decode to hours of silence.
MAX_SPAN_SAMPLES = round(2 * MAX_FILE_RATE_HZ * MAX_REFERENCE_SECONDS)
READ_SAMPLES = 1 << 18  # of all channels, in one read
READ_FORMATS = "WAV, FLAC, MP3 or OGG"
CONVERT = "convert to WAV, FLAC or MP3"
MAX_PEAK = 16.0  # 24 dB above full scale; with much louder input the networks compute NaN


def read_reference(reference: Reference) -> tuple[np.ndarray, ...]:
    """The reference as mono float32 at 16 kHz: (mix,), or (vocal, instrumental) of equal length.

    Each is (samples,), the part from `start_seconds` to `end_seconds` or to the end of the file. Raises InvalidField.
    """
    files = check_reference(reference)
    tracks = [_read_track(field, content, reference) for field, content in files.items()]
    return cut_to_shortest(*tracks)


def check_reference(reference: Reference) -> dict[str, bytes]:
    """The one or two files by the names of their fields. Checks the span, but opens no file. Raises InvalidField."""
    files = _reference_files(reference)
    _check_span(reference.start_seconds, reference.end_seconds)
    return files


def cut_reference(reference: Reference) -> Reference:
    """The same reference as WAV files with exactly the samples of `read_reference`. Raises InvalidField."""
    tracks = read_reference(reference)
    end_seconds = len(tracks[0]) / CODEC_RATE_HZ
    if len(tracks) == 1:
        return Reference(mix=_as_wav(tracks[0]), end_seconds=end_seconds)
    return Reference(vocal=_as_wav(tracks[0]), instrumental=_as_wav(tracks[1]), end_seconds=end_seconds)


def check_header(field: str, content: bytes, reference: Reference) -> None:
    """Check the file's header, without decoding the file. Raises InvalidField."""
    with _opened(field, content) as file:
        _span_samples(field, file, reference.start_seconds, reference.end_seconds)


def _as_wav(waveform: np.ndarray) -> bytes:
    """The waveform (samples,) at 16 kHz as a WAV file, without loss."""
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
            raise InvalidField(field, value, "seconds from the start of the file, 0 or more")
    if start_seconds >= end_seconds:
        raise InvalidField("reference.start_seconds", start_seconds, f"less than end_seconds, {end_seconds:g}")
    if not MIN_REFERENCE_SECONDS <= end_seconds - start_seconds <= MAX_REFERENCE_SECONDS:
        span = f"{MIN_REFERENCE_SECONDS:g} to {MAX_REFERENCE_SECONDS:g} s"
        allowed = f"{span} after start_seconds, {start_seconds:g}"
        raise InvalidField("reference.end_seconds", end_seconds, allowed)


def _read_track(field: str, content: bytes, reference: Reference) -> np.ndarray:
    """One file's span, (samples,) at 16 kHz. Only the span is decoded."""
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
    """Open the file. Raises InvalidField if opening or reading it fails."""
    if not content:
        raise InvalidField(field, "an empty file", f"an audio file, such as {READ_FORMATS}")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            yield file
    except soundfile.SoundFileError as error:
        found = recognised(content) or f"{len(content)} bytes that are not audio"
        raise InvalidField(field, found, f"an audio file, such as {READ_FORMATS}; {CONVERT}") from error


def _span_samples(field: str, file: soundfile.SoundFile, start_seconds: float, end_seconds: float) -> int:
    """The number of samples per channel in the span, by the file's header. Raises InvalidField."""
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
    """The mean of the channels of the next `samples` samples (fewer at the end of the file), float32 at 16 kHz.

    Only one block is in memory at a time. Together the blocks equal the whole span resampled at once.
    """
    to_16k = soxr.ResampleStream(file.samplerate, CODEC_RATE_HZ, 1, dtype="float32", quality=RESAMPLING_QUALITY)
    block_samples = READ_SAMPLES // file.channels
    while samples > 0 and len(block := file.read(min(samples, block_samples), dtype="float32", always_2d=True)):
        samples -= len(block)
        with np.errstate(invalid="ignore", over="ignore"):  # the caller reports infinite samples
            mono = block.mean(axis=1)
        yield mono if file.samplerate == CODEC_RATE_HZ else to_16k.resample_chunk(mono)
    yield to_16k.resample_chunk(np.zeros(0, np.float32), last=True)


def _checked(field: str, block: np.ndarray) -> np.ndarray:
    """The block (samples,), if its samples are finite and not much too loud. Raises InvalidField."""
    if not np.isfinite(block).all():
        raise InvalidField(field, "non-finite samples (NaN or Inf)", "finite samples")
    peak = np.abs(block).max(initial=0)
    if peak > MAX_PEAK:
        allowed = f"samples between -1 and 1; peaks above {MAX_PEAK:g} are rejected"
        raise InvalidField(field, f"a sample of {peak:g}", allowed)
    return block
