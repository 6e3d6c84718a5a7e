"""Runs a LLaMA over rows of different lengths, on preallocated KV caches, without padding.

Independent of what the tokens mean and how they are sampled. `inference/models/llama_network.py` has the layers; the
attention between their halves, which writes to and reads from these caches, is here.

A row is one sequence. The next token of each row has its own position, so a row of 400 tokens and a row of one token
can take a step together:

    row 0   k k k k k k k k q        length 8, reads 9 keys
    row 1   k q                      length 1, reads 2 keys

There are two kinds of step. `forward` takes any rows, whose lengths the host knows. `static_forward` takes the first
rows of a cache, used or not, whose lengths only the device knows: its shapes never change and it never waits for the
device, so it can be compiled once and captured as a CUDA graph.

Letters in shapes:

    R   rows                              H   hidden size
    Q   new tokens of each row            D   size of a head (head_dim)
    T   tokens of a whole sequence        L   keys that are read (row length + Q)
    V   vocabulary
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from inference.models.llama_network import DecoderLayer, LlamaConfig, LlamaNetwork

BLOCK_TOKENS = 128  # the block size of the attention in static steps; capacities are multiples of it
PREFILL_CHUNK = 2_048  # tokens per forward pass; bounds the memory for the attention of a long prompt
MAX_COMPILED_SHAPES = 64  # the shapes for which static steps may be compiled
# With four rows or more, a float32 matrix product on a CPU computes the same bits for a row, however many rows there
# are. With fewer rows it takes other code paths. So fewer rows are padded, and no row depends on its neighbours.
MIN_EXACT_ROWS = 4


@dataclass(eq=False)
class Row:
    """One sequence: its cache, its index there and its length in tokens. `forward` increases the length."""

    cache: RowCache
    index: int
    length: int = 0


class RowCache:
    """A KV cache for `rows` sequences: for each layer, keys and values (rows, kv_heads, capacity, D)."""

    def __init__(self, config: LlamaConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self.capacity = _whole_blocks(capacity)
        shape = (rows, config.num_key_value_heads, self.capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        # Zeros, because a static step multiplies all entries after a row's last token by 0, and 0 times NaN is NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self._free = list(range(rows))

    @property
    def n_free(self) -> int:
        """How many more rows can be taken."""
        return len(self._free)

    def take(self) -> Row:
        """The lowest free row, empty. Neighbouring rows can share work."""
        assert self._free, "no row is free"
        return Row(self, heapq.heappop(self._free))

    def give_back(self, row: Row) -> None:
        """Free a row."""
        assert row.cache is self and row.index not in self._free, "a row is given back once, to its own cache"
        heapq.heappush(self._free, row.index)


@dataclass(frozen=True)
class StaticRows:
    """The first rows of a cache in a static step, used or not, with their lengths on the device.

    The step writes the new keys and values of each row from position `lengths` (R,) int64 on, and keeps the lengths.
    """

    cache: RowCache
    lengths: Tensor

    def of_layer(self, index: int) -> _LayerRows:
        """One layer's keys and values of these rows, as views."""
        rows = len(self.lengths)
        return _LayerRows(self.cache.keys[index][:rows], self.cache.values[index][:rows], self.lengths)


class _LayerRows(NamedTuple):
    """One layer's caches in a static step."""

    keys: Tensor  # (R, kv_heads, capacity, D)
    values: Tensor  # (R, kv_heads, capacity, D)
    lengths: Tensor  # (R,)


@dataclass(frozen=True)
class _Run:
    """Neighbouring rows of one cache with equal lengths, which share one attention call."""

    cache: RowCache
    batch: slice  # in the tokens of this forward pass
    rows: slice  # in the cache
    start: int  # position of the first new token
    mask: Tensor | None  # (Q, start + Q), True where a query may attend; None: everywhere


class Llama:
    """A loaded language model. Results are on the model's device, in its dtype."""

    def __init__(self, model: LlamaNetwork) -> None:
        self.model = model
        self.config = model.config
        self.device = model.device
        self.dtype = model.lm_head.weight.dtype
        self._min_rows = MIN_EXACT_ROWS if self.device.type == "cpu" else 1
        self._layer: Callable[..., Tensor] = _layer

    @property
    def context(self) -> int:
        """The size of the context window, in tokens."""
        return self.config.max_position_embeddings

    def new_cache(self, rows: int, capacity: int) -> RowCache:
        """A KV cache for `rows` sequences of up to `capacity` tokens."""
        assert capacity <= self.context, f"capacity {capacity} exceeds the context window of {self.context}"
        return RowCache(self.config, rows, capacity, self.device, self.dtype)

    def cache_bytes(self, capacity: int) -> int:
        """The size of a cache row of `capacity` tokens."""
        elements = 2 * self.config.num_hidden_layers * self.config.num_key_value_heads * self.config.head_dim
        return _whole_blocks(capacity) * elements * self.dtype.itemsize

    def compile(self, backend: str = "inductor") -> None:
        """Compile the layers of static steps. The compiler runs when a step has a new shape."""
        # One compiled function serves all layers, compiled once for each shape: two models, a dozen batch sizes, one or
        # two tokens. The compiler's default limit is lower.
        torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
        # Disables autotuning, which is slow and may choose other kernels at each start.
        from torch._inductor import config as inductor  # slow to import, and only needed here

        if hasattr(inductor.triton, "autotune_pointwise"):
            inductor.triton.autotune_pointwise = False
        self._layer = torch.compile(_layer, fullgraph=True, dynamic=False, backend=backend)

    def prefill(self, rows: Sequence[Row], tokens: Tensor) -> Tensor:
        """Feed sequences of equal length (R, T) to empty rows, in chunks. Returns the last hidden states (R, H)."""
        assert not any(row.length for row in rows), "prefill requires empty rows"
        hidden = [self.forward(rows, chunk) for chunk in tokens.split(PREFILL_CHUNK, dim=1)]
        return hidden[-1]

    def forward(self, rows: Sequence[Row], tokens: Tensor) -> Tensor:
        """Feed tokens (R, Q) to the rows. Returns the hidden states (R, H) of each row's last token."""
        n_rows, n_new = tokens.shape
        assert n_rows == len(rows), f"{n_rows} rows of tokens for {len(rows)} rows"
        for row in rows:
            capacity = row.cache.capacity
            fits = row.length + n_new <= capacity
            assert fits, f"row {row.index} of length {row.length} has no room for {n_new} more, capacity {capacity}"
        runs = _runs(rows, n_new, self.device)
        padded = self._padded(tokens)
        starts = [row.length for row in rows] + [0] * (len(padded) - n_rows)
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(n_new, device=self.device)
        network = self.model.model
        hidden = network.embed_tokens(padded)
        angles = network.rotary(positions, self.dtype)
        for index, layer in enumerate(network.decoder_layers):
            query, key, value = layer.attention_inputs(hidden, angles)
            hidden = layer.finish(hidden, _attend_in_runs(query, key, value, runs, index, layer.scaling))
        for row in rows:
            row.length += n_new
        return network.norm(hidden)[:n_rows, -1]

    def static_forward(self, static_rows: Sequence[StaticRows], tokens: Tensor) -> Tensor:
        """Feed tokens (R, Q) to the rows of `static_rows`, cache after cache. Returns the last hidden states (R, H)."""
        network = self.model.model
        starts = torch.cat([part.lengths for part in static_rows])
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=self.device)
        hidden = network.embed_tokens(tokens)
        angles = network.rotary(positions, self.dtype)
        for index, layer in enumerate(network.decoder_layers):
            hidden = self._layer(layer, hidden, angles, [part.of_layer(index) for part in static_rows])
        return network.norm(hidden)[:, -1]

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        """The logits (R, V) of hidden states (R, H), or only those of a range of ids (R, ids)."""
        head = self.model.lm_head.weight
        if ids is not None:
            return functional.linear(self._padded(hidden), head[ids.start : ids.stop])[: len(hidden)]
        if self.device.type != "cpu":
            return functional.linear(hidden, head)
        # On a CPU, computing W @ x.T is up to 4 times faster; tiles of 4 rows keep results bit-exact.
        tiles = [head @ self._padded(tile).T for tile in hidden.split(MIN_EXACT_ROWS)]
        return torch.cat(tiles, dim=1)[:, : len(hidden)].T.contiguous()

    def _padded(self, rows: Tensor) -> Tensor:
        """The rows (R, …), padded to the number with which the device computes each row as if it were alone."""
        missing = self._min_rows - len(rows)
        return rows if missing <= 0 else torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])


@contextmanager
def kept_length(rows: Sequence[Row]) -> Iterator[None]:
    """Restore the rows' lengths at the end of the block, also after an error.

    To keep the tokens that were fed, the caller increases the lengths; otherwise the next tokens overwrite them.
    """
    lengths = [row.length for row in rows]
    try:
        yield
    finally:
        for row, length in zip(rows, lengths, strict=True):
            row.length = length


def agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """True if hidden states (…, H), computed in two ways, are equal up to rounding.

    `tolerance` is the allowed deviation in half precision, relative to each row's norm.
    """
    allowed = 1e-3 if expected.dtype == torch.float32 else tolerance
    difference = (found.float() - expected.float()).norm(dim=-1)
    return bool((difference <= allowed * expected.float().norm(dim=-1)).all())


def _runs(rows: Sequence[Row], n_new: int, device: torch.device) -> list[_Run]:
    runs, first = [], 0
    for end in range(1, len(rows) + 1):
        row, last = rows[first], rows[end - 1]
        if end < len(rows) and _share(last, rows[end]):
            continue
        mask = None
        if n_new > 1:
            mask = torch.ones(n_new, row.length + n_new, dtype=torch.bool, device=device).tril(diagonal=row.length)
        runs.append(_Run(row.cache, slice(first, end), slice(row.index, last.index + 1), row.length, mask))
        first = end
    return runs


def _share(row: Row, following: Row) -> bool:
    return following.cache is row.cache and following.index == row.index + 1 and following.length == row.length


def _layer(layer: DecoderLayer, hidden: Tensor, angles: tuple[Tensor, Tensor], static_rows: list[_LayerRows]) -> Tensor:
    """One layer of a static step. It must not use the layer's number, or each layer is compiled separately."""
    query, key, value = layer.attention_inputs(hidden, angles)
    return layer.finish(hidden, _attend_static(query, key, value, static_rows, layer.scaling))


def _attend_in_runs(query: Tensor, key: Tensor, value: Tensor, runs: list[_Run], layer: int, scaling: float) -> Tensor:
    """Attention of `query` (R, heads, Q, D) in which each run of rows reads its L live keys only.

    `key` and `value` are (R, kv_heads, Q, D). Returns (R, Q, heads, D).
    """
    n_rows, n_heads, n_new, head_dim = query.shape
    output = query.new_zeros(n_rows, n_new, n_heads, head_dim)
    for run in runs:
        live = run.start + n_new
        keys = run.cache.keys[layer][run.rows, :, :live]
        values = run.cache.values[layer][run.rows, :, :live]
        keys[:, :, run.start :] = key[run.batch]
        values[:, :, run.start :] = value[run.batch]
        output[run.batch] = _grouped_attention(query[run.batch], keys, values, run.mask, scaling)
    return output


def _attend_static(query: Tensor, key: Tensor, value: Tensor, static_rows: list[_LayerRows], scaling: float) -> Tensor:
    """Attention of `query` (R, heads, Q, D) in which each row reads the key blocks that hold its tokens.

    `key` and `value` are (R, kv_heads, Q, D). Returns (R, Q, heads, D).
    """
    n_new = query.shape[2]
    outputs, first = [], 0
    for keys, values, lengths in static_rows:
        n_rows, _, capacity, _ = keys.shape
        batch = slice(first, first + n_rows)
        rows = torch.arange(n_rows, device=keys.device)
        positions = lengths[:, None] + torch.arange(n_new, device=keys.device)
        keys[rows[:, None], :, positions] = key[batch].transpose(1, 2)
        values[rows[:, None], :, positions] = value[batch].transpose(1, 2)
        # Gathered, not sliced: torch 2.13's compiled attention for CPUs reads any slice from the start of the tensor.
        queries = query.index_select(0, rows + first)
        mask = _live_blocks(lengths, n_new, capacity)
        outputs.append(flex_attention(queries, keys, values, block_mask=mask, scale=scaling, enable_gqa=True))
        first += n_rows
    return torch.cat(outputs).transpose(1, 2)


def _live_blocks(lengths: Tensor, n_new: int, capacity: int) -> BlockMask:
    """The block mask for flex_attention: the keys that the new tokens of rows with `lengths` (R,) may read.

    block     0           1           2           3
    keys      k k k k k k k k k k k k q q . . . . . . . .       two new tokens read blocks 0 to 2, and in
                                                                them no key after themselves
    """

    def may_attend(row: Tensor, head: Tensor, new: Tensor, key: Tensor) -> Tensor:
        return key <= lengths[row] + new

    n_blocks = capacity // BLOCK_TOKENS
    live = (lengths + (n_new + BLOCK_TOKENS - 1)) // BLOCK_TOKENS
    every = torch.arange(n_blocks, device=lengths.device, dtype=torch.int32).expand(len(lengths), 1, 1, n_blocks)
    return BlockMask.from_kv_blocks(
        live.to(torch.int32)[:, None, None],
        every.contiguous(),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=may_attend,
        seq_lengths=(n_new, capacity),
        compute_q_blocks=False,
    )


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of (R, heads, Q, D) over (R, kv_heads, L, D) as (R, Q, heads, D), without copying a shared head.

    The queries that share a key-value head are folded into one longer query:
    (R, kv_heads · group, Q, D) -> (R, kv_heads, group · Q, D).
    """
    n_rows, n_heads, n_new, head_dim = query.shape
    kv_heads = key.shape[1]
    group = n_heads // kv_heads
    folded = query.reshape(n_rows, kv_heads, group * n_new, head_dim)
    folded_mask = None if mask is None else mask.repeat(group, 1)
    output = functional.scaled_dot_product_attention(folded, key, value, attn_mask=folded_mask, scale=scaling)
    return output.reshape(n_rows, n_heads, n_new, head_dim).transpose(1, 2)


def _whole_blocks(capacity: int) -> int:
    return -(-capacity // BLOCK_TOKENS) * BLOCK_TOKENS
