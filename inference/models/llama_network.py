"""The layers of a LLaMA, with the names of tensors that its checkpoints have.

Independent of caches: a layer computes what attention is given and what follows it; `inference/models/llama.py` attends
between the two. The arithmetic is that of transformers' `LlamaForCausalLM`, to the bit.

Letters in shapes:

    R   rows                              H   hidden size
    Q   new tokens of each row            D   size of a head (head_dim)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_SIZE = 2**20  # of any part, far more than a GPU holds
DEFAULT_NORM_EPS = 1e-6
DEFAULT_ROPE_THETA = 10_000.0
LARGEST_NUMBER = 1e12


@dataclass
class LlamaConfig:
    """The sizes of a LLaMA, with the names that its config.json has."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = DEFAULT_NORM_EPS
    rope_theta: float = DEFAULT_ROPE_THETA
    tie_word_embeddings: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LlamaConfig:
        """Read the content of a config.json. Raises ValueError if it describes another network."""
        _refuse_variants(content)
        hidden_size, heads = _size(content, "hidden_size"), _size(content, "num_attention_heads")
        rope = content.get("rope_parameters") or content
        if not isinstance(rope, Mapping):
            raise ValueError(f"rope_parameters: got {rope!r}; allowed: an object")
        config = cls(
            vocab_size=_size(content, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(content, "intermediate_size"),
            num_hidden_layers=_size(content, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_size(content, "num_key_value_heads", heads),
            head_dim=_size(content, "head_dim", hidden_size // heads),
            max_position_embeddings=_size(content, "max_position_embeddings"),
            rms_norm_eps=_positive(content, "rms_norm_eps", DEFAULT_NORM_EPS),
            rope_theta=_positive(rope, "rope_theta", DEFAULT_ROPE_THETA),
            tie_word_embeddings=content.get("tie_word_embeddings") is True,
        )
        if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads, and head_dim even")
        return config


class LlamaNetwork(nn.Module):
    """A decoder and its output layer, empty until a checkpoint is loaded."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device


class Decoder(nn.Module):
    """Embedding, layers and the norm after the last of them."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta)

    @property
    def decoder_layers(self) -> Iterable[DecoderLayer]:
        """The layers, by their type."""
        return cast("Iterable[DecoderLayer]", self.layers)


class DecoderLayer(nn.Module):
    """One layer, in two halves: `attention_inputs`, and after attention `finish`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Projections(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5  # of the scores

    def attention_inputs(self, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, heads, Q, D), keys and values (R, kv_heads, Q, D) of hidden states (R, Q, H)."""
        x = self.input_layernorm(hidden)
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.self_attn.q_proj, self.self_attn.k_proj, self.self_attn.v_proj)
        )
        return rotated(query, angles), rotated(key, angles), value

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The layer's output (R, Q, H), from its input and the result of attention (R, Q, heads, D)."""
        hidden = hidden + self.self_attn.o_proj(attended.flatten(-2))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Projections(nn.Module):
    """The linear layers around attention."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)


class FeedForward(nn.Module):
    """The gated feed-forward part of a layer (SwiGLU, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) -> (…, H)"""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """Root mean square normalization (https://arxiv.org/abs/1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) -> (…, H)"""
        exact = x.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """The angles of the rotary position embedding (https://arxiv.org/abs/2104.09864)."""

    frequencies: Tensor  # (D / 2,) in radians per position; computed, so no checkpoint holds it

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self._head_dim, self._theta = head_dim, theta
        self.register_buffer("frequencies", self._computed(), persistent=False)

    def fill(self, device: torch.device) -> None:
        """Compute the frequencies, which are empty on the meta device. On the CPU, so they are the same everywhere."""
        self.frequencies = self._computed(torch.device("cpu")).to(device)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (R, 1, Q, D) for the positions (R, Q)."""
        angles = positions[..., None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _computed(self, device: torch.device | None = None) -> Tensor:
        exponents = torch.arange(0, self._head_dim, 2, dtype=torch.float, device=device) / self._head_dim
        return 1.0 / (self._theta**exponents)


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (R, heads, Q, D), rotated by the angles of their positions."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _refuse_variants(content: Mapping[str, Any]) -> None:
    """Raise ValueError if the network is a variant that is not implemented here."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else "default"
    for name, value, allowed in (
        ("hidden_act", content.get("hidden_act", "silu"), "silu"),
        ("attention_bias", bool(content.get("attention_bias")), False),
        ("mlp_bias", bool(content.get("mlp_bias")), False),
        ("rope_type", rope_type, "default"),
        ("partial_rotary_factor", content.get("partial_rotary_factor", 1.0), 1.0),
        ("quantization_config", content.get("quantization_config"), None),
    ):
        if value != allowed:
            raise ValueError(f"{name}: got {value!r}; allowed: {allowed!r}")


def _size(content: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = default if content.get(name) is None else content[name]
    if value is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"{name}: got {shortened(value)}; allowed: a whole number from 1 to {LARGEST_SIZE}")
    return value


def _positive(content: Mapping[str, Any], name: str, default: float) -> float:
    value = default if content.get(name) is None else content[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= LARGEST_NUMBER:
        raise ValueError(f"{name}: got {shortened(value)}; allowed: a number above 0, up to {LARGEST_NUMBER:g}")
    return float(value)


def shortened(value: object) -> str:
    """A value as an error shows it."""
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a very large number"
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
