"""The sizes of network that the engine is timed with, all of YuE's form.

It is independent of how they are filled and timed.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.codec_layout import CodecWidths
from inference.models.llama_network import LlamaConfig
from inference.tiny import checkpoints
from inference.tiny.layers import VocosWidths
from tests.support.full_size import REAL_CODEC, REAL_VOCOS

SCALED_TO_SECONDS = 30.0  # of audio, the unit in which YuE's speed is reported


@dataclass(frozen=True)
class Size:
    """The networks of one size."""

    stage1: LlamaConfig
    stage2: LlamaConfig
    codec: CodecWidths
    vocos: VocosWidths
    seconds: float  # of audio a song
    songs: tuple[int, ...]
    published_tokens: int
    published_frames: int


def _config(width: int, feed_forward: int, layers: int, heads: int, kv_heads: int, context: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=checkpoints.MODEL_VOCABULARY_SIZE,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
    )


SIZES = {
    "tiny": Size(
        _config(64, 128, 2, 4, 2, 16_384),
        _config(48, 96, 2, 3, 3, 8_192),
        checkpoints.CODEC_WIDTHS,
        checkpoints.VOCOS_WIDTHS,
        seconds=6.0,
        songs=(1, 2, 4, 8),
        published_tokens=60,
        published_frames=10,
    ),
    "small": Size(
        _config(256, 704, 6, 8, 2, 16_384),
        _config(128, 352, 6, 8, 8, 8_192),
        checkpoints.CODEC_WIDTHS,
        checkpoints.VOCOS_WIDTHS,
        seconds=6.0,
        songs=(1, 2, 4, 8),
        published_tokens=100,
        published_frames=20,
    ),
    "full": Size(
        _config(4096, 11_008, 32, 32, 4, 16_384),
        _config(2048, 5504, 32, 16, 16, 8_192),
        REAL_CODEC,
        REAL_VOCOS,
        seconds=SCALED_TO_SECONDS,
        songs=(1, 2, 4, 8, 16),
        published_tokens=100,
        published_frames=12,
    ),
}
