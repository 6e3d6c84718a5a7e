"""X-Codec: parity with the recorded numbers, and checkpoints that are small, spelled otherwise or wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.engine.pipeline import CONTEXT_FRAMES
from inference.errors import CheckpointError, InvalidField
from inference.models.codec import CHECKPOINT, CHECKPOINT_KEY, SEMANTIC_CONFIG, Codec
from inference.tiny.checkpoints import fabricate
from inference.vocabulary import CODEBOOK_SIZE, CODEC_HOP, CODEC_RATE_HZ, N_CODEBOOKS, TRACKS

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
HUBERT_BASE = {"model_type": "hubert", "architectures": ["HubertModel"], "hidden_size": 768, "num_hidden_layers": 12}

SHRINK = 8  # every width of the small checkpoint is this much smaller than YuE's
SMALL_LAYERS = 2
SMALL_CODEBOOKS = 9
SMALL_HUBERT = {
    "model_type": "hubert",
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": SMALL_LAYERS,
    "num_attention_heads": 12,
    "conv_dim": [64] * 7,
}
POSITION = "semantic_model.encoder.pos_conv_embed.conv"
OTHER_SPELLING = {
    f"{POSITION}.parametrizations.weight.original0": f"{POSITION}.weight_g",
    f"{POSITION}.parametrizations.weight.original1": f"{POSITION}.weight_v",
}

Shapes = Mapping[str, Sequence[int]]


@pytest.fixture(scope="session")
def shapes(parity_dir: Path) -> Shapes:
    return json.loads((parity_dir / "xcodec_keys.json").read_text())


@pytest.fixture(scope="session")
def codec(shapes: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """The codec of YuE's own size whose outputs were recorded."""
    folder = tmp_path_factory.mktemp("codec")
    write(folder, fabricated(shapes), HUBERT_BASE)
    return Codec.load(folder, CPU)


@pytest.fixture
def small_tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    return fabricated(shrunk(shapes))


def fabricated(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: fabricate(f"xcodec.{OTHER_SPELLING.get(name, name)}", shape) for name, shape in shapes.items()}


def shrunk(shapes: Shapes) -> dict[str, Sequence[int]]:
    """The same network with narrower layers, and fewer of them; kernels and the size of the codebooks stay."""

    def is_kept(name: str) -> bool:
        number = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        limits = {"semantic_model.encoder.layers": SMALL_LAYERS, "quantizer": SMALL_CODEBOOKS}
        return all(number < limit for start, limit in limits.items() if name.startswith(start))

    def shape_of(name: str, shape: Sequence[int]) -> Sequence[int]:
        if name.endswith(("inited", "cluster_size")):
            return shape
        if "_codebook.embed" in name:
            return [shape[0], shape[1] // SHRINK]
        return [max(length // SHRINK, 1) if axis < 2 else length for axis, length in enumerate(shape)]

    return {name: shape_of(name, shape) for name, shape in shapes.items() if is_kept(name)}


def write(folder: Path, tensors: Mapping[str, torch.Tensor], semantic: Mapping[str, object]) -> None:
    for path in (CHECKPOINT, SEMANTIC_CONFIG):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({CHECKPOINT_KEY: dict(tensors)}, folder / CHECKPOINT)
    (folder / SEMANTIC_CONFIG).write_text(json.dumps(semantic))


def some_codes(n_frames: int, seed: int = 0) -> torch.Tensor:
    """Codes (8, T)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (N_CODEBOOKS, n_frames), generator=generator)


def recorded(parity_dir: Path, name: str) -> torch.Tensor:
    with np.load(parity_dir / "audio.npz") as numbers:
        array = numbers[name]
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "i" else array)


@pytest.mark.parametrize("track", TRACKS)
def test_a_track_decodes_to_the_recorded_waveform(codec: Codec, parity_dir: Path, track: str) -> None:
    codes, expected = recorded(parity_dir, f"{track}_codes"), recorded(parity_dir, f"{track}_16k")
    waveform = codec.decode(codes)
    assert waveform.dtype == torch.float32
    torch.testing.assert_close(waveform, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("track", TRACKS)
def test_reference_audio_encodes_to_the_recorded_codes(codec: Codec, parity_dir: Path, track: str) -> None:
    codes = codec.encode(recorded(parity_dir, f"{track}_prompt_16k"))
    assert torch.equal(codes, recorded(parity_dir, f"{track}_prompt_codes"))


def test_embedding_is_the_sum_of_eight_codebook_vectors(codec: Codec, shapes: Shapes) -> None:
    codes = some_codes(5)
    names = [f"quantizer.vq.layers.{k}._codebook.embed" for k in range(N_CODEBOOKS)]
    books = [fabricate(f"xcodec.{name}", shapes[name]) for name in names]
    expected = sum(book[row] for book, row in zip(books, codes, strict=True)).T
    assert expected.shape == (1_024, 5)
    torch.testing.assert_close(codec.embed(codes), expected, rtol=0, atol=1e-6)


def test_a_part_with_context_decodes_as_within_the_track(codec: Codec) -> None:
    codes = some_codes(2 * CONTEXT_FRAMES + 43)
    whole = codec.decode(codes)
    assert whole.shape == (CODEC_HOP * codes.shape[1],)
    first, end = CONTEXT_FRAMES + 20, CONTEXT_FRAMES + 40
    part = codec.decode(codes[:, first - CONTEXT_FRAMES : end + CONTEXT_FRAMES])
    kept = part[CONTEXT_FRAMES * CODEC_HOP : -CONTEXT_FRAMES * CODEC_HOP]
    torch.testing.assert_close(kept, whole[first * CODEC_HOP : end * CODEC_HOP], rtol=0, atol=2e-5)


def test_a_single_frame_is_decoded(codec: Codec) -> None:
    assert codec.decode(some_codes(1)).shape == (CODEC_HOP,)
    assert codec.embed(some_codes(1)).shape == (1_024, 1)


def test_a_single_frame_of_audio_is_encoded(codec: Codec) -> None:
    assert codec.encode(torch.zeros(CODEC_HOP)).shape == (1,)


@pytest.mark.parametrize("extra_samples", [1, 79, 80, 319])
def test_audio_of_no_whole_number_of_frames_is_encoded(codec: Codec, extra_samples: int) -> None:
    assert len(codec.encode(torch.rand(CODEC_RATE_HZ + extra_samples))) in (50, 51)


def test_audio_shorter_than_a_frame_is_refused(codec: Codec) -> None:
    with pytest.raises(InvalidField, match=r"319 samples.*at least 320 samples"):
        codec.encode(torch.zeros(CODEC_HOP - 1))


def test_a_small_checkpoint_loads_by_its_own_widths(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    write(tmp_path, small_tensors, SMALL_HUBERT)
    small = Codec.load(tmp_path, CPU)
    assert small.decode(some_codes(7)).shape == (7 * CODEC_HOP,)
    assert small.embed(some_codes(7)).shape == (1_024 // SHRINK, 7)
    assert small.encode(torch.rand(CODEC_RATE_HZ)).shape == (50,)


def test_both_spellings_of_the_positional_weight_norm_mean_the_same(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor]
) -> None:
    waveform = torch.rand(CODEC_RATE_HZ, generator=torch.Generator().manual_seed(1))
    spellings = (small_tensors, {OTHER_SPELLING.get(name, name): value for name, value in small_tensors.items()})
    assert spellings[0].keys() != spellings[1].keys()
    codes = []
    for tensors in spellings:
        write(tmp_path, tensors, SMALL_HUBERT)
        codes.append(Codec.load(tmp_path, CPU).encode(waveform))
    assert torch.equal(*codes)


def test_half_precision_weights_are_used_in_float32(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    write(tmp_path, {name: value.half() for name, value in small_tensors.items()}, SMALL_HUBERT)
    assert Codec.load(tmp_path, CPU).decode(some_codes(1)).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.2.block.1.block.1.bias",
        "encoder.block.6.weight_v",
        "decoder_2.model.3.block.0.alpha",
        "decoder_semantic.conv_blocks.1.res_units.0.conv1.conv.weight",
        "encoder_semantic.conv_blocks.0.res_units.1.conv2.weight",
        "quantizer.vq.layers.3._codebook.embed_avg",
        "semantic_model.encoder.layers.1.attention.q_proj.bias",
        "fc_prior.weight",
        "fc_post2.bias",
    ],
)
def test_a_missing_tensor_is_named_as_the_file_should_name_it(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor], name: str
) -> None:
    del small_tensors[name]
    write(tmp_path, small_tensors, SMALL_HUBERT)
    with pytest.raises(CheckpointError) as raised:
        Codec.load(tmp_path, CPU)
    assert f"{name} is missing" in raised.value.reason


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    small_tensors["fc_post1.bias"] = torch.zeros(95)
    write(tmp_path, small_tensors, SMALL_HUBERT)
    with pytest.raises(CheckpointError, match=r"fc_post1\.bias has the shape \(95,\), not \(96,\)"):
        Codec.load(tmp_path, CPU)


def test_an_unknown_tensor_is_named(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    write(tmp_path, small_tensors | {"discriminator.weight": torch.zeros(2)}, SMALL_HUBERT)
    with pytest.raises(CheckpointError, match=r"discriminator\.weight is unknown"):
        Codec.load(tmp_path, CPU)


def test_too_few_codebooks_are_refused(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    few = {name: value for name, value in small_tensors.items() if not name.startswith(("quantizer.vq.layers.7",))}
    write(tmp_path, few, SMALL_HUBERT)
    with pytest.raises(CheckpointError, match=r"quantizer\.vq\.layers\.7\._codebook\.embed is missing"):
        Codec.load(tmp_path, CPU)


def test_strides_that_make_another_frame_rate_are_refused(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor]
) -> None:
    name = "encoder.block.1.block.4.weight_v"
    small_tensors[name] = small_tensors[name][..., :12]
    write(tmp_path, small_tensors, SMALL_HUBERT)
    with pytest.raises(CheckpointError, match=r"encoder\.block.*\[6, 5, 4, 2\].*320"):
        Codec.load(tmp_path, CPU)


def test_a_gain_without_its_direction_is_refused(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    small_tensors["encoder.block.0.weight_g"] = torch.ones(3, 1, 1)
    write(tmp_path, small_tensors, SMALL_HUBERT)
    with pytest.raises(CheckpointError, match=r"encoder\.block\.0\.weight_g and .*weight_v do not belong together"):
        Codec.load(tmp_path, CPU)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing"),
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"hidden_size": "wide"}', "is not a HuBERT config"),
        ('{"num_hidden_layers": 1000000000}', "num_hidden_layers: got 1000000000"),
        ('{"conv_bias": true}', "conv_bias: got True; allowed: False"),
        ('{"conv_stride": [5, 2, 2, 2, 2, 2, 1]}', "160 samples per frame, allowed: 320"),
    ],
)
def test_a_broken_semantic_config_is_named(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor], content: str | None, reason: str
) -> None:
    write(tmp_path, small_tensors, SMALL_HUBERT)
    path = tmp_path / SEMANTIC_CONFIG
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=reason) as raised:
        Codec.load(tmp_path, CPU)
    assert raised.value.path == str(path)


def test_a_semantic_config_of_another_network_is_refused(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor]
) -> None:
    write(tmp_path, small_tensors, SMALL_HUBERT | {"num_hidden_layers": SMALL_LAYERS + 1})
    with pytest.raises(CheckpointError, match=r"semantic_model\.encoder\.layers\.2\..* is missing"):
        Codec.load(tmp_path, CPU)


def test_semantic_heads_that_do_not_divide_the_width_are_refused(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor]
) -> None:
    write(tmp_path, small_tensors, SMALL_HUBERT | {"num_attention_heads": 7})
    with pytest.raises(CheckpointError, match="do not form a valid network"):
        Codec.load(tmp_path, CPU)
