"""Recognises the format of a file by its first bytes, for the error about a file that cannot be read.

It decodes nothing, so the rest of a recognised file may still be broken.
"""

from __future__ import annotations

ID3_HEADER_BYTES = 10
TS_PACKET_BYTES = 188  # each starts with a G
HEAD_BYTES = 64  # enough to see a container's content type
_TROUBLE = "broken, or in an encoding that is not read"

# Offset, bytes and name. The first match counts.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypM4A", "an M4A file"),
    (4, b"ftypM4B", "an M4B file"),
    (4, b"ftypM4P", "an M4P file"),
    (4, b"ftypqt", "a QuickTime file (MOV)"),
    (4, b"ftyp3g", "a 3GP file"),
    (4, b"ftyp", "an MP4 file"),
    (4, b"moov", "a QuickTime file (MOV)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a WMA file"),
    (0, b"ADIF", "an AAC file"),
    (0, b"\x0bw", "an AC-3 file"),
    (0, b"\x7f\xfe\x80\x01", "a DTS file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"wvpk", "a WavPack file"),
    (0, b"MAC ", "a Monkey's Audio file (APE)"),
    (0, b"TTA", "a True Audio file (TTA)"),
    (0, b"MPCK", "a Musepack file"),
    (0, b"MP+", "a Musepack file"),
    (0, b"DSD ", "a DSF file"),
    (0, b"FRM8", "a DSDIFF file"),
    (0, b".RMF", "a RealMedia file"),
    (0, b"FLV", "an FLV file"),
    (0, b"MThd", "a MIDI file, which holds notes and no audio"),
    (0, b"\x00\x00\x01\xba", "an MPEG video"),
    (8, b"AVI ", "an AVI file"),
    (8, b"WAVE", f"a WAV file that is {_TROUBLE}"),
    (8, b"AIF", f"an AIFF file that is {_TROUBLE}"),
    (0, b"caff", f"a CAF file that is {_TROUBLE}"),
    (0, b"fLaC", "a FLAC file that is broken"),
    (28, b"Speex", "an Ogg file of Speex"),
    (0, b"OggS", f"an Ogg file that is {_TROUBLE}"),
    (0, b"PK\x03\x04", "a ZIP file"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
)


def recognised(content: bytes) -> str | None:
    """The most likely format, as the rest of a sentence: "an M4A file"; None if it is unknown."""
    head = content[:HEAD_BYTES]
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "a WebM file" if b"webm" in head else "a Matroska file (MKA, MKV)"
    for offset, signature, name in SIGNATURES:
        if head.startswith(signature, offset):
            return name
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if content[: TS_PACKET_BYTES + 1 : TS_PACKET_BYTES] == b"GG":
        return "an MPEG transport stream (TS)"
    return _mpeg(content)


def _mpeg(content: bytes) -> str | None:
    """AAC or MP3, which have no signature: a tag may come first, and each frame starts with at least eleven 1 bits."""
    frame = content[_tag_bytes(content) :][:2]
    if len(frame) == 2 and frame[0] == 0xFF and frame[1] & 0xF6 == 0xF0:  # the two layer bits are 0 only in AAC
        return "an AAC file"
    is_mp3 = content.startswith(b"ID3") or (len(frame) == 2 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0)
    return "an MP3 file that is broken" if is_mp3 else None


def _tag_bytes(content: bytes) -> int:
    """The size of an ID3 tag. Its length is stored in four bytes of seven bits each."""
    if not content.startswith(b"ID3") or len(content) < ID3_HEADER_BYTES:
        return 0
    a, b, c, d = content[6:ID3_HEADER_BYTES]
    return ID3_HEADER_BYTES + (a << 21 | b << 14 | c << 7 | d)
