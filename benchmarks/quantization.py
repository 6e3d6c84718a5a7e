"""Measures what int8 weights in stage 1 cost in the logits and save in bytes, beside what bfloat16 costs and saves.

    python -m benchmarks.quantization

Every network reads the same tokens, whatever it would have chosen itself. Weights are fabricated: independent normal
numbers, so the figures say how the arithmetic rounds, not how a song sounds.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from datetime import date

import torch
from torch import Tensor

from benchmarks.decode import small_network
from benchmarks.sizes import SIZES
from inference.engine.sampling import candidate_logits
from inference.models import quantization
from inference.models.llama_network import LlamaConfig, LlamaNetwork
from inference.models.quantization import Int8Linear
from inference.vocabulary import CODEBOOK_SIZE, FIRST_CODE_ID, SOA_ID, XCODEC_ID
from tests.support.language_models import plain_logits

TEXT_TOKENS = 100  # read before the first step that is measured
TEXT_IDS = 32_000


@dataclass(frozen=True)
class Error:
    """How far the distributions over the 1,025 candidates are from the float32 network's, over all steps."""

    relative_rms: float  # of the logits' error, each step's mean taken out of both, which changes no chance
    mean_divergence_nats: float  # Kullback-Leibler, from float32's distribution
    worst_divergence_nats: float
    top1_agreement: float  # share of the steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000, help="tokens at which the distributions are compared")
    options = parser.parse_args()
    network = small_network()
    ids = forced_ids(options.steps)
    exact = candidate_scores(network, ids, options.steps)
    print(f"{date.today()}, torch {torch.__version__}, {options.steps} steps of one row\n")
    print("| stage 1 | RMS error / RMS | KL, nats: mean | worst | same likeliest code | MB | MB of the real size |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(f"| float32 | 0 | 0 | 0 | 100 % | {_sizes(torch.float32, False)} |")
    for dtype, quantized in ((torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)):
        error = compare(candidate_scores(converted(network, dtype, quantized), ids, options.steps), exact)
        name = str(dtype).removeprefix("torch.") + (", int8 weights" if quantized else "")
        divergence = f"{error.mean_divergence_nats:.1e} | {error.worst_divergence_nats:.1e}"
        print(
            f"| {name} | {error.relative_rms:.2%} | {divergence} | {error.top1_agreement:.1%} "
            f"| {_sizes(dtype, quantized)} |"
        )


def forced_ids(steps: int) -> Tensor:
    """The ids (1, T) that every network reads: some text, then `steps` codes."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(TEXT_IDS, (TEXT_TOKENS,), generator=generator)
    codes = torch.randint(CODEBOOK_SIZE, (steps - 1,), generator=generator) + FIRST_CODE_ID
    return torch.cat([text, torch.tensor([SOA_ID, XCODEC_ID]), codes])[None]


def converted(network: LlamaNetwork, dtype: torch.dtype, quantized: bool) -> LlamaNetwork:
    """A copy of `network` in `dtype`, its decoder in int8 where that is wanted; rounded as a loaded one would be."""
    model = copy.deepcopy(network)
    if quantized:
        for name in quantization.replace_linears(model.model):
            layer = model.model.get_submodule(name)
            assert isinstance(layer, Int8Linear)
            layer.weight, layer.scale = quantization.quantize(network.model.get_parameter(f"{name}.weight"), dtype)
    # Not `model.to`, which would round the rotary frequencies, too; a loaded network keeps them in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def candidate_scores(network: LlamaNetwork, ids: Tensor, steps: int) -> Tensor:
    """The logits (steps, 1025) of what stage 1 can choose after each of the last `steps` of `ids` (1, T)."""
    with torch.inference_mode():
        return candidate_logits(plain_logits(network, ids)[0, -steps:])


def compare(scores: Tensor, exact: Tensor) -> Error:
    """How far `scores` (S, V) are from `exact` (S, V)."""
    scores, exact = (each.double() - each.double().mean(dim=1, keepdim=True) for each in (scores, exact))
    log_chances, exact_log_chances = scores.log_softmax(dim=1), exact.log_softmax(dim=1)
    divergences = (exact_log_chances.exp() * (exact_log_chances - log_chances)).sum(dim=1)
    return Error(
        float((scores - exact).square().mean().sqrt() / exact.square().mean().sqrt()),
        float(divergences.mean()),
        float(divergences.max()),
        float((scores.argmax(dim=1) == exact.argmax(dim=1)).double().mean()),
    )


def _sizes(dtype: torch.dtype, quantized: bool) -> str:
    """The megabytes of the small network's weights and of those of YuE's size, as columns of the table."""
    return " | ".join(f"{held_bytes(SIZES[size].stage1, dtype, quantized) / 1e6:,.1f}" for size in ("small", "full"))


def held_bytes(config: LlamaConfig, dtype: torch.dtype, quantized: bool) -> int:
    """The bytes of all weights of a network, without making them."""
    with torch.device("meta"):
        model = LlamaNetwork(config).to(dtype)
    if quantized:
        quantization.replace_linears(model.model)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


if __name__ == "__main__":
    main()
