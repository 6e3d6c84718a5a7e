"""The part of X-Codec that reads audio: waveforms to codes, by `transformers.XcodecModel`.

It is needed for reference audio alone, and importing transformers takes seconds, so the network is built when it is
first used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from inference.codec_layout import RATIOS, CodecWidths
from inference.vocabulary import CODEBOOK_SIZE, CODEC_RATE_HZ, FRAME_RATE_HZ

if TYPE_CHECKING:
    from transformers import XcodecModel

Tensors = Mapping[str, torch.Tensor]


class CodecEncoder:
    """The codes of waveforms in codebook 0.

    `tensors` are a whole checkpoint with plain weights, `semantic` is the content of its HuBERT's config.json.
    """

    def __init__(
        self, tensors: Tensors, widths: CodecWidths, semantic: Mapping[str, Any], device: torch.device
    ) -> None:
        self._tensors, self._widths, self._semantic, self._device = tensors, widths, semantic, device

    def prepare(self) -> None:
        """Build the network now."""
        _ = self._model

    @torch.inference_mode()
    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """Mono waveform (samples,) at 16 kHz -> the codes of codebook 0 (T,)."""
        samples = waveform.to(self._device, torch.float32)
        lowest_bandwidth = self._model.config.target_bandwidths[0]
        return self._model.encode(samples[None, None], bandwidth=lowest_bandwidth).audio_codes[0, 0]

    @cached_property
    def _model(self) -> XcodecModel:
        from torch.nn.utils.parametrize import remove_parametrizations
        from transformers import XcodecModel

        with torch.device("meta"):
            model = XcodecModel(self._config())
        remove_parametrizations(model.semantic_model.encoder.pos_conv_embed.conv, "weight")
        modules = _acoustic_modules(len(RATIOS))
        tensors = {name: self._tensors[_original_name(name, modules)] for name in model.state_dict()}
        model.load_state_dict(tensors, assign=True)
        self._tensors = {}
        return model.to(self._device, torch.float32).eval().requires_grad_(False)

    def _config(self) -> Any:
        from transformers import DacConfig, HubertConfig, XcodecConfig

        widths = self._widths
        acoustic = DacConfig(
            encoder_hidden_size=widths.encoder,
            hidden_size=widths.acoustic,
            downsampling_ratios=list(RATIOS),
            decoder_hidden_size=widths.decoder,
            upsampling_ratios=list(RATIOS),
        )
        semantic = {name: self._semantic[name] for name in HubertConfig.__annotations__ if name in self._semantic}
        codebook_kbps = math.log2(CODEBOOK_SIZE) * FRAME_RATE_HZ / 1_000
        return XcodecConfig(
            target_bandwidths=[codebook_kbps, codebook_kbps * widths.n_codebooks],
            sample_rate=CODEC_RATE_HZ,
            codebook_size=CODEBOOK_SIZE,
            codebook_dim=widths.codebook,
            acoustic_model_config=acoustic,
            semantic_model_config=HubertConfig(**{n: v for n, v in semantic.items() if n != "model_type"}),
        )


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
