"""The tiny set: files like the real ones. `test_hearing.py` tests what its songs sound like."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from inference.catalog import CODEC_FILES, ModelFiles
from inference.codec_layout import codec_shapes
from inference.models import vocoder
from inference.models.checkpoints import load_llama, read_pickle
from inference.models.codec import Codec
from inference.tiny import checkpoints, layers, model_files, score
from inference.vocabulary import FIRST_CODE_ID, N_CODEBOOKS, code_ids
from tests.support.full_size import REAL_CODEC, REAL_VOCOS
from tests.support.language_models import plain_logits

# The first 16 digits of the SHA-256 of each tensor's bytes, one for each way of scaling.
KNOWN_TENSORS = [
    ("xcodec.a.alpha", (1, 5, 1), "a7ccdeffbb8ac7c5"),
    ("x.gamma", (7,), "65e52ca8586bdf76"),
    ("decoder_2.model.6.weight_g", (3, 1, 1), "725a6d4e3bb77a04"),
    ("x.weight_g", (3, 1, 1), "214da184470b766c"),
    ("q._codebook.embed_avg", (8, 4), "280058d7bf81d748"),
    ("a.inited", (1,), "e00e5eb9444182f3"),
    ("c.bias", (5,), "97496136ac444170"),
    ("input_layernorm.weight", (6,), "b157e765ac7cd996"),
    ("stage1.lm_head.weight", (9, 4), "2ec6d8df2fc99665"),
    ("conv.weight", (3, 4, 5), "9db79e1b3d574d02"),
]


@pytest.mark.parametrize(("key", "shape", "digest"), KNOWN_TENSORS)
def test_fabricated_tensor_is_the_one_the_parity_data_was_made_with(
    key: str, shape: tuple[int, ...], digest: str
) -> None:
    tensor = checkpoints.fabricate(key, shape)
    assert tensor.dtype == torch.float32 and tensor.shape == shape
    assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] == digest


def test_another_key_or_seed_fabricates_another_tensor() -> None:
    tensor = checkpoints.fabricate("layer.weight", (4, 4))
    assert not torch.equal(tensor, checkpoints.fabricate("other.weight", (4, 4)))
    assert not torch.equal(tensor, checkpoints.fabricate("layer.weight", (4, 4), seed=1))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """One tiny set for every test of this file."""
    return model_files.ensure(tmp_path_factory.mktemp("cache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- names and layout


def test_names_and_shapes_of_a_full_size_codec_are_the_real_ones(parity_dir: Path) -> None:
    real = json.loads((parity_dir / "xcodec_keys.json").read_text())
    assert codec_shapes(REAL_CODEC) == {name: tuple(shape) for name, shape in real.items()}


def test_names_and_shapes_of_a_full_size_vocos_are_the_real_ones(parity_dir: Path) -> None:
    real = json.loads((parity_dir / "vocos_keys.json").read_text())
    assert layers.vocos_shapes(REAL_VOCOS) == {name: tuple(shape) for name, shape in real.items()}


def test_set_is_laid_out_as_the_repositories_are(files: ModelFiles) -> None:
    shards = {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    configs = {"config.json", "tokenizer.model"}
    stage1 = configs | shards | {"generation_config.json", "model.safetensors.index.json"}
    assert set(contents(files.stage1)) == stage1
    assert set(contents(files.stage2)) == configs | {"model.safetensors"}
    assert set(contents(files.codec)) == set(CODEC_FILES)


def test_set_is_small(files: ModelFiles) -> None:
    assert sum(map(len, contents(files.stage1.parent).values())) < 100e6


def test_set_is_the_same_every_time(files: ModelFiles, tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(files.stage1.parent)


def test_writing_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints.write(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")


# -- loading


# After the vocal's first code, stage 1 continues with the first chord of a verse or chorus; stage 2 finds the same code
# in every codebook, of which the engine asks for the next one.
FIRST_CHORDS = {FIRST_CODE_ID + score.BandState(chord, 0, 0).code for chord in (0, len(score.VERSE))}
SAME_CODE = {code_ids(codebook).start for codebook in range(N_CODEBOOKS)}


@pytest.mark.parametrize(
    ("stage", "heads", "kv_heads", "likeliest"), [("stage1", 4, 2, FIRST_CHORDS), ("stage2", 3, 3, SAME_CODE)]
)
def test_language_models_load(files: ModelFiles, stage: str, heads: int, kv_heads: int, likeliest: set[int]) -> None:
    model = load_llama(getattr(files, stage), torch.device("cpu"), torch.float32)
    assert model.config.vocab_size == checkpoints.MODEL_VOCABULARY_SIZE
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (heads, kv_heads)
    with torch.no_grad():
        logits = plain_logits(model, torch.tensor([[1, 32_001, 32_016, FIRST_CODE_ID]]))[0, -1]
    assert logits.isfinite().all() and int(logits.argmax()) in likeliest


def test_codec_and_vocoders_are_read(files: ModelFiles) -> None:
    codec = read_pickle(files.codec / CODEC_FILES[0], "codec_model")
    assert codec["quantizer.vq.layers.11._codebook.embed"].shape == (1024, checkpoints.VOCOS_WIDTHS.codebook)
    vocal, instrumental = (read_pickle(files.codec / name) for name in CODEC_FILES[1:3])
    assert vocal["backbone.embed.weight"].shape[1] == checkpoints.VOCOS_WIDTHS.codebook
    assert not torch.equal(vocal["head.out.weight"], instrumental["head.out.weight"])
    assert torch.equal(vocal["head.istft.window"], torch.hann_window(3528))


@pytest.mark.parametrize(("file", "first_code"), [(CODEC_FILES[1], 0), (CODEC_FILES[2], score.N_VOCAL_CODES)])
def test_track_is_audible_and_within_full_scale(files: ModelFiles, file: str, first_code: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = first_code + torch.randint(score.N_VOCAL_CODES, (200,), generator=generator)
    codes = codes.expand(8, -1)  # as stage 2 continues them
    codec = Codec.load(files.codec, torch.device("cpu"))
    with torch.inference_mode():
        waveforms = codec.decode(codes), vocoder.load(files.codec / file, torch.device("cpu"))(codec.embed(codes))
    for waveform in waveforms:
        assert waveform.abs().max() < 1
        assert waveform.square().mean().sqrt() > 0.01  # -40 dB


# -- the tokenizer


@pytest.fixture(scope="session")
def processor(files: ModelFiles) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(files.stage1 / "tokenizer.model"))


def test_special_pieces_stand_at_yue_s_ids(processor: SentencePieceProcessor) -> None:
    assert processor.vocab_size() == 83_734
    ids = {"<EOD>": 32_000, "<SOA>": 32_001, "<EOA>": 32_002, "<stage_1>": 32_013, "<xcodec>": 32_016}
    ids |= {"<stage_2>": 32_017, "<xcodec/0/0>": 45_334, "<xcodec/1/0>": 46_358, "<xcodec/11/1023>": 57_621}
    assert {piece: processor.piece_to_id(piece) for piece in ids} == ids


def test_every_piece_is_found_under_its_own_name(processor: SentencePieceProcessor) -> None:
    pieces = [processor.id_to_piece(piece_id) for piece_id in range(processor.vocab_size())]
    assert len(set(pieces)) == len(pieces)


@pytest.mark.parametrize("text", ["<EOD>", "<SOA><EOA>", "a <xcodec/0/5> b", "<stage_1><unused/33000>", "<text/700>"])
def test_control_tokens_spelled_in_a_text_stay_text(processor: SentencePieceProcessor, text: str) -> None:
    ids = processor.encode(text)
    assert max(ids) < 600
    assert processor.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["[verse]\nThe river is calling\n\n", "Größe 给 ♪", " two  spaces", "[start_of_segment]"]
)
def test_any_text_survives_the_tokenizer(processor: SentencePieceProcessor, text: str) -> None:
    assert processor.decode(processor.encode(text)) == text


# -- the cache


def test_a_set_that_is_there_is_not_written_again(files: ModelFiles) -> None:
    stamp = (files.stage1 / "config.json").stat().st_mtime_ns
    assert model_files.ensure(files.stage1.parent.parent) == files
    assert (files.stage1 / "config.json").stat().st_mtime_ns == stamp


def test_a_set_that_is_there_is_found_without_torch(files: ModelFiles) -> None:
    program = (
        "import sys, pathlib; from inference.tiny.model_files import ensure;"
        " ensure(pathlib.Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(files.stage1.parent.parent)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_half_written_set_is_never_used(tmp_path: Path, files: ModelFiles) -> None:
    """What an interrupted writer leaves lies beside the place where the set is looked for."""
    left_over = tmp_path / ".tiny-left" / files.stage1.parent.name / "stage1"
    left_over.mkdir(parents=True)
    assert contents(model_files.ensure(tmp_path).stage1) == contents(files.stage1)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="File exists"):
        model_files.ensure(tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.slow
def test_two_processes_may_write_at_once(tmp_path: Path, files: ModelFiles) -> None:
    program = "import sys, pathlib, inference.tiny.model_files as t; t.ensure(pathlib.Path(sys.argv[1]))"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [files.stage1.parent.name]
    assert contents(tmp_path) == contents(files.stage1.parent.parent)
