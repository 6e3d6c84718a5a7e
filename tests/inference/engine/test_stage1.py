"""Stage 1 generates the published algorithm's tokens, in every section, with and without a reference or a window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from inference.engine.sampling import Sampling
from inference.engine.stage1 import Composition, Stage1Settings, deinterleave, interleave, truncate_context
from inference.models.llama import Llama
from inference.text.prompt import Prompt
from inference.vocabulary import CODEBOOK_SIZE, EOA_ID, FIRST_CODE_ID
from tests.support.language_models import parity_llama, parity_network
from tests.support.stages import compose

pytestmark = pytest.mark.slow

CASES = ("two_segments", "reference", "window_slicing", "reference_penalised", "window_twice", "natural_end")
# "[start_of_segment]", tokenised on its own by YuE's tokenizer.
START_MARKER = [518, 2962, 29918, 974, 29918, 28192, 29962]


def silent(*_: int) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def llama() -> Llama:
    return parity_llama("stage1")


@pytest.fixture(scope="module")
def greedy(parity_dir: Path) -> dict[str, Any]:
    return json.loads((parity_dir / "stage1_greedy.json").read_text())


def recorded_prompt(parity_dir: Path, name: str, n_segments: int) -> Prompt:
    """A prompt from its recorded ids; the sections' first markers are looked up in the ids."""
    case = json.loads((parity_dir / "prompts.json").read_text())[name]
    segments = tuple(tuple(ids) for ids in case["segment_prompt_ids"][:n_segments])
    starts = tuple(
        max(i for i in range(len(ids)) if list(ids[i : i + len(START_MARKER)]) == START_MARKER) for ids in segments
    )
    return Prompt(head=case["head"], segments=segments, starts=starts)


def generate(llama: Llama, prompt: Prompt, settings: Stage1Settings, seed: int = 0) -> Composition:
    song = Composition(prompt, settings, seed, llama.context)
    compose(llama, song, silent)
    return song


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_equal_the_published_algorithms(
    name: str, llama: Llama, greedy: dict[str, Any], parity_dir: Path
) -> None:
    case = greedy[name]
    settings = Stage1Settings(
        Sampling(temperature=0, repetition_penalty=case.get("repetition_penalty", 1.1)),
        max_new_tokens=case["max_new_tokens"],
        context=case.get("context"),
    )
    if "eoa_gain" in case:
        llama = parity_llama("stage1", case["eoa_gain"])
    song = generate(llama, recorded_prompt(parity_dir, case["prompt"], case["n_segments"]), settings)
    assert song.sections == case["new_tokens"]
    vocal, instrumental = deinterleave(song.sections)
    assert vocal.tolist() == case["vocal"]
    assert instrumental.tolist() == case["instrumental"]
    assert song.shortened == ("context" in case)


def test_every_case_of_the_recorded_tokens_is_checked(greedy: dict[str, Any]) -> None:
    assert set(CASES) == set(greedy)


def short_song(parity_dir: Path) -> tuple[Prompt, Stage1Settings]:
    return recorded_prompt(parity_dir, "two_verses", 2), Stage1Settings(max_new_tokens=110)


def test_the_same_seed_generates_the_same_and_another_generates_another(llama: Llama, parity_dir: Path) -> None:
    prompt, settings = short_song(parity_dir)
    first, again, other = (generate(llama, prompt, settings, seed).sections for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_section_never_ends_before_its_minimum(parity_dir: Path) -> None:
    prompt, settings = short_song(parity_dir)
    song = generate(parity_llama("stage1", eoa_gain=30.0), prompt, settings)
    assert [len(section) for section in song.sections] == [101, 101]
    assert all(section[-1] == EOA_ID for section in song.sections)


def test_every_section_asked_for_is_generated_and_no_other_id_than_a_code_comes(llama: Llama, parity_dir: Path) -> None:
    prompt, settings = recorded_prompt(parity_dir, "four_sections", 4), Stage1Settings(max_new_tokens=100)
    song = generate(llama, prompt, settings)
    assert [len(section) for section in song.sections] == [101] * 4
    assert all(0 <= token - FIRST_CODE_ID < 1024 for section in song.sections for token in section[:-1])


def test_without_guidance_one_branch_runs(llama: Llama, parity_dir: Path) -> None:
    prompt, _ = short_song(parity_dir)
    settings = Stage1Settings(Sampling(temperature=0), guidance_scale=(1.0, 1.0), max_new_tokens=100)
    with_guidance = Stage1Settings(Sampling(temperature=0), max_new_tokens=100)
    assert generate(llama, prompt, settings).sections != generate(llama, prompt, with_guidance).sections


class OnlyCodes(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, -torch.inf)
        codes = slice(FIRST_CODE_ID, FIRST_CODE_ID + CODEBOOK_SIZE)
        masked[:, codes] = scores[:, codes]
        return masked


def test_guidance_off_is_generate_without_a_guidance_scale(llama: Llama, parity_dir: Path) -> None:
    prompt, _ = short_song(parity_dir)
    settings = Stage1Settings(
        Sampling(temperature=0, repetition_penalty=1.1), guidance_scale=(1.0, 1.0), max_new_tokens=100
    )
    one = Prompt(prompt.head, prompt.segments[:1], prompt.starts[:1])
    (section,) = generate(llama, one, settings).sections
    ids = torch.tensor([one.segments[0]])
    expected = parity_network("stage1").generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=100,
        do_sample=False,
        repetition_penalty=1.1,
        logits_processor=LogitsProcessorList([OnlyCodes()]),
        pad_token_id=0,
        eos_token_id=EOA_ID,
    )
    assert section[:100] == expected[0, ids.shape[1] :].tolist()


def test_progress_names_the_section_and_counts_all_tokens(llama: Llama, parity_dir: Path) -> None:
    prompt, settings = short_song(parity_dir)
    reports: list[tuple[int, int]] = []
    song = Composition(prompt, settings, 0, llama.context)
    compose(llama, song, lambda section, tokens: reports.append((section, tokens)))
    assert {section for section, _ in reports} == {1, 2}
    assert reports == sorted(reports)
    assert reports[-1] == (2, sum(len(section) for section in song.sections))


def test_a_report_that_raises_ends_the_song_within_a_few_tokens(llama: Llama, parity_dir: Path) -> None:
    class Stop(Exception):
        pass

    def stop(section: int, tokens: int) -> None:
        raise Stop

    prompt, settings = short_song(parity_dir)
    song = Composition(prompt, settings, 0, llama.context)
    with pytest.raises(Stop):
        compose(llama, song, stop)
    assert len(song.sections[0]) <= 16


def test_an_odd_last_token_is_left_out() -> None:
    codes = [FIRST_CODE_ID + c for c in (1, 2, 3, 4, 5)]
    vocal, instrumental = deinterleave([[*codes, EOA_ID], [*codes[:2], EOA_ID]])
    assert vocal.tolist() == [1, 3, 1]
    assert instrumental.tolist() == [2, 4, 2]


def test_a_window_drops_the_oldest_section_and_keeps_the_head() -> None:
    head, sections = [0, 0], [[1] * 5, [2] * 6, [3] * 7]
    sequence = [*head, *sections[0], *sections[1], *sections[2]]
    starts = [2, 7, 13]
    assert truncate_context(sequence, starts, 20) == sequence
    assert truncate_context(sequence, starts, 19) == head + sections[1] + sections[2]
    assert truncate_context(sequence, starts, 4) == [3] * 4


def test_a_window_with_two_sections_keeps_only_the_last_ids() -> None:
    sequence = [0, 0] + [1] * 5 + [2] * 6
    assert truncate_context(sequence, [2, 7], 12) == sequence[-12:]


def test_reference_tracks_alternate_and_are_cut_to_the_shorter() -> None:
    ids = interleave([torch.tensor([1, 2, 3]), torch.tensor([11, 12])])
    assert [i - FIRST_CODE_ID for i in ids] == [1, 11, 2, 12]
    assert interleave([torch.tensor([4, 5])]) == [FIRST_CODE_ID + 4, FIRST_CODE_ID + 5]
