"""The widths of the published X-Codec and Vocos."""

from __future__ import annotations

from inference.codec_layout import CodecWidths
from inference.tiny.layers import VocosWidths

REAL_CODEC = CodecWidths(
    encoder=64,
    decoder=1024,
    acoustic=256,
    semantic=768,
    hubert_layers=12,
    hubert_heads=12,
    hubert_feed_forward=3072,
    hubert_convolutions=512,
)
REAL_VOCOS = VocosWidths(codebook=REAL_CODEC.codebook, hidden=512, feed_forward=1536, layers=8)
