"""X-Codec: decodes codes to 16 kHz waveforms and to the vocoder's embeddings, and encodes waveforms to codes.

Independent of token ids, tracks and audio files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

from inference.errors import CheckpointError, InvalidField
from inference.models.checkpoints import load_strict, read_pickle, shape_of
from inference.vocabulary import CODEBOOK_SIZE, CODEC_HOP, CODEC_RATE_HZ, FRAME_RATE_HZ, N_CODEBOOKS
from inference.weights.files import read_json

CHECKPOINT = Path("final_ckpt/ckpt_00360000.pth")
CHECKPOINT_KEY = "codec_model"
SEMANTIC_CONFIG = Path("semantic_ckpts/hf_1_325000/config.json")

MAX_FAULTS_IN_ERROR = 3

Tensors = dict[str, torch.Tensor]


class Codec:
    """YuE's codec in float32, as a `transformers.XcodecModel`."""

    def __init__(self, model: XcodecModel) -> None:
        self._model = model.to(torch.float32).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Codec:
        """Load the codec from `folder`, laid out like its repository. Raises CheckpointError."""
        path = folder / CHECKPOINT
        tensors = _plain_weights(read_pickle(path, CHECKPOINT_KEY), path)
        model = _empty_model(_config(tensors, path, _semantic_config(folder / SEMANTIC_CONFIG)), path)
        load_strict(model, _renamed(tensors, model, path), path)
        return cls(model.to(device))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (8, T) -> waveform (320 * T,) at 16 kHz, float32, on the codec's device."""
        codes = self._checked(codes)
        return self._model.decode(codes[None]).audio_values[0, 0, : codes.shape[1] * CODEC_HOP]

    @torch.inference_mode()
    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (8, T) -> embeddings (D, T), the sums of their codebook vectors: the vocoder's input."""
        return self._model.quantizer.decode(self._checked(codes)[:, None])[0]

    @torch.inference_mode()
    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """Mono waveform (samples,) at 16 kHz -> the codes of codebook 0 (T,), at least samples // 320 of them."""
        assert waveform.ndim == 1, f"a mono waveform has one dimension, not {waveform.ndim}"
        if len(waveform) < CODEC_HOP:
            allowed = f"at least {CODEC_HOP} samples at {CODEC_RATE_HZ} Hz, one frame"
            raise InvalidField("reference.audio", f"{len(waveform)} samples", allowed)
        samples = waveform.to(self._model.device, torch.float32)
        lowest_bandwidth = self._model.config.target_bandwidths[0]
        return self._model.encode(samples[None, None], bandwidth=lowest_bandwidth).audio_codes[0, 0]

    def _checked(self, codes: torch.Tensor) -> torch.Tensor:
        assert codes.ndim == 2 and codes.shape[0] == N_CODEBOOKS and codes.shape[1] > 0, tuple(codes.shape)
        return codes.to(self._model.device, torch.long)


# --- the checkpoint's tensors ---

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


def _renamed(tensors: Tensors, model: XcodecModel, path: Path) -> Tensors:
    """The tensors under the model's names. Raises CheckpointError, which uses the file's names."""
    n_blocks = len(model.acoustic_encoder.block)
    modules = _acoustic_modules(n_blocks)
    wanted = {_original_name(name, modules): (name, value) for name, value in model.state_dict().items()}
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    faults += [f"{name} is unknown" for name in sorted(tensors.keys() - wanted.keys())]
    faults += [
        f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, (_, value) in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if faults:
        named = "; ".join(faults[:MAX_FAULTS_IN_ERROR])
        more = f"; and {len(faults) - MAX_FAULTS_IN_ERROR} more" if len(faults) > MAX_FAULTS_IN_ERROR else ""
        raise CheckpointError(path, named + more)
    return {new: tensors[original] for original, (new, _) in wanted.items()}


def _original_name(name: str, acoustic_modules: Mapping[str, str]) -> str:
    """The checkpoint's name of a tensor that the model calls `name`."""
    module, _, tensor = name.rpartition(".")
    module = acoustic_modules.get(module, module)
    for pattern, original in RENAMED_MODULES:
        module = re.sub(pattern, original, module)
    return f"{module}.{tensor}"


RENAMED_MODULES = (
    (r"^fc$", "fc_prior"),
    (r"^fc([12])$", r"fc_post\1"),
    (r"^quantizer\.quantizers\.(\d+)\.codebook$", r"quantizer.vq.layers.\1._codebook"),
    # The semantic branches wrap each convolution in another module, except for the second one of a residual unit.
    (r"^((?:en|de)coder_semantic\.(?!.*res_units\.\d+\.conv2$).*conv\d?)$", r"\1.conv"),
)


def _acoustic_modules(n_blocks: int) -> dict[str, str]:
    """The model's names of the acoustic encoder's and decoder's modules -> the checkpoint's."""
    units = ("res_unit1", "res_unit2", "res_unit3")
    branches = (
        ("acoustic_encoder", "encoder.block", (*units, "snake1", "conv1")),
        ("acoustic_decoder", "decoder_2.model", ("snake1", "conv_t1", *units)),
    )
    names: dict[str, str] = {}
    for new, original, parts in branches:
        names |= {f"{new}.conv1": f"{original}.0"}
        names |= {f"{new}.snake1": f"{original}.{n_blocks + 1}", f"{new}.conv2": f"{original}.{n_blocks + 2}"}
        for block in range(n_blocks):
            for i, part in enumerate(parts):
                module = f"{new}.block.{block}.{part}", f"{original}.{block + 1}.block.{i}"
                names |= _residual_unit(*module) if part in units else dict([module])
    return names


def _residual_unit(new: str, original: str) -> dict[str, str]:
    return {f"{new}.{part}": f"{original}.block.{i}" for i, part in enumerate(("snake1", "conv1", "snake2", "conv2"))}


# --- the network ---


def _empty_model(config: XcodecConfig, path: Path) -> XcodecModel:
    """The network on the meta device, with plain weights only."""
    try:
        with torch.device("meta"):
            model = XcodecModel(config)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            path, f"its shapes and the semantic config do not form a valid network ({error})"
        ) from error
    remove_parametrizations(model.semantic_model.encoder.pos_conv_embed.conv, "weight")
    return model


def _config(tensors: Tensors, path: Path, semantic: HubertConfig) -> XcodecConfig:
    """The config that matches the shapes of the tensors. Raises CheckpointError if YuE cannot use them."""
    strides = _strides(tensors, "encoder.block.{}.block.4.weight", path)
    up_strides = _strides(tensors, "decoder_2.model.{}.block.1.weight", path)
    n_codebooks = _count(tensors, "quantizer.vq.layers.{}._codebook.embed")
    if n_codebooks < N_CODEBOOKS:
        name = f"quantizer.vq.layers.{n_codebooks}._codebook.embed"
        raise CheckpointError(path, f"{name} is missing: it has {n_codebooks} codebooks, YuE needs {N_CODEBOOKS}")
    codebook_size, codebook_dim = shape_of(tensors, "quantizer.vq.layers.0._codebook.embed", path, 2)
    if codebook_size != CODEBOOK_SIZE:
        raise CheckpointError(path, f"its codebooks have {codebook_size} codes, allowed: {CODEBOOK_SIZE}")
    acoustic = DacConfig(
        encoder_hidden_size=shape_of(tensors, "encoder.block.0.weight", path, 3)[0],
        hidden_size=shape_of(tensors, f"encoder.block.{len(strides) + 2}.weight", path, 3)[0],
        downsampling_ratios=strides,
        decoder_hidden_size=shape_of(tensors, "decoder_2.model.0.weight", path, 3)[0],
        upsampling_ratios=up_strides,
    )
    codebook_kbps = math.log2(CODEBOOK_SIZE) * FRAME_RATE_HZ / 1_000
    return XcodecConfig(
        target_bandwidths=[codebook_kbps, codebook_kbps * n_codebooks],
        sample_rate=CODEC_RATE_HZ,
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
    )


def _semantic_config(path: Path) -> HubertConfig:
    """The architecture in the semantic branch's config.json. The rest of that file concerns training."""
    content = read_json(path)
    try:
        config = HubertConfig(**_architecture(content))
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"is not a HuBERT config ({' '.join(str(error).split())})") from error
    hop = math.prod(config.conv_stride)
    if hop != CODEC_HOP:
        raise CheckpointError(path, f"conv_stride gives {hop} samples per frame, allowed: {CODEC_HOP}")
    return config


def _architecture(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content[name] for name in HubertConfig.__annotations__.keys() & content.keys() - {"model_type"}}


def _strides(tensors: Tensors, pattern: str, path: Path) -> list[int]:
    """The strides of the numbered convolutions, whose kernels are two strides wide."""
    names = [pattern.format(block) for block in range(1, 1 + _count(tensors, pattern, start=1))]
    strides = [tensors[name].shape[-1] // 2 for name in names]
    if math.prod(strides) != CODEC_HOP:
        series = pattern.format(f"1…{len(names)}")
        raise CheckpointError(path, f"{series} have the strides {strides}; their product must be {CODEC_HOP}")
    return strides


def _count(tensors: Tensors, pattern: str, start: int = 0) -> int:
    """The number of tensors in the numbered series `pattern`, up to its first gap."""
    number = start
    while pattern.format(number) in tensors:
        number += 1
    return number - start
