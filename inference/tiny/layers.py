"""The names and shapes of the tensors in the checkpoints of a Llama and a Vocos, for any widths.

It creates no tensors and opens no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.codec_layout import Shapes, convolution, linear, norm
from inference.vocabulary import VOCODER_HOP

VOCOS_FFT = 4 * VOCODER_HOP  # 3,528
VOCOS_KERNEL = 7


@dataclass(frozen=True)
class VocosWidths:
    """The widths of a Vocos."""

    codebook: int
    hidden: int
    feed_forward: int
    layers: int


def llama_shapes(config: Mapping[str, Any]) -> Shapes:
    """The names and shapes of a Llama checkpoint with that `config.json`, in transformers' order."""
    hidden, between = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (between, hidden),
        "mlp.up_proj": (between, hidden),
        "mlp.down_proj": (hidden, between),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    layers = range(config["num_hidden_layers"])
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        **{f"model.layers.{number}.{name}.weight": shape for number in layers for name, shape in layer.items()},
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }


def vocos_shapes(widths: VocosWidths) -> Shapes:
    """The names and shapes of a Vocos checkpoint."""
    hidden = widths.hidden
    shapes = convolution("backbone.embed", hidden, widths.codebook, VOCOS_KERNEL) | norm("backbone.norm", hidden)
    for layer in range(widths.layers):
        name = f"backbone.convnext.{layer}"
        shapes |= {f"{name}.gamma": (hidden,)}
        shapes |= convolution(f"{name}.dwconv", hidden, 1, VOCOS_KERNEL) | norm(f"{name}.norm", hidden)
        shapes |= linear(f"{name}.pwconv1", widths.feed_forward, hidden)
        shapes |= linear(f"{name}.pwconv2", hidden, widths.feed_forward)
    shapes |= norm("backbone.final_layer_norm", hidden)
    shapes |= linear("head.out", VOCOS_FFT + 2, hidden)  # a log-magnitude and a phase for each of n/2 + 1 bins
    return shapes | {"head.istft.window": (VOCOS_FFT,)}
