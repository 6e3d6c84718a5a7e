"""Stage 2 gives the published algorithm's codes, however its rows are batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from inference.models.llama import Llama
from inference.vocabulary import CODEBOOK_SIZE, N_CODEBOOKS, code_ids
from tests.support.language_models import parity_llama, seeded
from tests.support.stages import upsample

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llama() -> Llama:
    return parity_llama("stage2")


@pytest.fixture(scope="module")
def numbers(parity_dir: Path) -> dict[str, np.ndarray]:
    with np.load(parity_dir / "stage2_greedy.npz") as file:
        return dict(file)


def silent(*_: int) -> None:
    """A report that nobody reads."""


def as_ids(codes: torch.Tensor) -> torch.Tensor:
    return codes + torch.tensor([code_ids(k).start for k in range(N_CODEBOOKS)])[:, None]


def test_strict_codes_equal_the_published_algorithms(llama: Llama, numbers: dict[str, np.ndarray]) -> None:
    cases = [key.removesuffix("_cb0") for key in numbers if key.startswith("strict") and key.endswith("_cb0")]
    assert cases
    for case in cases:
        codebook0, expected = (torch.from_numpy(numbers[f"{case}_{what}"]).long() for what in ("cb0", "tokens"))
        for row, codes in zip(expected, upsample(llama, list(codebook0), silent), strict=True):
            assert torch.equal(as_ids(codes), row)


def test_a_whole_track_is_cut_into_rows_and_joined(llama: Llama, numbers: dict[str, np.ndarray]) -> None:
    codebook0 = torch.from_numpy(numbers["track_620_cb0"]).long().reshape(-1)
    expected = torch.from_numpy(numbers["track_620_tokens"]).long().reshape(N_CODEBOOKS, -1)
    for max_rows in (1, 32):
        (codes,) = upsample(llama, [codebook0], silent, max_rows=max_rows)
        assert torch.equal(as_ids(codes), expected)


def test_tracks_of_unequal_length_keep_their_own_codes(llama: Llama) -> None:
    long, short = (torch.randint(CODEBOOK_SIZE, (n,), generator=seeded(n)) for n in (313, 7))
    together = upsample(llama, [short, long], silent)
    alone = [upsample(llama, [track], silent)[0] for track in (short, long)]
    assert [codes.shape for codes in together] == [(8, 7), (8, 313)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_a_track_of_one_frame_works(llama: Llama) -> None:
    (codes,) = upsample(llama, [torch.tensor([5])], silent)
    assert codes.shape == (8, 1)
    assert codes[0, 0] == 5


def test_progress_counts_every_row_and_frame(llama: Llama) -> None:
    reports: list[tuple[int, int]] = []
    track = torch.randint(CODEBOOK_SIZE, (320,), generator=seeded(1))
    upsample(llama, [track, track], lambda rows, frames: reports.append((rows, frames)), max_rows=3)
    assert reports == sorted(reports, key=lambda report: report[1])
    assert reports[-1] == (4, 640)


def test_a_report_that_raises_ends_the_work_within_a_few_frames(llama: Llama) -> None:
    class Stop(Exception):
        pass

    seen: list[int] = []

    def stop(_: int, frames: int) -> None:
        seen.append(frames)
        if frames >= 10:
            raise Stop

    with pytest.raises(Stop):
        upsample(llama, [torch.zeros(300, dtype=torch.long)], stop)
    assert seen[-1] <= 14
