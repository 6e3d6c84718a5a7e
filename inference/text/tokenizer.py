"""Text to token ids, with the SentencePiece model that comes with the weights.

It does not know what the text means: control tokens spelled in it stay text.
"""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from inference.errors import CheckpointError
from inference.vocabulary import TEXT_VOCABULARY_SIZE

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_FIRST_BYTE_PIECE = "<0x00>"


class Tokenizer:
    """`tokenizer.model`, loaded."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if the file is missing, cut short, or no SentencePiece model with byte pieces."""
        self._path = path
        self._processor = _load(path)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, dummy prefix first. Every id is a text piece, below 32,000."""
        ids: list[int] = self._processor.encode(text)
        control = next((i for i in ids if i >= TEXT_VOCABULARY_SIZE), None)
        if control is not None:
            # Let through, it would end a section or stand for sound. YuE's own file never does this.
            piece = self._processor.id_to_piece(control)
            raise CheckpointError(self._path, f"turns text into the control token {piece!r} (id {control})")
        return ids


def _load(path: Path) -> SentencePieceProcessor:
    content = _read(path)
    try:
        processor = SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise CheckpointError(path, f"is cut short or no SentencePiece model ({len(content):,} bytes)") from error
    if not processor.is_byte(processor.piece_to_id(_FIRST_BYTE_PIECE)):
        raise CheckpointError(path, "has no byte pieces, so emoji and rare characters would be lost")
    return processor


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    if not content:
        raise CheckpointError(path, "is empty")
    if content.startswith(_LFS_POINTER):
        raise CheckpointError(path, "is a git-lfs pointer, not the file itself; download the file again")
    return content
