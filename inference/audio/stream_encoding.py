"""Encodes a song as one continuous stream while its samples arrive: MP3, Ogg Vorbis, WAV.

The bytes depend on the samples, the format, the tags and the stream's number alone, not on how the samples were
divided or when they came: whoever encodes the same song gets the same bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from inference.audio.encoding import ENCODINGS, Encoding, opened
from inference.audio.mixing import clip
from inference.vocabulary import VOCODER_HOP

STREAM_FORMATS = ("mp3", "ogg", "wav")
WRITE_SAMPLES = VOCODER_HOP  # Vorbis's bytes depend on the size of the writes, so it is always the same
SAMPLE_BYTES = 2
UNKNOWN_BYTES = 0xFFFF_FFFF  # in place of a size that is not known yet
OGG_HEADER = struct.Struct("<4sBBqIIIB")  # magic, version, flags, position, serial number, page, checksum, segments
OGG_CHECKSUM = slice(22, 26)
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class StreamEncoder:
    """One stream. Close it, also before its end: it holds memory of the encoder."""

    def __init__(self, format: str, rate_hz: int, tags: Mapping[str, str], number: int) -> None:
        """`number` identifies the stream: two streams of 32 equal bits may be mistaken for each other in one Ogg file.

        The samples are mono.
        """
        assert format in STREAM_FORMATS, format
        wav = format == "wav"
        self._sink = _Sink()
        self._file = opened(
            self._sink, rate_hz, Encoding("RAW", "PCM_16") if wav else ENCODINGS[format], {} if wav else tags
        )
        self._rest = np.zeros(0, np.float32)
        self._ogg = OggPages(number) if format == "ogg" else None
        self._header = _wav_header(rate_hz) if wav else b""
        if format == "mp3":
            # At the end LAME writes the length into the first frame. A stream cannot, so it goes without that frame.
            self._sink.n_skipped_writes = 1

    def encode(self, samples: np.ndarray) -> bytes:
        """The next bytes of the stream, after these samples (samples,); some of them come with later samples."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) - len(samples) % WRITE_SAMPLES
        for first in range(0, whole, WRITE_SAMPLES):
            self._file.write(clip(samples[first : first + WRITE_SAMPLES]))
        self._rest = samples[whole:]
        return self._taken()

    def finish(self) -> bytes:
        """The last bytes of the stream."""
        self._file.write(clip(self._rest))
        self._file.close()
        return self._taken()

    def close(self) -> None:
        """Free the encoder. May be called again."""
        self._file.close()

    def _taken(self) -> bytes:
        encoded = self._sink.take()
        content, self._header = self._header + (self._ogg.renumbered(encoded) if self._ogg else encoded), b""
        return content


class _Sink(io.RawIOBase):
    """A file that is only appended to. What the encoder writes elsewhere than at the end is left out."""

    def __init__(self) -> None:
        self._fresh = bytearray()
        self._position = self._end = 0
        self.n_skipped_writes = 0

    def take(self) -> bytes:
        """What was appended since the last call."""
        content = bytes(self._fresh)
        self._fresh.clear()
        return content

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        size = len(memoryview(content).cast("B"))
        if self._position == self._end:
            if self.n_skipped_writes:
                self.n_skipped_writes -= 1
            else:
                self._fresh += content
            self._end += size
        self._position += size
        return size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position


class OggPages:
    """Gives the pages of an Ogg stream another serial number: libsndfile draws one at random."""

    def __init__(self, number: int) -> None:
        self._serial = number & 0xFFFF_FFFF
        self._rest = b""

    def renumbered(self, content: bytes) -> bytes:
        """The pages that are whole by now."""
        self._rest += content
        pages = []
        while (size := _page_size(self._rest)) and size <= len(self._rest):
            pages.append(self._page(self._rest[:size]))
            self._rest = self._rest[size:]
        return b"".join(pages)

    def _page(self, page: bytes) -> bytes:
        magic, version, flags, position, _, number, _, segments = OGG_HEADER.unpack_from(page)
        assert magic == b"OggS", "not a page of an Ogg stream"
        header = OGG_HEADER.pack(magic, version, flags, position, self._serial, number, 0, segments)
        page = header + page[OGG_HEADER.size :]
        return page[: OGG_CHECKSUM.start] + struct.pack("<I", ogg_checksum(page)) + page[OGG_CHECKSUM.stop :]


def ogg_checksum(page: bytes) -> int:
    """The CRC of a page: the polynomial of zlib's, with the bits the other way round and nothing inverted."""
    crc = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)


def _page_size(content: bytes) -> int:
    """The size of the page at the start; 0 if its header is not whole."""
    if len(content) < OGG_HEADER.size or len(content) < OGG_HEADER.size + content[OGG_HEADER.size - 1]:
        return 0
    n_segments = content[OGG_HEADER.size - 1]
    return OGG_HEADER.size + n_segments + sum(content[OGG_HEADER.size : OGG_HEADER.size + n_segments])


def _wav_header(rate_hz: int) -> bytes:
    """The header of a mono WAV file of 16 bits and unknown length."""
    format_chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, rate_hz * SAMPLE_BYTES, SAMPLE_BYTES, 16)
    riff = struct.pack("<4sI4s", b"RIFF", UNKNOWN_BYTES, b"WAVE")
    return riff + format_chunk + struct.pack("<4sI", b"data", UNKNOWN_BYTES)
