"""Small language models with fabricated weights, for tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from inference.models import llama_network as own_llama
from inference.models.llama import Llama
from inference.models.llama_network import LlamaNetwork
from inference.tiny.checkpoints import fabricate
from inference.vocabulary import EOA_ID

# The network whose outputs the parity numbers hold.
PARITY_CONFIG = {
    "vocab_size": 83_968,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16_384,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def parity_network(stage: str, eoa_gain: float = 1.0) -> LlamaForCausalLM:
    """The plain transformers model with the fabricated weights of `stage` ("stage1" or "stage2")."""
    model = LlamaForCausalLM(LlamaConfig(**PARITY_CONFIG))
    _fabricate(model, stage, eoa_gain)
    return model


def own_network(stage: str, eoa_gain: float = 1.0, **sizes: int) -> LlamaNetwork:
    """This project's network with the same weights, or of other sizes."""
    network = LlamaNetwork(own_llama.LlamaConfig.from_json(PARITY_CONFIG | sizes))
    _fabricate(network, stage, eoa_gain)
    return network


def parity_llama(stage: str, eoa_gain: float = 1.0) -> Llama:
    """The same, ready to decode rows."""
    return Llama(own_network(stage, eoa_gain))


def plain_logits(network: LlamaNetwork, ids: torch.Tensor) -> torch.Tensor:
    """The logits (1, T, V) of a whole sequence (1, T), without caches."""
    decoder = network.model
    hidden = decoder.embed_tokens(ids)
    angles = decoder.rotary(torch.arange(ids.shape[1])[None], hidden.dtype)
    for layer in decoder.decoder_layers:
        query, key, value = layer.attention_inputs(hidden, angles)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        hidden = layer.finish(hidden, attended.transpose(1, 2))
    return network.lm_head(decoder.norm(hidden))


def _fabricate(model: nn.Module, stage: str, eoa_gain: float) -> None:
    tensors = {key: fabricate(f"{stage}.{key}", value.shape) for key, value in model.state_dict().items()}
    tensors["lm_head.weight"][EOA_ID] *= eoa_gain
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for a test's random numbers."""
    return torch.Generator().manual_seed(seed)


def small_llama(stage: str) -> Llama:
    """A language model with the real vocabulary that is as fast as one can be: a single layer, sixteen wide."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 4_096}
    return Llama(own_network(stage, **sizes))
