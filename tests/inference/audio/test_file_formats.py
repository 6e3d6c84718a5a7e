"""Files that are not read are named, so that people know what to convert."""

from __future__ import annotations

import pytest

from inference.audio.file_formats import recognised

EBML = b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84"
OGG_PAGE = b"OggS\x00\x02" + bytes(20) + b"\x01\x50"
ADTS = b"\xff\xf1P@!?\xfc\xde\x02\x00"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x00\x00\x00\x1cftypM4A \x00\x00\x02\x00", "M4A"),
        (b"\x00\x00\x00\x1cftypisom\x00\x00\x02\x00", "MP4"),
        (b"\x00\x00\x00\x14ftypqt  \x00\x00\x02\x00", "QuickTime"),
        (b"\x00\x00\x00\x14ftyp3gp4\x00\x00\x02\x00", "3GP"),
        (EBML + b"webm", "WebM"),
        (EBML + b"matroska", "Matroska"),
        (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel", "WMA"),
        (ADTS, "AAC"),
        (b"ID3\x04\x00\x00\x00\x00\x01\x02" + bytes(130) + ADTS, "AAC"),
        (b"ID3\x04\x00\x00\x00\x00\x01\x02" + bytes(130), "MP3 file that is broken"),
        (b"\xff\xfb\x90\x00", "MP3 file that is broken"),
        (b"#!AMR\n", "AMR"),
        (b"RIFF\x12g\x00\x00WAVEfmt ", "WAV"),
        (b"RIFF&\x80\x00\x00AVI LIST", "AVI"),
        (b"FORM\x00\x04\t\xc6AIFCFVER", "AIFF"),
        (OGG_PAGE + b"Speex   1.2", "Speex"),
        (OGG_PAGE + b"\x80theora", "Ogg"),
        (b"fLaC", "FLAC"),
        (b"G" + bytes(187) + b"G", "TS"),
        (b"MThd\x00\x00\x00\x06", "MIDI"),
        (b"\r\n<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04", "ZIP"),
    ],
)
def test_a_format_is_known_by_its_first_bytes(head: bytes, name: str) -> None:
    assert name in str(recognised(head + bytes(8)))


@pytest.mark.parametrize("content", [b"", b"-", b"no audio at all", bytes(200), b"G", b"\xff", b"ID", b"{}"])
def test_what_is_not_known_gets_no_name(content: bytes) -> None:
    assert recognised(content) is None


@pytest.mark.parametrize("content", [b"ID3", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f"])
def test_a_tag_that_is_cut_off_is_no_error(content: bytes) -> None:
    assert recognised(content)
