"""Steps of fixed shape compute what the plain ones compute, whoever rests in the rows beside, and are dropped if not.

Here they run as they are; on a GPU the same steps are compiled and recorded as CUDA graphs.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inference.engine.cuda_graphs import GraphRecorder, GraphRecordings, batch_sizes_up_to
from inference.engine.sampling import Sampling
from inference.engine.stage1 import Composition, Stage1Settings
from inference.engine.stage1_batch import Stage1Batch
from inference.engine.stage2 import Piece
from inference.engine.stage2_batch import Stage2Batch
from inference.errors import EngineError
from inference.models import llama as room
from inference.models.llama import Llama, Row, StaticRows
from inference.text.prompt import Prompt
from inference.vocabulary import CODEBOOK_SIZE, XCODEC_ID
from tests.support.language_models import own_network, parity_llama, seeded
from tests.support.stages import compose, upsample

# Without a compiler torch says that its flexible attention is slow, which is no fault here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]
CPU = torch.device("cpu")
SHORT = 1_024  # positions; what is read of a cache is its whole length without a compiler


def short_llama(stage: str) -> Llama:
    """The parity network with a shorter memory."""
    return Llama(own_network(stage, max_position_embeddings=SHORT))


@pytest.fixture(scope="module")
def composer() -> Llama:
    return short_llama("stage1")


@pytest.fixture(scope="module")
def upsampler() -> Llama:
    return parity_llama("stage2")


def silent(*_: int) -> None:
    """A report that nobody reads."""


def a_song(seed: int, context: int) -> Composition:
    """One that differs from the others in everything that could leak from one to another."""
    dice = random.Random(seed)
    segments = [(*dice.choices(range(32_000), k=dice.randrange(5, 60)), XCODEC_ID) for _ in range(2)]
    settings = Stage1Settings(
        Sampling(
            temperature=dice.choice([0.0, 0.8, 1.3]),
            top_k=dice.choice([0, 5, 50]),
            top_p=dice.choice([0.5, 0.93, 1.0]),
        ),
        guidance_scale=dice.choice([(1.5, 1.2), (1.0, 2.0)]),
        max_new_tokens=dice.randrange(20, 50),
        min_new_tokens=10,
    )
    return Composition(Prompt("", tuple(segments), (0, 0)), settings, seed, context)


def test_static_rows_equal_plain_rows(composer: Llama) -> None:
    cache, other = composer.new_cache(4, 300), composer.new_cache(2, 100)
    histories = [torch.randint(83_968, (1, n), generator=seeded(n)) for n in (200, 127, 1, 30)]
    rows: list[Row] = []
    for place, ids in zip((cache, cache, cache, other), histories, strict=True):
        rows.append(place.take())
        composer.prefill([rows[-1]], ids)
    tokens = torch.randint(83_968, (4, 2), generator=seeded(1))
    with torch.inference_mode(), room.kept_length(rows):
        expected = composer.forward(rows, tokens)
    static_rows = [
        StaticRows(cache, torch.tensor([*(row.length for row in rows[:3]), 0])),
        StaticRows(other, torch.tensor([rows[3].length])),
    ]
    with torch.inference_mode():
        found = composer.static_forward(static_rows, torch.cat([tokens[:3], tokens[:1], tokens[3:]]))
    torch.testing.assert_close(found[[0, 1, 2, 4]], expected, rtol=1e-5, atol=1e-5)


def test_a_static_layer_compiles_whole_and_once_for_all_layers(composer: Llama) -> None:
    """No wait for the device and no shape that depends on a length: else the compiler would have to break the step."""
    llama = short_llama("stage1")
    variants = []

    def counted(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        variants.append(module)
        return module.forward

    llama._layer = torch.compile(room._layer, fullgraph=True, dynamic=False, backend=counted)
    cache = llama.new_cache(3, 300)
    for ids in (torch.randint(83_968, (1, n), generator=seeded(n)) for n in (140, 9)):
        llama.prefill([cache.take()], ids)
    for lengths in ([140, 9], [141, 10]):
        static_rows = [StaticRows(cache, torch.tensor(lengths))]
        tokens = torch.randint(83_968, (2, 1), generator=seeded(3))
        with torch.inference_mode():
            compiled = llama.static_forward(static_rows, tokens)
            plain = composer.static_forward(static_rows, tokens)
        torch.testing.assert_close(compiled, plain)
    assert llama.config.num_hidden_layers == 2
    assert len(variants) == 1


def test_a_step_is_compiled_for_as_many_shapes_as_there_are_buckets(composer: Llama) -> None:
    llama = short_llama("stage1")
    llama.compile(backend="eager")
    cache = llama.new_cache(12, 128)
    with torch.inference_mode():
        for rows in range(1, 13):
            static_rows, tokens = [StaticRows(cache, torch.zeros(rows, dtype=torch.long))], torch.full((rows, 1), 7)
            torch.testing.assert_close(
                llama.static_forward(static_rows, tokens), composer.static_forward(static_rows, tokens)
            )


class NothingWaits(TorchDispatchMode):
    """Refuses what a CUDA graph would: asking the device for a value, or bringing it one from the program."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in func.name() for name in self.REFUSED), f"{func.name()} waits for the device"
        indices = args[1] if func.name() in ("aten::index.Tensor", "aten::index_put_") else ()
        assert not any(index is not None and index.dtype == torch.bool for index in indices), "a mask has no fixed size"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_nothing_in_a_step_waits_for_the_device(stage: str) -> None:
    """Its layers aside, which the compiler has checked."""
    llama = short_llama(stage) if stage == "stage1" else parity_llama(stage)
    llama._layer = lambda layer, hidden, turns, static_rows: hidden
    recorder = GraphRecorder.on(CPU)
    recorded = (Stage1Batch if stage == "stage1" else Stage2Batch)(llama, 2, recorder).recorded
    assert recorded
    with torch.inference_mode(), NothingWaits():
        recorded._step(2)
    with pytest.raises(AssertionError, match="waits"), NothingWaits():
        torch.ones(1).item()


def test_songs_at_random_arrivals_draw_what_they_draw_alone(composer: Llama) -> None:
    alone = []
    for seed in range(6):
        song = a_song(seed, composer.context)
        compose(composer, song, silent)
        alone.append(song.sections)
    batch = Stage1Batch(composer, max_songs=4, recorder=GraphRecorder.on(CPU))
    songs = [a_song(seed, composer.context) for seed in range(6)]
    dice, waiting = random.Random(2), list(songs)
    while not all(song.finished for song in songs):
        if waiting and batch.n_free and dice.random() < 0.5:
            batch.join(waiting.pop(0))
        batch.step()
    assert batch.recorded and not batch.recorded.recordings.failure
    assert set(batch.recorded.recordings.seconds) == {1, 2, 4}
    assert [song.sections for song in songs] == alone


def test_pieces_at_random_arrivals_are_as_if_alone(upsampler: Llama) -> None:
    tracks = [torch.randint(CODEBOOK_SIZE, (n,), generator=seeded(n)) for n in (9, 14, 3)]
    alone = [upsample(upsampler, [track], silent)[0] for track in tracks]
    together = upsample(upsampler, tracks, silent, max_rows=2, recorder=GraphRecorder.on(CPU))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_step_that_computes_other_numbers_is_not_used(
    composer: Llama, upsampler: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = a_song(1, composer.context)
    compose(composer, plain, silent)
    track = torch.randint(CODEBOOK_SIZE, (5,), generator=seeded(4))
    codes = upsample(upsampler, [track], silent)[0]
    true = Llama.static_forward
    monkeypatch.setattr(Llama, "static_forward", lambda *given: true(*given) * 1.01)
    song, batch = a_song(1, composer.context), Stage1Batch(composer, 1, GraphRecorder.on(CPU))
    batch.join(song)
    while not song.finished:
        batch.step()
    assert batch.recorded and "hidden states differ" in batch.recorded.recordings.failure
    assert song.sections == plain.sections
    assert torch.equal(upsample(upsampler, [track], silent, recorder=GraphRecorder.on(CPU))[0], codes)


def deep_llama() -> Llama:
    """Stage 2 with more layers, in bfloat16, where rounding adds up, and a head whose scores are as good as equal."""
    network = own_network("deep", num_hidden_layers=6, max_position_embeddings=4_096)
    head = network.lm_head.weight
    head.copy_(head[:1] + 0.01 * head)
    return Llama(network.to(torch.bfloat16))


def play_first_frame(llama: Llama, recorder: GraphRecorder | None) -> tuple[Stage2Batch, Piece]:
    batch = Stage2Batch(llama, 1, recorder)
    piece = Piece(torch.randint(CODEBOOK_SIZE, (1,), generator=seeded(8)))
    batch.join(piece)
    batch.step()
    return batch, piece


def test_a_frame_of_other_codes_that_are_as_good_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    llama, true, dice = deep_llama(), Llama.static_forward, seeded(9)

    def rounded_otherwise(*given: Any) -> torch.Tensor:
        hidden = true(*given)
        return hidden * (1 + 0.03 * torch.randn(hidden.shape, generator=dice)).to(hidden.dtype)

    monkeypatch.setattr(Llama, "static_forward", rounded_otherwise)
    _, plain = play_first_frame(llama, None)
    batch, played = play_first_frame(llama, GraphRecorder.on(CPU))
    assert batch.recorded and not batch.recorded.recordings.failure
    assert not torch.equal(played.codes, plain.codes)


@pytest.mark.parametrize("wrong", ["a layer too few", "another token"])
def test_a_wrong_frame_is_not_used_in_half_precision_either(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    llama, true = deep_llama(), Llama.static_forward
    layer, n_layers = llama._layer, llama.config.num_hidden_layers

    def fewer_layers(*given: Any) -> torch.Tensor:
        count = iter(range(n_layers))
        llama._layer = lambda *given: given[1] if next(count) == n_layers - 1 else layer(*given)
        return true(*given)

    def another_token(self: Llama, static_rows: list[StaticRows], tokens: torch.Tensor) -> torch.Tensor:
        return true(self, static_rows, tokens + 1)

    monkeypatch.setattr(Llama, "static_forward", fewer_layers if wrong == "a layer too few" else another_token)
    _, plain = play_first_frame(llama, None)
    batch, played = play_first_frame(llama, GraphRecorder.on(CPU))
    assert batch.recorded and "hidden states differ" in batch.recorded.recordings.failure
    assert torch.equal(played.codes, plain.codes)


def test_a_step_that_cannot_be_recorded_is_done_without(composer: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = a_song(3, composer.context)
    compose(composer, plain, silent)

    def unknown(*_: object) -> torch.Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Llama, "static_forward", unknown)
    song, batch = a_song(3, composer.context), Stage1Batch(composer, 1, GraphRecorder.on(CPU))
    batch.join(song)
    while not song.finished:
        batch.step()
    assert batch.recorded and "no compiler" in batch.recorded.recordings.failure
    assert song.sections == plain.sections


def test_a_bucket_for_which_memory_runs_out_is_done_without_and_no_other() -> None:
    def step(batch_size: int) -> None:
        if batch_size == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    recordings = GraphRecordings("step", step, batch_sizes_up_to(8), GraphRecorder.on(CPU))
    assert [recordings.prepare(batch_size) for batch_size in (1, 4, 8, 4)] == [True, False, True, False]
    assert recordings.missing == (2,) and list(recordings.skipped) == [4] and not recordings.failure


def test_numbers_that_are_none_are_noticed_in_a_window(upsampler: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Stage2Batch(upsampler, 1, GraphRecorder.on(CPU))
    batch.join(Piece(torch.randint(CODEBOOK_SIZE, (8,), generator=seeded(6))))
    batch.step()
    true = Llama.static_forward
    monkeypatch.setattr(Llama, "static_forward", lambda *given: true(*given) * torch.nan)
    with pytest.raises(EngineError, match="non-finite"):
        batch.step()


def test_few_buckets_serve_every_number_of_rows() -> None:
    assert batch_sizes_up_to(12) == (1, 2, 4, 8, 12)
    assert batch_sizes_up_to(8) == (1, 2, 4, 8)
    assert batch_sizes_up_to(8, only_one=True) == (8,)
    recordings = GraphRecordings("step", lambda batch_size: None, batch_sizes_up_to(12), GraphRecorder.on(CPU))
    assert [recordings.batch_size(rows) for rows in (1, 3, 9, 12)] == [1, 4, 12, 12]
