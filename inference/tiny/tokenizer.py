"""Trains the tokenizer of the tiny model: a real SentencePiece model with YuE's special tokens.

SentencePiece calls its tokens pieces.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator

import sentencepiece

from inference import vocabulary
from inference.vocabulary import CODEBOOK_SIZE, FIRST_CODE_ID, TEXT_VOCABULARY_SIZE, XCODEC_CODEBOOKS

N_TOKENS = 83_734  # the number in the real model file
N_TRAINED_TOKENS = 600  # including the 256 byte tokens
TYPE_NORMAL, TYPE_UNUSED = 1, 5  # SentencePiece's own constants

SUBJECTS = (
    "The river",
    "My heart",
    "A little light",
    "Your voice",
    "The morning",
    "Our song",
    "The city",
    "Every star",
)
VERBS = ("is calling", "keeps on dancing", "was waiting", "will be singing", "runs away", "comes back home", "shines")
PLACES = ("in the rain", "through the night", "by the sea", "for you and me", "until tomorrow", "over the hills")
TAGS = ("verse", "chorus", "bridge", "intro", "outro", "pre-chorus", "instrumental", "Verse 1", "Chorus 2", "Genre")
MARKERS = (
    vocabulary.START_OF_SEGMENT,
    vocabulary.END_OF_SEGMENT,
    vocabulary.START_OF_REFERENCE,
    vocabulary.END_OF_REFERENCE,
)
GENRES = "inspiring female uplifting pop airy vocal electronic bright vocal male rock jazz folk piano guitar drums bass"
TASK = "Generate music from the given lyrics segment by segment."
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz 0123456789 .,;:!?'\"()-_&/"

SPECIAL_TOKENS = {
    vocabulary.EOD_ID: "<EOD>",
    vocabulary.SOA_ID: "<SOA>",
    vocabulary.EOA_ID: "<EOA>",
    vocabulary.STAGE_1_ID: "<stage_1>",
    vocabulary.XCODEC_ID: "<xcodec>",
    vocabulary.STAGE_2_ID: "<stage_2>",
}


def tokenizer_model() -> bytes:
    """The content of a `tokenizer.model`, the same every time."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(),
        model_writer=trained,
        model_type="bpe",
        vocab_size=N_TRAINED_TOKENS,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,  # errors only
    )
    # Protocol-buffer messages can be concatenated, so the other tokens are appended.
    return trained.getvalue() + b"".join(_token(token_id) for token_id in range(N_TRAINED_TOKENS, N_TOKENS))


def _lines() -> Iterator[str]:
    for words in itertools.product(SUBJECTS, VERBS, PLACES):
        yield " ".join(words)
    yield from (f"[{tag}]" for tag in TAGS)
    yield from (*MARKERS, GENRES, TASK, CHARACTERS)


def _token(token_id: int) -> bytes:
    """The token with that id, as a field of SentencePiece's ModelProto. Text is never encoded to it.

    BPE builds a token by merging two shorter ones, and no merges lead to these tokens.
    """
    code = token_id - FIRST_CODE_ID
    if token_id in SPECIAL_TOKENS:
        text, kind = SPECIAL_TOKENS[token_id], TYPE_NORMAL
    elif 0 <= code < XCODEC_CODEBOOKS * CODEBOOK_SIZE:
        text, kind = "<xcodec/{}/{}>".format(*divmod(code, CODEBOOK_SIZE)), TYPE_NORMAL
    else:
        text, kind = f"<{'text' if token_id < TEXT_VOCABULARY_SIZE else 'unused'}/{token_id}>", TYPE_UNUSED
    # Fields 1 (text), 2 (score, a float) and 3 (kind) of a token; tokens are field 1 of the model.
    body = b"\x0a" + _sized(text.encode()) + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([kind])
    return b"\x0a" + _sized(body)


def _sized(content: bytes) -> bytes:
    assert len(content) < 128, "a longer length would take two bytes"
    return bytes([len(content)]) + content
