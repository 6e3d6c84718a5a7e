"""Times both stages beside the way YuE's published script runs the same small model, in one run.

    python -m benchmarks.decode

It measures one song on its own, without the server. Weights are fabricated; the work is the same for any weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import torch

from benchmarks import published
from inference.engine.stage1 import Composition, Stage1Settings
from inference.models.llama import Llama
from inference.models.llama_network import LlamaConfig, LlamaNetwork
from inference.text.prompt import Prompt
from inference.tiny.checkpoints import fabricate
from inference.vocabulary import CODEBOOK_SIZE, PIECE_FRAMES, SOA_ID, XCODEC_ID
from tests.support.stages import compose, upsample

PROMPT_TOKENS = 400
ROWS = 4
SMALL = LlamaConfig(
    vocab_size=83_968,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=16_384,
)


@dataclass(frozen=True)
class Result:
    """Seconds that one stage took, both ways, for the same number of steps."""

    stage: str
    steps: str
    published_s: float
    ours_s: float

    @property
    def row(self) -> str:
        """A line of the table."""
        ratio = self.published_s / self.ours_s
        return f"| {self.stage} | {self.steps} | {self.published_s:.1f} | {self.ours_s:.1f} | **{ratio:.1f} ×** |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=600, help="tokens of stage 1 (600 are 6 s of music)")
    parser.add_argument("--frames", type=int, default=PIECE_FRAMES, help="frames of each stage-2 row (50 a second)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = small_network()
    results = [measure_stage1(network, options.tokens), measure_stage2(network, options.frames)]
    print(f"{date.today()}, {platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    print("\n| stage | work | published way, s | ours, s | ratio |\n|---|---|---:|---:|---:|")
    print("\n".join(result.row for result in results))


def small_network() -> LlamaNetwork:
    """A language model of 6 layers with fabricated weights."""
    network = LlamaNetwork(SMALL)
    network.load_state_dict(
        {key: fabricate(f"small.{key}", value.shape) for key, value in network.state_dict().items()}
    )
    return network.eval().requires_grad_(False)


def measure_stage1(network: LlamaNetwork, n_tokens: int) -> Result:
    """One section of exactly `n_tokens` tokens, sampled."""
    lead = torch.randint(32_000, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = [*lead, SOA_ID, XCODEC_ID]
    published_s = timed(lambda: published.generate_section(published.twin(network), ids, n_tokens))
    llama = Llama(network)
    settings = Stage1Settings(max_new_tokens=n_tokens, min_new_tokens=n_tokens)

    def ours() -> None:
        compose(llama, Composition(Prompt("", (tuple(ids),), (0,)), settings, 0, llama.context), ignore)

    return Result("1", f"{n_tokens} tokens, guidance 1.5", published_s, timed(ours))


def measure_stage2(network: LlamaNetwork, n_frames: int) -> Result:
    """Four rows of `n_frames` frames, greedily."""
    rows = torch.randint(CODEBOOK_SIZE, (ROWS, n_frames), generator=torch.Generator().manual_seed(1))
    published_s = timed(lambda: published.fill_in_rows(published.twin(network), rows))
    llama = Llama(network)
    ours = timed(lambda: upsample(llama, list(rows), ignore))
    return Result("2", f"{ROWS} rows × {n_frames} frames", published_s, ours)


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    with torch.inference_mode():
        work()
    return time.perf_counter() - began


def ignore(*_: int) -> None:
    """A progress callback that does nothing."""


if __name__ == "__main__":
    main()
