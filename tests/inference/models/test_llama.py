"""Rows of different lengths take a step together, and each is what the plain network makes of it alone."""

from __future__ import annotations

import pytest
import torch

from inference.models import llama as room
from inference.models.llama import Llama, RowCache
from tests.support.language_models import parity_llama, parity_network, seeded

VOCABULARY = 83_968


@pytest.fixture(scope="module")
def llama() -> Llama:
    return parity_llama("stage1")


def tokens(n: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, n), generator=seeded(seed))


def fed(llama: Llama, cache: RowCache, ids: torch.Tensor) -> tuple[room.Row, torch.Tensor]:
    row = cache.take()
    return row, llama.prefill([row], ids)


def test_a_row_equals_the_plain_network(llama: Llama) -> None:
    ids = tokens(40, 1)
    row, hidden = fed(llama, llama.new_cache(1, 64), ids[:, :30])
    for position in range(30, 40):
        hidden = llama.forward([row], ids[:, position, None])
    expected = parity_network("stage1")(ids).logits[:, -1]
    torch.testing.assert_close(llama.logits(hidden), expected, rtol=1e-5, atol=1e-5)
    assert row.length == 40


def test_a_row_has_the_same_bits_whoever_is_beside_it(llama: Llama) -> None:
    histories = [tokens(n, n) for n in (5, 17, 17, 1, 30, 8, 2)]
    alone = []
    for ids in histories:
        row, _ = fed(llama, llama.new_cache(1, 64), ids)
        alone.append(llama.logits(llama.forward([row], torch.tensor([[7, 8]]))))
    for together in ((0, 1), (1, 2, 3), (6, 5, 4, 3, 2, 1, 0)):
        cache = llama.new_cache(len(histories), 64)
        rows = [fed(llama, cache, histories[i])[0] for i in together]
        logits = llama.logits(llama.forward(rows, torch.tensor([[7, 8]]).expand(len(rows), -1)))
        for i, row_logits in zip(together, logits, strict=True):
            assert torch.equal(row_logits, alone[i][0])


def test_a_long_prompt_read_in_chunks_equals_one_read_whole(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens(50, 2)
    whole = fed(llama, llama.new_cache(1, 64), ids)[1]
    monkeypatch.setattr(room, "PREFILL_CHUNK", 16)
    torch.testing.assert_close(fed(llama, llama.new_cache(1, 64), ids)[1], whole, rtol=1e-5, atol=1e-5)


def test_some_ids_logits_are_those_of_all(llama: Llama) -> None:
    hidden = torch.randn(3, 64, generator=seeded(3))
    torch.testing.assert_close(llama.logits(hidden, range(100, 200)), llama.logits(hidden)[:, 100:200])


def test_the_lowest_free_row_is_taken_and_used_anew(llama: Llama) -> None:
    cache = llama.new_cache(3, 8)
    rows = [cache.take() for _ in range(3)]
    assert [row.index for row in rows] == [0, 1, 2]
    cache.give_back(rows[2])
    cache.give_back(rows[0])
    assert cache.n_free == 2
    assert (cache.take().index, cache.take().index) == (0, 2)


def test_a_row_knows_how_much_memory_it_takes(llama: Llama) -> None:
    cache = llama.new_cache(1, 100)
    assert llama.cache_bytes(100) == sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
