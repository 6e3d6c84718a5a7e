"""Loads weights, and verifies that each file is complete and belongs to the network that loads it.

Independent of where the files come from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from inference.errors import CheckpointError, first_line
from inference.models import quantization
from inference.models.llama_network import LlamaConfig, LlamaNetwork
from inference.options import Quantization
from inference.weights.files import first_bytes, read_json

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[\w.-]{1,200}")

ZIP_MAGIC = b"PK\x03\x04"  # torch's format since 1.6, the only one that can be memory-mapped
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")  # the allowed types of weights, by safetensors' names
MAX_NAMES_IN_ERROR = 3

TIED_WEIGHT = "lm_head.weight"
EMBEDDING_WEIGHT = "model.embed_tokens.weight"
LEGACY_BUFFER = "rotary_emb.inv_freq"  # in old LLaMA files; it is computed from the config

Shapes = Mapping[str, Sequence[int]]


def read_pickle(path: Path, key: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a torch file, or of the dictionary under `key` in it. Runs no code from the file."""
    start = first_bytes(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(ZIP_MAGIC))
    except UnpicklingError as error:
        raise CheckpointError(path, "holds objects that are not plain tensors, or is not a torch file") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(path, f"is damaged or truncated ({first_line(error)})") from error
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise CheckpointError(path, f"has no entry {key!r}; it holds {_listed(content)}")
        content = content[key]
    return _only_tensors(content, path)


def load_strict(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Assign `tensors`, read from `path`, to `module`, which may be on the meta device. Raises CheckpointError.

    The caller sets buffers outside the state dict.
    """
    _require_equal_shapes(_shapes(module.state_dict()), _shapes(tensors), path)
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def shape_of(tensors: Mapping[str, torch.Tensor], name: str, path: Path, n_axes: int) -> tuple[int, ...]:
    """The shape of a required tensor with `n_axes` axes. Raises CheckpointError."""
    if name not in tensors:
        raise CheckpointError(path, f"{name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != n_axes:
        raise CheckpointError(path, f"{name} has the shape {shape}, allowed: {n_axes} axes")
    return shape


def load_llama(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantization = "none",
) -> LlamaNetwork:
    """The language model in `folder`, for inference. A GPU gets it tensor by tensor, so it need not fit into RAM.

    With `quantize` "int8", the linear layers of the decoder are `Int8Linear`s; embedding, norms and output layer are
    not quantized. Raises CheckpointError.
    """
    model = _empty_llama(folder / CONFIG)
    config = model.config
    shards, listing = _shards(folder)
    expected = _shapes(model.state_dict())
    found = {name: shape for path, names in shards.items() for name, shape in _checked_header(path, names).items()}
    if config.tie_word_embeddings and TIED_WEIGHT not in found:
        del expected[TIED_WEIGHT]
    _require_equal_shapes(expected, found, listing)
    # After the comparison, because the files are not quantized.
    layers = quantization.replace_linears(model.model) if quantize == "int8" else []
    tensors = _read_tensors(shards, device, dtype, {f"model.{layer}" for layer in layers})
    if config.tie_word_embeddings:
        _tie(tensors, listing)
    load_strict(model, tensors, listing)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary.fill(device)
    assert not any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers()))
    return model.eval().requires_grad_(False)


def _only_tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"holds a {type(content).__name__}, not a dictionary of tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(path, f"entry {name!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
            raise CheckpointError(path, f"{name} is no plain tensor of real numbers")
    return dict(content)


def _empty_llama(path: Path) -> LlamaNetwork:
    """The network that a config.json describes, on the meta device."""
    content = read_json(path)
    if content.get("model_type") != "llama":
        raise CheckpointError(path, f"model_type is {content.get('model_type')!r}, allowed: 'llama'")
    try:
        config = LlamaConfig.from_json(content)
    except ValueError as error:
        raise CheckpointError(path, f"is not a valid LLaMA configuration ({error})") from error
    with torch.device("meta"):
        return LlamaNetwork(config)


def _shards(folder: Path) -> tuple[dict[Path, set[str] | None], Path]:
    """Each file of weights with the tensor names it should hold (None: unknown), and the file that lists them."""
    single, index = folder / SINGLE_FILE, folder / INDEX
    if single.exists() or not index.exists():
        return {single: None}, single
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index, "has no weight_map")
    shards: dict[Path, set[str] | None] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not SHARD_NAME.fullmatch(file):
            raise CheckpointError(
                index, f"weight_map puts {tensor} into {file!r}, which is not a file in the same folder"
            )
        names = shards.setdefault(folder / file, set())
        assert names is not None
        names.add(tensor)
    return shards, index


def _checked_header(path: Path, names: set[str] | None) -> dict[str, Sequence[int]]:
    """The shapes of the tensors in one file, which must be those of the index and of float types."""
    with _open(path, "cpu") as file:
        held = _names(file)
        if names is not None and names != set(held):
            named_only, held_only = sorted(names - set(held)), sorted(set(held) - names)
            absent = [name for name in named_only if LEGACY_BUFFER not in name]
            if absent:
                raise CheckpointError(path, f"does not hold what {INDEX} names: {_few(absent)}")
            if held_only:
                raise CheckpointError(path, f"holds what {INDEX} does not name: {_few(held_only)}")
        slices = {name: file.get_slice(name) for name in held}
        wrong = [f"{name} ({part.get_dtype()})" for name, part in slices.items() if part.get_dtype() not in FLOAT_TYPES]
        if wrong:
            raise CheckpointError(path, f"type not in {', '.join(FLOAT_TYPES)}: {_few(wrong)}")
        return {name: part.get_shape() for name, part in slices.items()}


def _read_tensors(
    files: Mapping[Path, object],
    device: torch.device,
    dtype: torch.dtype,
    quantized_layers: Collection[str],
) -> dict[str, torch.Tensor]:
    """Every tensor on `device`, in `dtype` or int8. Only one at a time is in memory in the type of the file."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        with _open(path, str(device)) as file:
            for name in _names(file):
                tensor = file.get_tensor(name)
                layer, _, kind = name.rpartition(".")
                if kind == "weight" and layer in quantized_layers:
                    tensors[name], tensors[f"{layer}.scale"] = quantization.quantize(tensor, dtype)
                else:
                    tensors[name] = tensor.to(dtype)
                del tensor  # frees its memory before the next one is read
    return tensors


def _open(path: Path, device: str) -> AbstractContextManager[Any]:
    first_bytes(path)
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"is damaged or truncated ({first_line(error)})") from error


def _names(file: Any) -> list[str]:
    return [name for name in file.keys() if LEGACY_BUFFER not in name]  # noqa: SIM118 (it is not a dictionary)


def _tie(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Use the embedding as the output layer. A file may hold both tensors only if they are equal."""
    embedding = tensors[EMBEDDING_WEIGHT]
    if not torch.equal(tensors.setdefault(TIED_WEIGHT, embedding), embedding):
        raise CheckpointError(path, f"{TIED_WEIGHT} differs from {EMBEDDING_WEIGHT}, but {CONFIG} ties them")
    tensors[TIED_WEIGHT] = embedding


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Sequence[int]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_equal_shapes(expected: Shapes, found: Shapes, path: Path) -> None:
    """Raise one CheckpointError that names the missing, the extra and the misshapen tensors."""
    missing = [f"{name} {_shape(expected[name])}" for name in expected if name not in found]
    extra = [f"{name} {_shape(found[name])}" for name in found if name not in expected]
    misshapen = [
        f"{name} is {_shape(found[name])}, should be {_shape(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    groups = {"missing": missing, "not of this network": extra, "misshapen": misshapen}
    reasons = [f"{len(names)} {kind}: {_few(names)}" for kind, names in groups.items() if names]
    if reasons:
        raise CheckpointError(path, "; ".join(reasons))


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _few(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES_IN_ERROR
    return ", ".join(names[:MAX_NAMES_IN_ERROR]) + (f" and {rest} more" if rest > 0 else "")


def _listed(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return _few([repr(name) for name in content]) or "nothing"
