"""int8 weights are close to the plain ones and half their size; a song is the same alone and in a batch."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inference.catalog import ModelFiles
from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Limits, Scheduler
from inference.models import quantization
from inference.models.checkpoints import load_llama
from inference.models.llama_network import LlamaNetwork
from inference.models.quantization import Int8Linear, quantize
from inference.options import EngineOptions
from inference.song import Song
from inference.tiny.checkpoints import fabricate
from inference.tiny.layers import llama_shapes
from tests.support.language_models import plain_logits, seeded
from tests.support.songs import request

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def plain_layer(bias: bool = False) -> nn.Linear:
    """A layer whose output channels are of very different sizes."""
    layer = nn.Linear(48, 32, bias=bias).requires_grad_(False)
    layer.weight.copy_(torch.randn(32, 48, generator=seeded(1)) * torch.logspace(-2, 1, 32)[:, None])
    if bias:
        layer.bias.copy_(torch.randn(32, generator=seeded(2)))
    return layer


def quantized(plain: nn.Linear) -> Int8Linear:
    layer = Int8Linear(plain)
    layer.weight, layer.scale = quantize(plain.weight, plain.weight.dtype)
    return layer


def loaded(
    folder: Path, dtype: torch.dtype = torch.float32, quantize: quantization.Quantization = "int8"
) -> LlamaNetwork:
    return load_llama(folder, CPU, dtype, quantize)


def held_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


@pytest.fixture(scope="module")
def random_files(tiny_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """The tiny model with random weights in stage 1: int8 represents those of its tune exactly."""
    folder = tmp_path_factory.mktemp("random") / "stage1"
    shutil.copytree(tiny_files.stage1, folder, ignore=shutil.ignore_patterns("model*"))
    shapes = llama_shapes(json.loads((folder / "config.json").read_text()))
    tensors = {name: fabricate(f"stage1.{name}", shape).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return replace(tiny_files, stage1=folder)


@pytest.fixture(scope="module")
def int8_pipeline(random_files: ModelFiles) -> Pipeline:
    return Pipeline.load(random_files, EngineOptions("cpu", "float32", "int8"))


# -- one layer


@pytest.mark.parametrize("kept_in", FLOATS)
@pytest.mark.parametrize("read_in", FLOATS)
def test_every_weight_is_within_half_a_step_of_its_channel(read_in: torch.dtype, kept_in: torch.dtype) -> None:
    weight = plain_layer().weight.to(read_in)
    whole, scale = quantize(weight, kept_in)
    assert (whole.dtype, scale.dtype, scale.shape) == (torch.int8, kept_in, (32, 1))
    errors = (whole.double() * scale.double() - weight.double()).abs()
    assert (errors <= scale.double() * 0.5001).all()
    assert (whole.abs().amax(dim=1) == 127).all()  # each channel uses the whole range


def test_a_channel_of_zeros_stays_one() -> None:
    weight = plain_layer().weight.clone()
    weight[3] = 0
    whole, scale = quantize(weight, torch.float32)
    assert not whole[3].any() and torch.isfinite(whole * scale).all()


def test_a_weight_that_is_no_number_is_not_hidden() -> None:
    for broken in (float("nan"), float("inf")):
        plain = plain_layer()
        plain.weight[5, 7] = broken
        assert torch.isnan(quantized(plain)(torch.ones(1, 48))[0, 5])


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_nearly_what_the_plain_one_does(bias: bool) -> None:
    plain = plain_layer(bias)
    x = torch.randn(3, 5, 48, generator=seeded(3))
    expected = plain(x)
    assert quantized(plain)(x).shape == expected.shape
    error = (quantized(plain)(x) - expected) / expected.std(dim=(0, 1))
    assert 0 < error.square().mean().sqrt() < 0.02


def test_large_sums_do_not_overflow_in_float16() -> None:
    plain = nn.Linear(1_024, 2, bias=False).half().requires_grad_(False)
    plain.weight.fill_(0.1)
    x = torch.full((1, 1_024), 100.0, dtype=torch.float16)
    torch.testing.assert_close(quantized(plain)(x), plain(x), rtol=5e-3, atol=0)


# -- a network


def test_the_decoder_is_quantized_and_nothing_else(tiny_files: ModelFiles) -> None:
    plain, small = loaded(tiny_files.stage1, quantize="none"), loaded(tiny_files.stage1)
    for name, layer in plain.named_modules():
        quantizable = isinstance(layer, nn.Linear) and name != "lm_head"
        assert isinstance(small.get_submodule(name), Int8Linear) == quantizable, name
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name
    assert quantization.quantization_of(small) == "int8" and quantization.quantization_of(plain) == "none"


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_loaded_is_what_quantize_makes_of_the_files_weights(tiny_files: ModelFiles, dtype: torch.dtype) -> None:
    plain, small = loaded(tiny_files.stage1, torch.bfloat16, "none"), loaded(tiny_files.stage1, dtype)
    name = "model.layers.1.mlp.down_proj"
    whole, scale = quantize(plain.get_submodule(name).weight, dtype)
    assert torch.equal(small.get_submodule(name).weight, whole)
    assert torch.equal(small.get_submodule(name).scale, scale)


def test_a_decoder_layer_takes_about_half_the_bytes_of_16_bits(tiny_files: ModelFiles) -> None:
    plain = loaded(tiny_files.stage1, torch.bfloat16, "none").get_submodule("model.layers.0")
    small = loaded(tiny_files.stage1, torch.bfloat16).get_submodule("model.layers.0")
    assert 0.5 < held_bytes(small) / held_bytes(plain) < 0.53


def test_logits_are_near_the_plain_ones(random_files: ModelFiles) -> None:
    ids = torch.randint(32_000, (2, 40), generator=seeded(4))
    with torch.inference_mode():
        expected = plain_logits(loaded(random_files.stage1, quantize="none"), ids)
        logits = plain_logits(loaded(random_files.stage1), ids)
    assert 0 < (logits - expected).square().mean().sqrt() / expected.std() < 0.03


def test_the_plain_weights_are_dropped_one_by_one(tiny_files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a card of 24 GB needs: never the plain network and the quantized one at once."""
    shape = loaded(tiny_files.stage1).get_submodule("model.layers.0.mlp.down_proj").weight.shape

    def held_plain() -> int:
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and not each.is_meta]
        return sum(tensor.shape == shape and tensor.is_floating_point() for tensor in tensors)

    gc.collect()
    before = held_plain()
    seen: list[int] = []

    def watched(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(held_plain() - before - (weight.shape == shape))
        return quantize(weight, dtype)

    monkeypatch.setattr(quantization, "quantize", watched)
    load_llama(tiny_files.stage1, CPU, torch.bfloat16, "int8")
    assert len(seen) > 10 and max(seen) == 0
    plain = loaded(tiny_files.stage1, torch.bfloat16, "none")
    assert held_plain() - before == len(plain.model.layers)  # so they would have been seen


def test_a_decoder_layer_compiles_whole(tiny_files: ModelFiles) -> None:
    model = loaded(tiny_files.stage1)
    layer = model.model.layers[0]
    x = torch.randn(2, 8, model.config.hidden_size, generator=seeded(5))
    with torch.inference_mode():
        angles = model.model.rotary(torch.arange(8)[None], x.dtype)

        def both_halves(x: torch.Tensor) -> torch.Tensor:
            return layer.finish(x, layer.attention_inputs(x, angles)[0].transpose(1, 2))

        compiled = torch.compile(both_halves, fullgraph=True, backend="aot_eager")  # which needs no C++ compiler
        torch.testing.assert_close(compiled(x), both_halves(x), rtol=1e-4, atol=1e-4)


# -- a whole model


def test_stage_2_is_left_as_it_is(int8_pipeline: Pipeline, tiny_pipeline: Pipeline) -> None:
    assert quantization.quantization_of(int8_pipeline.stage1.model) == "int8"
    ours, plain = (p.stage2.model.state_dict() for p in (int8_pipeline, tiny_pipeline))
    assert ours.keys() == plain.keys() and all(torch.equal(ours[name], plain[name]) for name in plain)


def test_the_pipeline_tells_how_it_is_loaded(int8_pipeline: Pipeline, tiny_pipeline: Pipeline) -> None:
    assert int8_pipeline.info()["quantization"] == "int8"
    assert tiny_pipeline.info()["quantization"] == "none"
    assert int8_pipeline.info()["dtype"] == "float32"


def test_songs_in_company_are_each_as_if_alone(int8_pipeline: Pipeline, random_files: ModelFiles) -> None:
    songs = [
        request(seed=seed, segments=1, guidance_scale=(guidance, 1.2))
        for seed, guidance in ((1, 1.5), (2, 1.0), (3, 1.5))
    ]
    alone = [Scheduler(int8_pipeline, Limits(1, 1)).generate(song).audio for song in songs]
    engine = Scheduler(int8_pipeline, Limits(songs=3, rows=7))
    for name, song in enumerate(songs):
        engine.add(str(name), song, lambda progress: None)
    together: dict[str, Song] = {}
    while not engine.idle:
        for outcome in engine.step():
            assert isinstance(outcome.result, Song), outcome.result
            together[outcome.song_id] = outcome.result
    assert [together[str(name)].audio for name in range(3)] == alone
    plain = Scheduler(Pipeline.load(random_files, EngineOptions("cpu", "float32")), Limits(1, 1))
    assert plain.generate(songs[0]).audio != alone[0]  # so int8 was used
