"""Files of weights: what is whole is loaded exactly, what is not is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from inference.errors import CheckpointError
from inference.models.checkpoints import load_llama, load_strict, read_pickle
from tests.support.language_models import plain_logits

CPU = torch.device("cpu")
GIT_LFS_STUB = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12450000000\n"
SHARD_1, SHARD_2, SHARD_3 = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
INDEX = "model.safetensors.index.json"


def small_llama(tied: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.to(torch.bfloat16)


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    small_llama().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same model in three files with an index."""
    small_llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, shard in enumerate((SHARD_1, SHARD_2, SHARD_3)):
        part = {name: tensors[name].clone() for name in names[number::3]}
        save_file(part, tmp_path / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def rewrite(file: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Add, replace or (None) take out tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


def refuse_llama(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_llama(folder, CPU, torch.float32)
    return str(caught.value)


def refuse_pickle(path: Path, key: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pickle(path, key)
    assert str(path) in str(caught.value)
    return caught.value.reason


# -- torch files


def test_pickle_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "plain.pth")
    torch.save({"codec_model": {"b": torch.ones(2)}, "step": 7}, tmp_path / "inner.pth")
    assert torch.equal(read_pickle(tmp_path / "plain.pth")["a"], torch.arange(3))
    assert torch.equal(read_pickle(tmp_path / "inner.pth", "codec_model")["b"], torch.ones(2))


def test_pickle_of_the_old_format_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickle(tmp_path / "old.pth")["a"], torch.arange(3))


def test_missing_pickle_folder_and_empty_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    assert refuse_pickle(tmp_path / "nothing.pth") == "is missing"
    assert refuse_pickle(tmp_path) == "is a folder, not a file"
    assert refuse_pickle(tmp_path / "empty.pth") == "is empty"


def test_git_lfs_pointer_is_told_from_weights(tmp_path: Path) -> None:
    (tmp_path / "stub.pth").write_text(GIT_LFS_STUB)
    reason = refuse_pickle(tmp_path / "stub.pth")
    assert "Git LFS pointer" in reason and "git lfs pull" in reason


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kept_share", [0.02, 0.5, 0.99])
def test_pickle_cut_short_is_refused(tmp_path: Path, new_format: bool, kept_share: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.randn(5_000)}, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept_share * len(content))])
    assert refuse_pickle(path)


class Intruder:
    """Runs code where a pickle is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"a": Intruder(trace)}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"a": Intruder(trace)}, protocol=2))
    for name in ("zip.pth", "raw.pth"):
        assert "not plain tensors" in refuse_pickle(tmp_path / name)
    assert not trace.exists()


def test_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    assert refuse_pickle(tmp_path / "page.pth")


def test_missing_key_is_named_with_what_is_there(tmp_path: Path) -> None:
    torch.save({"model": {}, "step": 1}, tmp_path / "other.pth")
    assert (
        refuse_pickle(tmp_path / "other.pth", "codec_model") == "has no entry 'codec_model'; it holds 'model', 'step'"
    )


def test_values_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "step": 3}, tmp_path / "mixed.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    assert refuse_pickle(tmp_path / "mixed.pth") == "entry 'step' is a int, not a tensor"
    assert refuse_pickle(tmp_path / "list.pth") == "holds a list, not a dictionary of tensors"


# -- strict loading


def test_strict_loading_fills_a_module_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    tensors = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    load_strict(module, tensors, Path("linear.pth"))
    assert torch.equal(module(torch.ones(2)), tensors["weight"].sum(1) + tensors["bias"])


def test_one_error_names_every_difference() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tensors = {"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(3), "2.bias": torch.zeros(4)}
    with pytest.raises(CheckpointError) as caught:
        load_strict(module, tensors, Path("net.pth"))
    assert caught.value.path == "net.pth"
    assert caught.value.reason == (
        "2 missing: 1.weight (1, 3), 1.bias (1); 1 not of this network: 2.bias (4); "
        "1 misshapen: 0.weight is (2, 3), should be (3, 2)"
    )


def test_a_long_list_of_differences_is_counted() -> None:
    module = nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)])
    with pytest.raises(CheckpointError, match=r"10 missing: .* and 7 more"):
        load_strict(module, {}, Path("net.pth"))


# -- language models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["one_file", "sharded"])
def test_logits_equal_those_of_transformers(layout: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        ours = plain_logits(load_llama(folder, CPU, dtype), ids)
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)(ids).logits
    assert ours.dtype == dtype and torch.equal(ours, theirs)


def test_loaded_model_is_for_inference(one_file: Path) -> None:
    model = load_llama(one_file, CPU, torch.float32)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("stored_twice", [False, True])
def test_tied_embeddings_are_one_tensor(tmp_path: Path, stored_twice: bool) -> None:
    small_llama(tied=True).save_pretrained(tmp_path)
    if stored_twice:
        embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
        rewrite(tmp_path / "model.safetensors", {"lm_head.weight": embedding.clone()})
    model = load_llama(tmp_path, CPU, torch.float32)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(torch.arange(9)[None]).logits
        assert torch.equal(plain_logits(model, torch.arange(9)[None]), theirs)


def test_tied_embeddings_that_differ_are_refused(tmp_path: Path) -> None:
    small_llama(tied=True).save_pretrained(tmp_path)
    rewrite(tmp_path / "model.safetensors", {"lm_head.weight": torch.zeros(96, 32)})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refuse_llama(tmp_path)


def test_legacy_rotary_buffers_are_ignored(one_file: Path) -> None:
    ids = torch.arange(9)[None]
    before = plain_logits(load_llama(one_file, CPU, torch.float32), ids)
    rewrite(one_file / "model.safetensors", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    assert torch.equal(plain_logits(load_llama(one_file, CPU, torch.float32), ids), before)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        ('{"model_type": "mistral"}', "model_type is 'mistral'"),
        ("{}", "model_type is None"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "is not a valid LLaMA configuration"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "is not a valid LLaMA configuration"),
        ('{"model_type": "llama", "hidden_size": 1' + "0" * 400 + "}", "got a very large number"),
        ('{"model_type": "llama", "rope_parameters": "default"}', "is not a valid LLaMA configuration"),
        ('{"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}', "rope_type: got 'yarn'; allowed: 'default'"),
        ('{"model_type": "llama", "partial_rotary_factor": 0.5}', "partial_rotary_factor: got 0.5; allowed: 1.0"),
        ("[" * 200_000, "is not JSON"),
        (GIT_LFS_STUB, "Git LFS pointer"),
    ],
)
def test_config_that_is_no_llama_is_refused(one_file: Path, content: str, reason: str) -> None:
    (one_file / "config.json").write_text(content)
    message = refuse_llama(one_file)
    assert "config.json" in message and reason in message


def test_missing_config_and_missing_weights_are_named(one_file: Path) -> None:
    (one_file / "model.safetensors").unlink()
    assert refuse_llama(one_file) == f"{one_file / 'model.safetensors'}: is missing"
    (one_file / "config.json").unlink()
    assert refuse_llama(one_file) == f"{one_file / 'config.json'}: is missing"


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARD_2).unlink()
    assert refuse_llama(sharded) == f"{sharded / SHARD_2}: is missing"


@pytest.mark.parametrize("kept_bytes", [4, 100, 5_000])
def test_shard_cut_short_is_named(sharded: Path, kept_bytes: int) -> None:
    content = (sharded / SHARD_3).read_bytes()
    (sharded / SHARD_3).write_bytes(content[:kept_bytes])
    message = refuse_llama(sharded)
    assert SHARD_3 in message and "truncated" in message


def test_shard_that_is_a_git_lfs_pointer_is_named(sharded: Path) -> None:
    (sharded / SHARD_1).write_text(GIT_LFS_STUB)
    message = refuse_llama(sharded)
    assert SHARD_1 in message and "git lfs pull" in message


def test_index_that_disagrees_with_a_shard_is_refused(sharded: Path) -> None:
    name = next(iter(load_file(sharded / SHARD_2)))
    rewrite(sharded / SHARD_2, {name: None})
    message = refuse_llama(sharded)
    assert SHARD_2 in message and f"does not hold what {INDEX} names: {name}" in message


def test_tensor_that_the_index_does_not_name_is_refused(sharded: Path) -> None:
    rewrite(sharded / SHARD_2, {"surplus": torch.zeros(1)})
    message = refuse_llama(sharded)
    assert SHARD_2 in message and "surplus" in message


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{}", "has no weight_map"),
        ("nonsense", "is not JSON"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "not a file in the same folder"),
        ('{"weight_map": {"a": 3}}', "not a file in the same folder"),
        ('{"weight_map": {"a": "\\u0000"}}', "not a file in the same folder"),
    ],
)
def test_broken_index_is_refused(sharded: Path, index: str, reason: str) -> None:
    (sharded / INDEX).write_text(index)
    message = refuse_llama(sharded)
    assert INDEX in message and reason in message


def test_missing_extra_and_misshapen_tensors_are_named_at_once(one_file: Path) -> None:
    change = {"model.norm.weight": None, "surplus": torch.zeros(2), "lm_head.weight": torch.zeros(96, 31)}
    rewrite(one_file / "model.safetensors", change)
    message = refuse_llama(one_file)
    assert "1 missing: model.norm.weight (32)" in message
    assert "1 not of this network: surplus (2)" in message
    assert "lm_head.weight is (96, 31), should be (96, 32)" in message


def test_integer_weights_are_refused(one_file: Path) -> None:
    rewrite(one_file / "model.safetensors", {"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    message = refuse_llama(one_file)
    assert "model.norm.weight (I8)" in message
