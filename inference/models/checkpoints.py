"""Reads files of weights and proves that they are whole and belong to the network that takes them.

It does not know where the files came from, nor what the networks compute.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from inference.errors import CheckpointError
from inference.models import quantization
from inference.options import Quantization
from inference.weights.checksums import GIT_LFS_POINTER

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

ZIP_MAGIC = b"PK\x03\x04"  # torch's format since 1.6, the only one that can be memory-mapped
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # safetensors' names of the types that weights may have
NAMED_IN_AN_ERROR = 3

TIED_WEIGHT = "lm_head.weight"
EMBEDDING_WEIGHT = "model.embed_tokens.weight"
LEGACY_BUFFER = "rotary_emb.inv_freq"  # old LLaMA files hold these; they follow from the config

ProgressCallback = Callable[[int, int], None]  # bytes done, bytes in total
Shapes = Mapping[str, Sequence[int]]


def read_pickle(path: Path, key: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a torch file, or of the dictionary under `key` in it. No code in the file is run."""
    start = _first_bytes(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(ZIP_MAGIC))
    except UnpicklingError as error:
        raise CheckpointError(path, "holds objects that are not plain tensors, or is no torch file") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(path, f"is damaged or cut short ({_first_line(error)})") from error
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise CheckpointError(path, f"has no entry {key!r}; it holds {_listed(content)}")
        content = content[key]
    return _only_tensors(content, path)


def load_strict(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Make `tensors`, read from `path`, the weights of `module`, which may be on the meta device.

    Buffers that a state dict leaves out are the caller's.
    """
    _require_equal_shapes(_shapes(module.state_dict()), _shapes(tensors), path)
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def shape_of(tensors: Mapping[str, torch.Tensor], name: str, path: Path, n_axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there and have `n_axes` axes. Raises CheckpointError."""
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
    on_progress: ProgressCallback | None = None,
) -> LlamaForCausalLM:
    """The language model in `folder`, for inference. It is never whole in RAM on its way to a GPU.

    With `quantize` "int8" its decoder's linear layers are `Int8Linear`s; embedding, norms and output layer stay plain.
    """
    model = _empty_llama(folder / CONFIG)
    config = model.config
    shards, listing = _shards(folder)
    expected = _shapes(model.state_dict())
    found = {name: shape for path, names in shards.items() for name, shape in _checked_header(path, names).items()}
    if config.tie_word_embeddings and TIED_WEIGHT not in found:
        del expected[TIED_WEIGHT]
    _require_equal_shapes(expected, found, listing)
    # Only now, because the files hold the plain network.
    layers = quantization.make_room(model.model) if quantize == "int8" else []
    tensors = _read_tensors(shards, device, dtype, {f"model.{layer}" for layer in layers}, on_progress)
    if config.tie_word_embeddings:
        _tie(tensors, listing)
    load_strict(model, tensors, listing)
    model.tie_weights()
    # Not in the files, and empty on the meta device; made on the CPU, as everywhere, so that it is the same everywhere.
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    assert not any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers()))
    return model.eval().requires_grad_(False)


def _first_bytes(path: Path) -> bytes:
    """The start of a file of weights; a CheckpointError where there is none, or a stub in its place."""
    if path.is_dir():
        raise CheckpointError(path, "is a folder, not a file")
    try:
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS_POINTER))
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error
    if not start:
        raise CheckpointError(path, "is empty")
    if start == GIT_LFS_POINTER:
        reason = "is a git-lfs pointer, not the weights; run `git lfs pull` in its repository or download it again"
        raise CheckpointError(path, reason)
    return start


def _only_tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"holds a {type(content).__name__}, not a dictionary of tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(path, f"entry {name!r} is a {type(value).__name__}, not a tensor")
    return dict(content)


def _read_json(path: Path) -> dict[str, Any]:
    _first_bytes(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(path, f"is not JSON ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f"holds a {type(content).__name__}, not a JSON object")
    return content


def _empty_llama(path: Path) -> LlamaForCausalLM:
    """The network that a config.json describes, on the meta device."""
    content = _read_json(path)
    if content.get("model_type") != "llama":
        raise CheckpointError(path, f"model_type is {content.get('model_type')!r}, allowed: 'llama'")
    try:
        config = LlamaConfig.from_dict(content, attn_implementation="sdpa")
        with torch.device("meta"):
            return LlamaForCausalLM(config)
    except Exception as error:  # transformers checks little: a bad number surfaces as whatever it breaks
        raise CheckpointError(path, f"is no valid LLaMA configuration ({_first_line(error)})") from error


def _shards(folder: Path) -> tuple[dict[Path, set[str] | None], Path]:
    """Each file of weights with the names that it should hold (None: not told), and the file that lists them."""
    single, index = folder / SINGLE_FILE, folder / INDEX
    if single.exists() or not index.exists():
        return {single: None}, single
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index, "has no weight_map")
    shards: dict[Path, set[str] | None] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(index, f"weight_map puts {tensor} into {file!r}, which is no file beside it")
        names = shards.setdefault(folder / file, set())
        assert names is not None
        names.add(tensor)
    return shards, index


def _checked_header(path: Path, names: set[str] | None) -> dict[str, Sequence[int]]:
    """The tensors' shapes in one file, which must be those that the index names, in floating point."""
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
        wrong = [f"{name} ({part.get_dtype()})" for name, part in slices.items() if part.get_dtype() not in FLOAT_BYTES]
        if wrong:
            raise CheckpointError(path, f"not of a type in {', '.join(FLOAT_BYTES)}: {_few(wrong)}")
        return {name: part.get_shape() for name, part in slices.items()}


def _read_tensors(
    files: Mapping[Path, object],
    device: torch.device,
    dtype: torch.dtype,
    quantized_layers: Collection[str],
    on_progress: ProgressCallback | None,
) -> dict[str, torch.Tensor]:
    """Every tensor on `device` in `dtype`, or in int8; only one at a time exists in the file's own type."""
    done_bytes, total_bytes = 0, sum(_weight_bytes(path) for path in files)
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        with _open(path, str(device)) as file:
            for name in _names(file):
                tensor = file.get_tensor(name)
                done_bytes += tensor.nbytes
                layer, _, kind = name.rpartition(".")
                if kind == "weight" and layer in quantized_layers:
                    tensors[name], tensors[f"{layer}.scale"] = quantization.quantize(tensor, dtype)
                else:
                    tensors[name] = tensor.to(dtype)
                del tensor  # before the next one is read
                if on_progress is not None:
                    on_progress(done_bytes, total_bytes)
    return tensors


def _weight_bytes(path: Path) -> int:
    with _open(path, "cpu") as file:
        slices = [file.get_slice(name) for name in _names(file)]
    return sum(math.prod(part.get_shape()) * FLOAT_BYTES[part.get_dtype()] for part in slices)


def _open(path: Path, device: str) -> AbstractContextManager[Any]:
    _first_bytes(path)
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"is damaged or cut short ({_first_line(error)})") from error


def _names(file: Any) -> list[str]:
    return [name for name in file.keys() if LEGACY_BUFFER not in name]  # noqa: SIM118 (it is no dictionary)


def _tie(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Let the output layer be the embedding; a file may hold it twice, but not two different ones."""
    embedding = tensors[EMBEDDING_WEIGHT]
    if not torch.equal(tensors.setdefault(TIED_WEIGHT, embedding), embedding):
        raise CheckpointError(path, f"{TIED_WEIGHT} differs from {EMBEDDING_WEIGHT}, but {CONFIG} ties them")
    tensors[TIED_WEIGHT] = embedding


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Sequence[int]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_equal_shapes(expected: Shapes, found: Shapes, path: Path) -> None:
    """Raise one CheckpointError that names what is missing, what is too much, and what has another shape."""
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
    rest = len(names) - NAMED_IN_AN_ERROR
    return ", ".join(names[:NAMED_IN_AN_ERROR]) + (f" and {rest} more" if rest > 0 else "")


def _listed(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return _few([repr(name) for name in content]) or "nothing"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
