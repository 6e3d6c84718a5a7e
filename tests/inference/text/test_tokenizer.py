"""Text to ids with a small model trained here, and with YuE's own where it is at hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from inference.errors import CheckpointError
from inference.text.tokenizer import Tokenizer
from inference.vocabulary import TEXT_VOCABULARY_SIZE

FIRST_BYTE_ID = 3  # <unk>, <s> and </s> stand before the 256 byte pieces


def trained(byte_fallback: bool = True) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["paper boats along the rain", "carry me home over the foam"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return trained()


@pytest.fixture
def tokenizer(model: bytes, tmp_path: Path) -> Tokenizer:
    return Tokenizer(written(tmp_path, model))


def written(folder: Path, content: bytes) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(content)
    return path


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(path)
    assert caught.value.path == str(path)
    return caught.value


def with_piece(model: bytes, piece: str) -> bytes:
    """The model with fillers up to id 31,999 and then a piece that plain text can become."""
    fillers = b"".join(_piece(f"<filler {i}>", kind=5) for i in range(TEXT_VOCABULARY_SIZE))  # 5: unused
    return model + fillers + _piece(piece, kind=4)  # 4: user-defined


def _piece(piece: str, kind: int) -> bytes:
    """One more entry of a SentencePiece model: protobuf appends it to those before."""
    text = piece.encode()
    body = bytes([0x0A, len(text)]) + text + bytes([0x18, kind])
    return bytes([0x0A, len(body)]) + body


def test_emoji_and_other_unseen_characters_become_their_bytes(tokenizer: Tokenizer) -> None:
    for text in ("🎵", "𠮷", "é", "\x00"):
        assert tokenizer.encode(text)[-len(text.encode()) :] == [FIRST_BYTE_ID + byte for byte in text.encode()]


def test_every_call_starts_with_the_dummy_prefix(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("paper") == tokenizer.encode("paper boats")[: len(tokenizer.encode("paper"))]
    assert tokenizer.encode("boats") != tokenizer.encode("paperboats")[-len(tokenizer.encode("boats")) :]


def test_no_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "is missing" in refusal(tmp_path / "tokenizer.model").reason


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).reason


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "empty" in refusal(written(tmp_path, b"")).reason


@pytest.mark.parametrize("missing", [1, 100, 2_000])
def test_a_cut_file_is_refused(model: bytes, tmp_path: Path, missing: int) -> None:
    assert "truncated" in refusal(written(tmp_path, model[:-missing])).reason


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert "not a SentencePiece model" in refusal(written(tmp_path, b'{"model_type": "llama"}')).reason


def test_a_git_lfs_pointer_is_called_by_its_name(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ee5c7cbf\nsize 1761962\n"
    assert "Git LFS pointer" in refusal(written(tmp_path, pointer)).reason


def test_a_model_without_byte_pieces_is_refused(tmp_path: Path) -> None:
    assert "byte tokens" in refusal(written(tmp_path, trained(byte_fallback=False))).reason


def test_a_model_that_reads_control_tokens_out_of_text_is_refused(model: bytes, tmp_path: Path) -> None:
    tokenizer = Tokenizer(written(tmp_path, with_piece(model, "<SOA>")))
    assert max(tokenizer.encode("paper boats")) < TEXT_VOCABULARY_SIZE
    with pytest.raises(CheckpointError, match="<SOA>"):
        tokenizer.encode("paper <SOA> boats")


def test_control_tokens_spelled_in_text_stay_text_for_the_real_tokenizer(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    spelled = ["<EOD>", "<SOA>", "<EOA>", "<stage_1>", "<xcodec>", "<xcodec/0/17>", "<s>", "</s>", "<unk>", "<0x41>"]
    for text in spelled:
        ids = tokenizer.encode(text) + tokenizer.encode(f"la{text}la")
        assert min(ids) > 2 and max(ids) < TEXT_VOCABULARY_SIZE
        assert len(tokenizer.encode(text)) > 1


def test_emoji_become_their_bytes_for_the_real_tokenizer(tokenizer_path: Path) -> None:
    assert Tokenizer(tokenizer_path).encode("😀") == [29871, *(FIRST_BYTE_ID + byte for byte in "😀".encode())]
