"""One forward pass of a LLaMA over rows of different lengths, on preallocated caches, without padding.

It does not know what the tokens mean, how they are chosen, or which song a row belongs to. The network itself is
`transformers.LlamaForCausalLM`; this room gives it an attention that writes to and reads from our rows.

A row is one sequence. Each row's next token stands at its own position, so a row of 400 tokens and a row of one
can take a step together:

    row 0   k k k k k k k k q        start 8, reads 9 keys
    row 1   k q                      start 1, reads 2 keys
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

ATTENTION = "live_rows"
PREFILL_CHUNK = 2_048  # tokens a forward; bounds the memory that a long prompt's attention takes


class RowCache:
    """Keys and values of `rows` sequences: for each layer two tensors (rows, kv_heads, capacity, head_dim)."""

    def __init__(self, config: LlamaConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        shape = (rows, config.num_key_value_heads, capacity, head_dim)
        self.capacity = capacity
        layers = range(config.num_hidden_layers)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]


@dataclass(frozen=True)
class _Run:
    """Neighbouring rows of equal length, which can share one attention call."""

    batch: slice  # in the tokens of this forward
    rows: slice  # in the cache
    start: int  # position of the first new token
    mask: Tensor | None  # (Q, start + Q), True where a query may look; None where it may look everywhere

    @staticmethod
    def plan(starts: Sequence[int], first_row: int, n_new: int, device: torch.device) -> list[_Run]:
        runs, batch = [], 0
        for start, group in groupby(starts):
            n_rows = len(list(group))
            mask = None
            if n_new > 1:
                mask = torch.ones(n_new, start + n_new, dtype=torch.bool, device=device).tril(diagonal=start)
            row = first_row + batch
            runs.append(_Run(slice(batch, batch + n_rows), slice(row, row + n_rows), start, mask))
            batch += n_rows
        return runs


class Llama:
    """A loaded language model and its steps. Results are on the model's device, in its dtype."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        model.set_attn_implementation(ATTENTION)
        self.model = model
        self.config: LlamaConfig = model.config
        self.device: torch.device = model.lm_head.weight.device
        self.dtype: torch.dtype = model.lm_head.weight.dtype

    @property
    def context(self) -> int:
        """How many positions a row may have."""
        return int(self.config.max_position_embeddings)

    @property
    def head(self) -> Tensor:
        """The output matrix (vocabulary, hidden): logits of some ids are `hidden @ head[ids].T`."""
        return self.model.lm_head.weight

    def new_cache(self, rows: int, capacity: int) -> RowCache:
        """Room for `rows` sequences of up to `capacity` tokens."""
        assert capacity <= self.context, f"{capacity} positions asked for, the model has {self.context}"
        return RowCache(self.config, rows, capacity, self.device, self.dtype)

    def prefill(self, cache: RowCache, first_row: int, tokens: Tensor) -> Tensor:
        """Read sequences of equal length (R, T) into rows `first_row` … from 0 on; the last hidden states (R, H)."""
        hidden = None
        for start in range(0, tokens.shape[1], PREFILL_CHUNK):
            chunk = tokens[:, start : start + PREFILL_CHUNK]
            hidden = self.forward(cache, chunk, [start] * len(chunk), first_row)
        assert hidden is not None, "an empty sequence has no last token"
        return hidden

    def forward(self, cache: RowCache, tokens: Tensor, starts: Sequence[int], first_row: int = 0) -> Tensor:
        """Feed tokens (R, Q) to rows `first_row` …, row r from `starts[r]` on; the last hidden states (R, H)."""
        n_new = tokens.shape[1]
        assert max(starts) + n_new <= cache.capacity, "a row is full"
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(n_new, device=self.device)
        output = self.model.model(
            input_ids=tokens,
            position_ids=positions,
            use_cache=False,
            row_cache=cache,
            row_runs=_Run.plan(starts, first_row, n_new, self.device),
        )
        return output.last_hidden_state[:, -1]


def _attend(
    module: LlamaAttention,
    query: Tensor,  # (R, heads, Q, head_dim)
    key: Tensor,  # (R, kv_heads, Q, head_dim)
    value: Tensor,
    attention_mask: None,
    row_cache: RowCache,
    row_runs: list[_Run],
    scaling: float,
    **_: object,  # what transformers passes to every attention: dropout, position ids, …
) -> tuple[Tensor, None]:
    """Store the new keys and values, then let each run of rows read its live keys and no others."""
    keys, values = row_cache.keys[module.layer_idx], row_cache.values[module.layer_idx]
    outputs = []
    for run in row_runs:
        live = run.start + query.shape[2]
        keys[run.rows, :, run.start : live] = key[run.batch]
        values[run.rows, :, run.start : live] = value[run.batch]
        k, v = keys[run.rows, :, :live], values[run.rows, :, :live]
        outputs.append(_grouped_attention(query[run.batch], k, v, run.mask, scaling))
    return torch.cat(outputs), None


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of (R, heads, Q, D) over (R, kv_heads, L, D) as (R, Q, heads, D), without copying a shared head.

    The queries that share a key-value head are laid side by side as more queries of that head:
    (R, kv_heads · group, Q, D) -> (R, kv_heads, group · Q, D).
    """
    n_rows, n_heads, n_new, head_dim = query.shape
    kv_heads = key.shape[1]
    group = n_heads // kv_heads
    folded = query.reshape(n_rows, kv_heads, group * n_new, head_dim)
    folded_mask = None if mask is None else mask.repeat(group, 1)
    output = functional.scaled_dot_product_attention(folded, key, value, attn_mask=folded_mask, scale=scaling)
    return output.reshape(n_rows, n_heads, n_new, head_dim).transpose(1, 2)


AttentionInterface.register(ATTENTION, _attend)
