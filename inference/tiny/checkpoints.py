"""Writes the tiny model: a complete set of small checkpoints that play a tune.

The names of files and tensors are the real ones. What the tune needs is computed from `score.py`; the rest, X-Codec's
encoder, is fabricated: random numbers from a fixed seed. After a change of the files, increase `FORMAT` in
`inference/tiny/model_files.py`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from sentencepiece import SentencePieceProcessor

from inference.codec_layout import (
    HUBERT_KERNELS,
    HUBERT_STRIDES,
    POSITION_GROUPS,
    POSITION_KERNEL,
    CodecWidths,
    codec_shapes,
)
from inference.tiny import codec, language_models, vocoder
from inference.tiny.layers import VOCOS_FFT, VocosWidths, vocos_shapes
from inference.tiny.tokenizer import tokenizer_model
from inference.vocabulary import TRACKS

# -- language models

MODEL_VOCABULARY_SIZE = 83_968
STAGE_1_SHARDS = 3

STAGE_1_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16_384,
}
STAGE_2_SIZES = {  # its widths differ from stage 1's, so that confusing the two fails
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
}
LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": MODEL_VOCABULARY_SIZE,
}

# -- X-Codec and Vocos


CODEC_WIDTHS = CodecWidths(
    encoder=8,
    decoder=128,
    acoustic=64,
    semantic=48,
    hubert_layers=2,
    hubert_heads=4,
    hubert_feed_forward=96,
    hubert_convolutions=32,
)
VOCOS_WIDTHS = VocosWidths(codebook=CODEC_WIDTHS.codebook, hidden=40, feed_forward=96, layers=2)


def write(folder: Path) -> None:
    """Write `stage1/`, `stage2/` and `codec/`, each laid out like its repository."""
    tokenizer = tokenizer_model()
    piece_id = SentencePieceProcessor(model_proto=tokenizer).piece_to_id
    stage_1, stage_2 = LLAMA_CONFIG | STAGE_1_SIZES, LLAMA_CONFIG | STAGE_2_SIZES
    for stage, config, tensors, shards in (
        ("stage1", stage_1, language_models.stage_1(stage_1, piece_id), STAGE_1_SHARDS),
        ("stage2", stage_2, language_models.stage_2(stage_2), 1),
    ):
        (folder / stage).mkdir(parents=True)
        (folder / stage / "tokenizer.model").write_bytes(tokenizer)
        _write_json(folder / stage / "config.json", config)
        _write_shards(folder / stage, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, shards)
    _write_json(folder / "stage1" / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write_codec(folder / "codec", CODEC_WIDTHS, VOCOS_WIDTHS)


def write_codec(folder: Path, codec_widths: CodecWidths, vocos_widths: VocosWidths) -> None:
    """Write X-Codec and both vocoders, laid out like their repository. Those of other widths are fabricated."""
    for name in ("final_ckpt", "decoders", "semantic_ckpts/hf_1_325000"):
        (folder / name).mkdir(parents=True)
    _write_json(folder / "semantic_ckpts/hf_1_325000/config.json", _hubert_config(codec_widths))
    xcodec = {name: fabricate(f"xcodec.{name}", shape) for name, shape in codec_shapes(codec_widths).items()}
    plays = (codec_widths, vocos_widths) == (CODEC_WIDTHS, VOCOS_WIDTHS)
    if plays:
        codec.codebooks(xcodec)
        codec.decoder(xcodec)
    torch.save({"codec_model": xcodec}, folder / "final_ckpt/ckpt_00360000.pth")
    for track, file in zip(TRACKS, ("decoder_131000.pth", "decoder_151000.pth"), strict=True):
        vocos = {name: fabricate(f"{track}.{name}", shape) for name, shape in vocos_shapes(vocos_widths).items()}
        vocos["head.istft.window"] = torch.hann_window(VOCOS_FFT)
        if plays:
            vocoder.vocos(vocos, track)
        torch.save(vocos, folder / "decoders" / file)


def fabricate(key: str, shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """A float32 tensor that depends only on `key`, `shape` and `seed`."""
    generator = np.random.default_rng([zlib.crc32(key.encode()), seed])
    noise = generator.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)
    return torch.from_numpy(np.ascontiguousarray(_shaped_like_weights(key, noise), dtype=np.float32))


def _shaped_like_weights(key: str, noise: np.ndarray) -> np.ndarray:
    """Scale `noise` like a trained tensor of that name, so that signals neither vanish nor explode."""
    if key.endswith("alpha"):  # of the Snake activations
        return 1.0 + 0.1 * noise
    if key.endswith("gamma"):  # layer scales
        return 0.1 + 0.02 * noise
    if key.endswith("decoder_2.model.6.weight_g"):  # the last layer of the waveform decoder: keeps the audio within ±1
        return 0.004 * np.abs(1.0 + 0.1 * noise)
    if key.endswith("weight_g"):
        return np.abs(1.0 + 0.1 * noise)
    if "_codebook.embed" in key:
        return 0.3 * noise
    if key.endswith(("inited", "cluster_size")):
        return np.ones_like(noise)
    if key.endswith("bias"):
        return 0.01 * noise
    if "norm" in key and noise.ndim == 1:
        return 1.0 + 0.05 * noise
    fan_in = math.prod(noise.shape[1:]) if noise.ndim > 1 else 1
    return noise / np.sqrt(max(fan_in, 1))


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor], count: int) -> None:
    """One `model.safetensors`, or `count` numbered files with their index."""
    if count == 1:
        _write_safetensors(folder / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        names = list(tensors)[number::count]
        _write_safetensors(folder / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    )


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    # Not `save_file`: its files are readable by their owner only, regardless of the umask.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def _hubert_config(widths: CodecWidths) -> dict[str, Any]:
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "hidden_size": widths.semantic,
        "intermediate_size": widths.hubert_feed_forward,
        "num_hidden_layers": widths.hubert_layers,
        "num_attention_heads": widths.hubert_heads,
        "conv_dim": [widths.hubert_convolutions] * len(HUBERT_KERNELS),
        "conv_kernel": list(HUBERT_KERNELS),
        "conv_stride": list(HUBERT_STRIDES),
        "conv_bias": False,
        "feat_extract_norm": "group",
        "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": POSITION_KERNEL,
        "num_conv_pos_embedding_groups": POSITION_GROUPS,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
