"""A stream has the same bytes however its samples come, and every player reads it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.audio.encoding import encode, song_tags
from inference.audio.stream_encoding import STREAM_FORMATS, StreamEncoder, ogg_checksum
from inference.vocabulary import VOCODER_RATE_HZ
from tests.support.waveforms import tone

TAGS = song_tags("tiny", 7)
SONG = (
    tone(2.3, VOCODER_RATE_HZ) * np.random.default_rng(0).uniform(0.1, 1, 23).repeat(4_410)[: round(2.3 * 44_100)]
).astype(np.float32)


def streamed(format: str, cuts: list[int], number: int = 5) -> bytes:
    encoder = StreamEncoder(format, VOCODER_RATE_HZ, TAGS, number)
    content = b"".join(encoder.encode(part) for part in np.split(SONG, cuts))
    return content + encoder.finish()


@pytest.mark.parametrize("format", STREAM_FORMATS)
@given(cuts=st.lists(st.integers(0, len(SONG)), max_size=6).map(sorted))
@settings(max_examples=10, deadline=None)
def test_the_bytes_do_not_depend_on_how_the_samples_come(format: str, cuts: list[int]) -> None:
    assert streamed(format, cuts) == streamed(format, [])


@pytest.mark.parametrize("format", STREAM_FORMATS)
def test_bytes_come_with_the_samples(format: str) -> None:
    encoder = StreamEncoder(format, VOCODER_RATE_HZ, TAGS, 5)
    early = encoder.encode(SONG[: len(SONG) // 2])
    whole = streamed(format, [])
    encoder.close()
    assert whole.startswith(early)
    assert len(early) > 0.3 * len(whole)


@pytest.mark.parametrize("format", ["ogg", "wav"])
def test_the_stream_decodes_to_what_the_file_decodes_to(format: str) -> None:
    stream, _ = soundfile.read(io.BytesIO(streamed(format, [1_000])))
    file, rate_hz = soundfile.read(io.BytesIO(encode(SONG, VOCODER_RATE_HZ, format, TAGS)))
    assert rate_hz == VOCODER_RATE_HZ
    assert stream.shape == file.shape
    np.testing.assert_allclose(stream, file, rtol=0, atol=0 if format == "wav" else 0.02)


def test_an_mp3_stream_has_the_song_behind_the_delay_of_its_encoder() -> None:
    stream, rate_hz = soundfile.read(io.BytesIO(streamed("mp3", [])))
    assert rate_hz == VOCODER_RATE_HZ
    delay = int(np.argmax(np.correlate(stream[:24_000], SONG[:20_000], "valid")))
    assert delay < 0.06 * VOCODER_RATE_HZ
    assert len(stream) - len(SONG) < 0.1 * VOCODER_RATE_HZ
    heard = stream[delay : delay + len(SONG)]
    assert np.corrcoef(heard, SONG[: len(heard)])[0, 1] > 0.99


@pytest.mark.parametrize("format", ["mp3", "ogg"])
def test_a_stream_says_what_it_is(format: str) -> None:
    with soundfile.SoundFile(io.BytesIO(streamed(format, []))) as file:
        assert file.title == "YuE song"
        assert "AI-generated with YuE" in file.comment


def test_an_ogg_stream_has_its_own_number_and_right_checksums() -> None:
    content, pages = streamed("ogg", [], number=0xABCD_0123_4567), []
    while content:
        n_segments = content[26]
        size = 27 + n_segments + sum(content[27 : 27 + n_segments])
        pages.append(content[:size])
        content = content[size:]
    assert {page[14:18] for page in pages} == {(0x0123_4567).to_bytes(4, "little")}
    for page in pages:
        assert ogg_checksum(page[:22] + bytes(4) + page[26:]).to_bytes(4, "little") == page[22:26]
    assert pages[-1][5] & 4, "the last page says that it is the last"


def test_the_checksum_is_that_of_the_ogg_format() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, SONG, VOCODER_RATE_HZ, format="OGG", subtype="VORBIS")
    page = buffer.getvalue()[:58]  # the first page, as libogg writes it
    assert ogg_checksum(page[:22] + bytes(4) + page[26:]).to_bytes(4, "little") == page[22:26]
