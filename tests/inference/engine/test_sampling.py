"""What can be drawn, and how likely, equals the published algorithm's distribution."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inference.engine.sampling import (
    EOA_CANDIDATE,
    N_CANDIDATES,
    Noise,
    Samplers,
    Sampling,
    forbid_end,
    guide,
    penalise,
    seen_candidates,
    token_id,
)
from inference.models.llama import Llama
from inference.vocabulary import EOA_ID, FIRST_CODE_ID
from tests.support.language_models import parity_llama, seeded


def test_distributions_equal_the_published_algorithms(parity_dir: Path) -> None:
    case = json.loads((parity_dir / "stage1_distribution.json").read_text())
    greedy = json.loads((parity_dir / "stage1_greedy.json").read_text())[case["case"]]
    prompt = json.loads((parity_dir / "prompts.json").read_text())[greedy["prompt"]]["segment_prompt_ids"][0]
    steps = {key: value for key, value in case["steps"].items()}
    llama = parity_llama("stage1")
    for key, expected in steps.items():
        step, kind = key.split("/")
        forced = case["forced_tokens"][: int(step)]
        sampler = one(Sampling(top_k=50 if kind == "top_p_top_k" else 0))
        chances, candidates = sampler.probabilities(scores_after(llama, prompt, forced))
        found = {token_id(int(c)): float(p) for c, p in zip(candidates[0], chances[0], strict=True) if p > 0}
        assert sorted(found) == expected["ids"]
        assert [found[i] for i in expected["ids"]] == pytest.approx(expected["probs"], abs=1e-5)


def one(sampling: Sampling) -> Samplers:
    return Samplers([sampling], torch.device("cpu"))


def scores_after(llama: Llama, prompt: list[int], forced: list[int]) -> torch.Tensor:
    branches = [prompt + forced, [prompt[-1], *forced]]
    cache = llama.new_cache(2, len(prompt) + len(forced))
    logits = [llama.logits(llama.prefill([cache.take()], torch.tensor([ids]))) for ids in branches]
    scores = penalise(guide(*logits, 1.5), seen_candidates(branches[0])[None], 1.1)
    return forbid_end(scores, torch.tensor([True]))


def next_noise(noise: Noise) -> torch.Tensor:
    drawn = noise.ahead(1)
    noise.advance(1)
    return drawn


def test_draws_follow_the_probabilities() -> None:
    scores = torch.full((1, N_CANDIDATES), -20.0)
    scores[0, 10:13] = torch.tensor([0.5, 0.3, 0.2]).log()
    sampler, noise, counts = one(Sampling(top_p=1.0)), Noise(3, 50), torch.zeros(3)
    for _ in range(4_000):
        counts[sampler.draw(scores, next_noise(noise)) - 10] += 1
    assert torch.allclose(counts / 4_000, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_noise_depends_on_the_seed_alone() -> None:
    streams = [
        torch.cat([next_noise(noise) for _ in range(150)]) for noise in (Noise(1, 50), Noise(1, 50), Noise(2, 50))
    ]
    assert torch.equal(streams[0], streams[1])
    assert not torch.equal(streams[0], streams[2])
    assert len(streams[0].unique()) > 7_000  # no block is used twice


def test_noise_is_the_same_however_far_one_looks_ahead() -> None:
    whole, stepwise = Noise(1, 50), Noise(1, 50)
    drawn = []
    for looked_at, taken in ((16, 3), (100, 40), (1, 1), (16, 16)):
        drawn.append(stepwise.ahead(looked_at)[:taken])
        stepwise.advance(taken)
    assert torch.equal(torch.cat(drawn), whole.ahead(60))


def test_a_single_candidate_is_left_when_top_p_is_tiny() -> None:
    scores = torch.randn(1, N_CANDIDATES, generator=seeded(4))
    chances, candidates = one(Sampling(top_p=1e-6)).probabilities(scores)
    assert chances[0, 0] == 1.0
    assert candidates[0, 0] == scores.argmax()


def test_temperature_zero_takes_the_likeliest() -> None:
    scores = torch.randn(1, N_CANDIDATES, generator=seeded(5))
    assert one(Sampling(temperature=0)).draw(scores, Noise(0, 50).ahead(1)) == scores.argmax()


def test_a_higher_temperature_flattens_the_distribution() -> None:
    scores = torch.randn(1, N_CANDIDATES, generator=seeded(6))
    cool, warm = (one(Sampling(temperature=t, top_p=1.0)).probabilities(scores)[0][0, 0] for t in (0.5, 2.0))
    assert cool > warm


def test_seen_tokens_become_less_likely_whatever_their_sign() -> None:
    scores, seen = torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[True, True, False]])
    assert penalise(scores, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]


def test_only_codes_count_as_seen() -> None:
    seen = seen_candidates([5, EOA_ID, FIRST_CODE_ID, FIRST_CODE_ID + 1023, FIRST_CODE_ID + 1024])
    assert seen.nonzero().flatten().tolist() == [EOA_CANDIDATE, 1, 1024]


def test_guidance_moves_away_from_the_unconditional_branch() -> None:
    conditional, unconditional = (torch.randn(1, 83_968, generator=seeded(s)) for s in (1, 2))
    plain = guide(conditional, unconditional, 1.0)
    assert torch.allclose(plain, conditional.log_softmax(-1)[:, [EOA_ID, *range(FIRST_CODE_ID, FIRST_CODE_ID + 1024)]])
    assert not torch.allclose(guide(conditional, unconditional, 1.5), plain)


def test_songs_that_draw_together_draw_as_if_alone() -> None:
    scores = torch.randn(3, N_CANDIDATES, generator=seeded(7))
    settings = [Sampling(temperature=0), Sampling(top_k=5, top_p=0.5, temperature=1.7), Sampling(top_k=0, top_p=1.0)]
    noise = torch.ones(3, N_CANDIDATES)
    for row, sampling in zip(noise, settings, strict=True):
        row[: sampling.n_top].exponential_(generator=seeded(8))
    together = Samplers(settings, torch.device("cpu")).draw(scores, noise)
    alone = [
        one(sampling).draw(scores[i : i + 1], noise[i : i + 1, : sampling.n_top]).item()
        for i, sampling in enumerate(settings)
    ]
    assert together.tolist() == alone
