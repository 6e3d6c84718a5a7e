"""The names and shapes of the tensors in an X-Codec checkpoint, for any widths.

It creates no tensors and opens no file. A convolution with a weight norm has a gain and a direction in the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from inference.vocabulary import CODEBOOK_SIZE, XCODEC_CODEBOOKS

Shapes = dict[str, tuple[int, ...]]

RATIOS = (8, 5, 4, 2)
RESIDUAL_UNITS = 3
HUBERT_KERNELS = (10, 3, 3, 3, 3, 2, 2)
HUBERT_STRIDES = (5, 2, 2, 2, 2, 2, 2)
POSITION_KERNEL = 128
POSITION_GROUPS = 16


@dataclass(frozen=True)
class CodecWidths:
    """The widths of an X-Codec. Everything else is as in YuE's own."""

    encoder: int  # channels after the first convolution, doubled by each of the four blocks
    decoder: int  # channels before the first block, halved by each
    acoustic: int  # output of the encoder, input of the decoder
    semantic: int  # HuBERT's
    hubert_layers: int
    hubert_heads: int
    hubert_feed_forward: int
    hubert_convolutions: int
    n_codebooks: int = XCODEC_CODEBOOKS

    @property
    def codebook(self) -> int:
        """The width of a codebook vector, which is also the input width of Vocos."""
        return self.acoustic + self.semantic


def codec_shapes(widths: CodecWidths) -> Shapes:
    """The names and shapes of an X-Codec checkpoint."""
    return {
        **_encoder_shapes(widths),
        **_semantic_branch_shapes("encoder_semantic", ("conv",), widths.semantic),
        **_semantic_branch_shapes("decoder_semantic", ("conv1", "conv2"), widths.semantic),
        **_quantizer_shapes(widths),
        **_decoder_shapes(widths),
        **{f"semantic_model.{name}": shape for name, shape in _hubert_shapes(widths).items()},
        **linear("fc_prior", widths.codebook, widths.codebook),
        **linear("fc_post1", widths.semantic, widths.codebook),
        **linear("fc_post2", widths.acoustic, widths.codebook),
    }


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    """A linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    """A layer norm or group norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def convolution(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    """A convolution with a bias."""
    return {f"{name}.weight": (outputs, inputs, kernel), f"{name}.bias": (outputs,)}


def _weight_normed(name: str, outputs: int, inputs: int, kernel: int, transposed: bool = False) -> Shapes:
    rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
    weight = {f"{name}.weight_g": (rows, 1, 1), f"{name}.weight_v": (rows, columns, kernel)}
    return {f"{name}.bias": (outputs,), **weight}


def _snake(name: str, width: int) -> Shapes:
    return {f"{name}.alpha": (1, width, 1)}


def _residual_units(block: str, first: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for unit in range(first, first + RESIDUAL_UNITS):
        name = f"{block}.{unit}.block"
        shapes |= _snake(f"{name}.0", width) | _weight_normed(f"{name}.1", width, width, 7)
        shapes |= _snake(f"{name}.2", width) | _weight_normed(f"{name}.3", width, width, 1)
    return shapes


def _encoder_shapes(widths: CodecWidths) -> Shapes:
    width = widths.encoder
    shapes = _weight_normed("encoder.block.0", width, 1, 7)
    for number, ratio in enumerate(RATIOS, start=1):
        name = f"encoder.block.{number}.block"
        shapes |= _residual_units(name, 0, width) | _snake(f"{name}.3", width)
        shapes |= _weight_normed(f"{name}.4", 2 * width, width, 2 * ratio)
        width *= 2
    return shapes | _snake("encoder.block.5", width) | _weight_normed("encoder.block.6", widths.acoustic, width, 3)


def _decoder_shapes(widths: CodecWidths) -> Shapes:
    width = widths.decoder
    shapes = _weight_normed("decoder_2.model.0", width, widths.acoustic, 7)
    for number, ratio in enumerate(RATIOS, start=1):
        name = f"decoder_2.model.{number}.block"
        shapes |= _snake(f"{name}.0", width)
        shapes |= _weight_normed(f"{name}.1", width // 2, width, 2 * ratio, transposed=True)
        width //= 2
        shapes |= _residual_units(name, 2, width)
    return shapes | _snake("decoder_2.model.5", width) | _weight_normed("decoder_2.model.6", 1, width, 7)


def _semantic_branch_shapes(name: str, ends: Sequence[str], width: int) -> Shapes:
    shapes: Shapes = {f"{name}.{end}.conv.weight": (width, width, 3) for end in ends}
    for block, unit in itertools.product(range(2), range(2)):
        residual = f"{name}.conv_blocks.{block}.res_units.{unit}"
        shapes |= {f"{residual}.conv1.conv.weight": (width, width, 3), f"{residual}.conv2.weight": (width, width, 1)}
        shapes |= convolution(f"{name}.conv_blocks.{block}.conv.conv", width, width, 3)
    return shapes


def _quantizer_shapes(widths: CodecWidths) -> Shapes:
    shapes: Shapes = {}
    width = widths.codebook
    for codebook in range(widths.n_codebooks):
        name = f"quantizer.vq.layers.{codebook}._codebook"
        shapes |= {f"{name}.inited": (1,), f"{name}.cluster_size": (CODEBOOK_SIZE,)}
        shapes |= {f"{name}.embed": (CODEBOOK_SIZE, width), f"{name}.embed_avg": (CODEBOOK_SIZE, width)}
    return shapes


def _hubert_shapes(widths: CodecWidths) -> Shapes:
    hidden, features = widths.semantic, widths.hubert_convolutions
    shapes: Shapes = {"masked_spec_embed": (hidden,)}
    for layer, kernel in enumerate(HUBERT_KERNELS):
        inputs = features if layer else 1
        shapes |= {f"feature_extractor.conv_layers.{layer}.conv.weight": (features, inputs, kernel)}
    shapes |= norm("feature_extractor.conv_layers.0.layer_norm", features)
    shapes |= norm("feature_projection.layer_norm", features)
    shapes |= linear("feature_projection.projection", hidden, features)
    position = "encoder.pos_conv_embed.conv"
    shapes |= {
        f"{position}.bias": (hidden,),
        f"{position}.parametrizations.weight.original0": (1, 1, POSITION_KERNEL),
        f"{position}.parametrizations.weight.original1": (hidden, hidden // POSITION_GROUPS, POSITION_KERNEL),
    }
    shapes |= norm("encoder.layer_norm", hidden)
    for layer in range(widths.hubert_layers):
        shapes |= _hubert_layer_shapes(f"encoder.layers.{layer}", hidden, widths.hubert_feed_forward)
    return shapes


def _hubert_layer_shapes(name: str, hidden: int, feed_forward: int) -> Shapes:
    shapes: Shapes = {}
    for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
        shapes |= linear(f"{name}.attention.{projection}", hidden, hidden)
    shapes |= linear(f"{name}.feed_forward.intermediate_dense", feed_forward, hidden)
    shapes |= linear(f"{name}.feed_forward.output_dense", hidden, feed_forward)
    return shapes | norm(f"{name}.layer_norm", hidden) | norm(f"{name}.final_layer_norm", hidden)
