"""X-Codec: decodes codes to 16 kHz waveforms and to the vocoder's embeddings, and encodes waveforms to codes.

Independent of token ids, tracks and audio files. A checkpoint is verified whole when it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inference.codec_layout import (
    HUBERT_KERNELS,
    HUBERT_STRIDES,
    POSITION_GROUPS,
    POSITION_KERNEL,
    RATIOS,
    CodecWidths,
    codec_shapes,
)
from inference.errors import CheckpointError, InvalidField
from inference.models import codec_decoder
from inference.models.checkpoints import load_strict, read_pickle, shape_of
from inference.models.codec_decoder import CodecDecoder
from inference.models.codec_encoder import CodecEncoder
from inference.vocabulary import CODEBOOK_SIZE, CODEC_HOP, CODEC_RATE_HZ, N_CODEBOOKS
from inference.weights.files import read_json

CHECKPOINT = Path("final_ckpt/ckpt_00360000.pth")
CHECKPOINT_KEY = "codec_model"
SEMANTIC_CONFIG = Path("semantic_ckpts/hf_1_325000/config.json")
EMBED = "quantizer.vq.layers.{}._codebook.embed"

MAX_FAULTS_IN_ERROR = 3
LARGEST_SIZE = 2**16  # of any part of a HuBERT

Tensors = dict[str, torch.Tensor]


class Codec:
    """YuE's codec in float32."""

    def __init__(self, codebooks: torch.Tensor, decoder: CodecDecoder, encoder: CodecEncoder) -> None:
        self._codebooks, self._decoder, self._encoder = codebooks, decoder, encoder

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Codec:
        """Load the codec from `folder`, laid out like its repository. Raises CheckpointError.

        On a CPU the encoder is built when reference audio is first encoded.
        """
        path = folder / CHECKPOINT
        tensors = _plain_weights(read_pickle(path, CHECKPOINT_KEY), path)
        semantic = _semantic_config(folder / SEMANTIC_CONFIG)
        widths = _widths(tensors, semantic, path)
        _require_layout(tensors, widths, path)
        with torch.device("meta"):
            decoder = CodecDecoder(widths)
        load_strict(decoder, {name: tensors[name] for name in decoder.state_dict()}, path)
        codebooks = torch.stack([tensors[EMBED.format(codebook)] for codebook in range(N_CODEBOOKS)])
        encoder = CodecEncoder(tensors, widths, semantic, device)
        if device.type != "cpu":
            encoder.prepare()
        return cls(codebooks.to(device), decoder.to(device).eval().requires_grad_(False), encoder)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (8, T) -> waveform (320 * T,) at 16 kHz, float32, on the codec's device."""
        return self._decoder(self._embedded(codes))

    @torch.inference_mode()
    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (8, T) -> embeddings (D, T), the sums of their codebook vectors: the vocoder's input."""
        return self._embedded(codes).T

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """Mono waveform (samples,) at 16 kHz -> the codes of codebook 0 (T,), at least samples // 320 of them."""
        assert waveform.ndim == 1, f"a mono waveform has one dimension, not {waveform.ndim}"
        if len(waveform) < CODEC_HOP:
            allowed = f"at least {CODEC_HOP} samples at {CODEC_RATE_HZ} Hz, one frame"
            raise InvalidField("reference.audio", f"{len(waveform)} samples", allowed)
        return self._encoder.encode(waveform)

    def _embedded(self, codes: torch.Tensor) -> torch.Tensor:
        assert codes.ndim == 2 and codes.shape[0] == N_CODEBOOKS and codes.shape[1] > 0, tuple(codes.shape)
        return codec_decoder.embed(self._codebooks, codes.to(self._codebooks.device, torch.long))


# The two namings of a weight-normed tensor g * v / |v|. Both are converted to one plain weight.
GAINS = {".weight_g": ".weight_v", ".parametrizations.weight.original0": ".parametrizations.weight.original1"}


def _plain_weights(tensors: Tensors, path: Path) -> Tensors:
    """The same tensors in float32, with every weight norm applied."""
    plain = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    for gain_name in tensors:
        for gain_suffix, direction_suffix in GAINS.items():
            if not gain_name.endswith(gain_suffix):
                continue
            stem = gain_name.removesuffix(gain_suffix)
            direction_name = f"{stem}{direction_suffix}"
            if direction_name not in plain:
                raise CheckpointError(path, f"{direction_name} is missing")
            gain, direction = plain.pop(gain_name), plain.pop(direction_name)
            if not _is_norm_of(gain, direction):
                shapes = f"{tuple(gain.shape)} and {tuple(direction.shape)}"
                raise CheckpointError(path, f"{gain_name} and {direction_name} do not belong together: {shapes}")
            plain[f"{stem}.weight"] = _with_norm(gain, direction)
    return plain


def _is_norm_of(gain: torch.Tensor, direction: torch.Tensor) -> bool:
    same_rank = gain.ndim == direction.ndim and 1 in gain.shape
    return same_rank and all(g in (1, v) for g, v in zip(gain.shape, direction.shape, strict=True))


def _with_norm(gain: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The weight with the shape of `direction` whose norm, over the axes where `gain` has length 1, is `gain`."""
    normed_axes = [axis for axis, length in enumerate(gain.shape) if length == 1]
    return direction * (gain / torch.linalg.vector_norm(direction, dim=normed_axes, keepdim=True))


def _require_layout(tensors: Tensors, widths: CodecWidths, path: Path) -> None:
    """Raise CheckpointError unless the tensors are those of a whole X-Codec of these widths."""
    expected = {_plain_name(name): shape for name, shape in codec_shapes(widths).items() if not _is_gain(name)}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    faults += [f"{name} is unknown" for name in sorted(tensors.keys() - expected.keys())]
    faults += [
        f"{name} has the shape {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        named = "; ".join(faults[:MAX_FAULTS_IN_ERROR])
        more = f"; and {len(faults) - MAX_FAULTS_IN_ERROR} more" if len(faults) > MAX_FAULTS_IN_ERROR else ""
        raise CheckpointError(path, named + more)


def _is_gain(name: str) -> bool:
    return name.endswith(tuple(GAINS))


def _plain_name(name: str) -> str:
    """The name that the weight of a weight-normed direction gets."""
    for direction in GAINS.values():
        if name.endswith(direction):
            return f"{name.removesuffix(direction)}.weight"
    return name


def _widths(tensors: Tensors, semantic: Mapping[str, Any], path: Path) -> CodecWidths:
    """The widths that the tensors have. Raises CheckpointError if YuE cannot use them."""
    _check_strides(tensors, "encoder.block.{}.block.4.weight", path)
    _check_strides(tensors, "decoder_2.model.{}.block.1.weight", path)
    n_codebooks = _count(tensors, EMBED)
    if n_codebooks < N_CODEBOOKS:
        name = EMBED.format(n_codebooks)
        raise CheckpointError(path, f"{name} is missing: it has {n_codebooks} codebooks, YuE needs {N_CODEBOOKS}")
    codebook_size, _ = shape_of(tensors, EMBED.format(0), path, 2)
    if codebook_size != CODEBOOK_SIZE:
        raise CheckpointError(path, f"its codebooks have {codebook_size} codes, allowed: {CODEBOOK_SIZE}")
    return CodecWidths(
        encoder=shape_of(tensors, "encoder.block.0.weight", path, 3)[0],
        decoder=shape_of(tensors, "decoder_2.model.0.weight", path, 3)[0],
        acoustic=shape_of(tensors, f"encoder.block.{len(RATIOS) + 2}.weight", path, 3)[0],
        semantic=semantic["hidden_size"],
        hubert_layers=semantic["num_hidden_layers"],
        hubert_heads=semantic["num_attention_heads"],
        hubert_feed_forward=semantic["intermediate_size"],
        hubert_convolutions=semantic["conv_dim"][0],
        n_codebooks=n_codebooks,
    )


HUBERT_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3_072}
HUBERT_LAYERS = {
    "conv_dim": [512] * len(HUBERT_KERNELS),
    "conv_kernel": list(HUBERT_KERNELS),
    "conv_stride": list(HUBERT_STRIDES),
}


HUBERT_VARIANT = {  # what else decides which tensors there are
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "conv_bias": False,
    "num_conv_pos_embeddings": POSITION_KERNEL,
    "num_conv_pos_embedding_groups": POSITION_GROUPS,
    "conv_pos_batch_norm": False,
}


def _semantic_config(path: Path) -> dict[str, Any]:
    """The content of the semantic branch's config.json, with HuBERT's own defaults. Raises CheckpointError."""
    content: dict[str, Any] = {**HUBERT_SIZES, **HUBERT_LAYERS, **read_json(path)}
    for name in HUBERT_SIZES:
        if not _is_size(content[name]):
            raise _no_hubert(path, name, content[name], "a whole number from 1 on")
    for name, default in HUBERT_LAYERS.items():
        numbers = content[name]
        if not isinstance(numbers, list) or len(numbers) != len(default) or not all(map(_is_size, numbers)):
            raise _no_hubert(path, name, numbers, f"{len(default)} whole numbers from 1 on")
    if len(set(content["conv_dim"])) > 1:
        raise _no_hubert(path, "conv_dim", content["conv_dim"], "equal numbers")
    hop = math.prod(content["conv_stride"])
    if hop != CODEC_HOP:
        raise CheckpointError(path, f"conv_stride gives {hop} samples per frame, allowed: {CODEC_HOP}")
    if content["conv_kernel"] != HUBERT_LAYERS["conv_kernel"]:
        raise _no_hubert(path, "conv_kernel", content["conv_kernel"], str(HUBERT_LAYERS["conv_kernel"]))
    for name, value in HUBERT_VARIANT.items():
        if content.get(name, value) != value:
            raise _no_hubert(path, name, content[name], repr(value))
    if content["hidden_size"] % content["num_attention_heads"]:
        raise CheckpointError(path, "hidden_size and num_attention_heads do not form a valid network")
    return content


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_SIZE


def _no_hubert(path: Path, name: str, value: object, allowed: str) -> CheckpointError:
    return CheckpointError(path, f"is not a HuBERT config ({name}: got {value!r}; allowed: {allowed})")


def _check_strides(tensors: Tensors, pattern: str, path: Path) -> None:
    """Raise CheckpointError unless the numbered convolutions, with kernels of two strides, have YuE's strides."""
    names = [pattern.format(block) for block in range(1, 1 + _count(tensors, pattern, start=1))]
    strides = [tensors[name].shape[-1] // 2 for name in names]
    if strides != list(RATIOS):
        series = pattern.format(f"1…{len(names)}")
        raise CheckpointError(path, f"{series} have the strides {strides}, allowed: {list(RATIOS)}, {CODEC_HOP} in all")


def _count(tensors: Tensors, pattern: str, start: int = 0) -> int:
    """The number of tensors in the numbered series `pattern`, up to its first gap."""
    number = start
    while pattern.format(number) in tensors:
        number += 1
    return number - start
