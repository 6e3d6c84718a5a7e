"""Encodes text as token ids, with the SentencePiece model that comes with the weights.

Control tokens that are spelled out in the text stay text. SentencePiece calls its tokens pieces.
"""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from inference.errors import CheckpointError
from inference.vocabulary import TEXT_VOCABULARY_SIZE
from inference.weights.files import read_bytes

_FIRST_BYTE_TOKEN = "<0x00>"


class Tokenizer:
    """A loaded `tokenizer.model`."""

    def __init__(self, path: Path) -> None:
        """Load the file. Raises CheckpointError, also for a SentencePiece model without byte tokens."""
        self._path = path
        self._processor = _load(path)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, dummy prefix first. Every id is a text token, below 32,000."""
        ids: list[int] = self._processor.encode(text)
        control = next((i for i in ids if i >= TEXT_VOCABULARY_SIZE), None)
        if control is not None:
            # It would end a section or mean audio. YuE's own file never produces one.
            token = self._processor.id_to_piece(control)
            raise CheckpointError(self._path, f"turns text into the control token {token!r} (id {control})")
        return ids


def _load(path: Path) -> SentencePieceProcessor:
    content = read_bytes(path)
    try:
        processor = SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise CheckpointError(path, f"is truncated or not a SentencePiece model ({len(content):,} bytes)") from error
    if not processor.is_byte(processor.piece_to_id(_FIRST_BYTE_TOKEN)):
        raise CheckpointError(path, "has no byte tokens, so emoji and rare characters would be lost")
    return processor
