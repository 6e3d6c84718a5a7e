"""The way in which YuE's published script runs its language models, to measure beside ours.

One Hugging Face `generate` call for each section in stage 1, with guidance as a second forward; one `generate` call for
each frame in stage 2, which reads the whole row again. It uses none of our code for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from inference.models.llama_network import LlamaNetwork
from inference.vocabulary import EOA_ID, FIRST_CODE_ID, N_CODEBOOKS, SOA_ID, STAGE_1_ID, STAGE_2_ID, code_ids


class OnlyIds(LogitsProcessor):
    """Lets a range of ids and `<EOA>` through, as the published script's masks do."""

    def __init__(self, allowed: range, vocabulary_size: int) -> None:
        self._blocked = [i for i in range(vocabulary_size) if i not in allowed and i != EOA_ID]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (R, V) with every other id at minus infinity."""
        scores[:, self._blocked] = -torch.inf
        return scores


def twin(network: LlamaNetwork) -> LlamaForCausalLM:
    """The network of transformers with the same weights, which both share."""
    config = asdict(network.config)
    rope = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config, rope_parameters=rope))
    model.load_state_dict(network.state_dict(), assign=True)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config).to(network.device)  # on the meta device it was empty
    return model.eval().requires_grad_(False)


def generate_section(network: LlamaForCausalLM, prompt_ids: Sequence[int], n_tokens: int) -> None:
    """Stage 1: one section of exactly `n_tokens` tokens."""
    network.set_attn_implementation("sdpa")
    prompt = torch.tensor([prompt_ids], device=network.device)
    network.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        negative_prompt_ids=prompt[:, -1:],
        logits_processor=LogitsProcessorList([OnlyIds(code_ids(0), network.config.vocab_size)]),
        generation_config=GenerationConfig(
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=True,
            top_p=0.93,
            temperature=1.0,
            repetition_penalty=1.1,
            guidance_scale=1.5,
            eos_token_id=EOA_ID,
            pad_token_id=EOA_ID,
        ),
    )


def fill_in_rows(network: LlamaForCausalLM, rows: Tensor, n_frames: int | None = None) -> None:
    """Stage 2: the first `n_frames` frames (None: all) of rows of codebook-0 codes (R, T)."""
    network.set_attn_implementation("sdpa")
    rows = rows.to(network.device)
    n_rows = len(rows)
    lead = torch.tensor([[SOA_ID, STAGE_1_ID]], device=network.device).expand(n_rows, -1)
    end = torch.full((n_rows, 1), STAGE_2_ID, device=network.device)
    tokens = torch.cat([lead, rows + FIRST_CODE_ID, end], dim=1)
    allowed = range(code_ids(1).start, code_ids(N_CODEBOOKS - 1).stop)
    only_codes = LogitsProcessorList([OnlyIds(allowed, network.config.vocab_size)])
    settings = GenerationConfig(
        max_new_tokens=N_CODEBOOKS - 1, min_new_tokens=N_CODEBOOKS - 1, eos_token_id=EOA_ID, pad_token_id=EOA_ID
    )
    for frame in range(rows.shape[1] if n_frames is None else n_frames):
        tokens = torch.cat([tokens, rows[:, frame, None] + FIRST_CODE_ID], dim=1)
        tokens = network.generate(
            tokens, attention_mask=torch.ones_like(tokens), logits_processor=only_codes, generation_config=settings
        )
