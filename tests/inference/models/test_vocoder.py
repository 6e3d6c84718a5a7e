"""Vocos: parity with the recorded numbers, and checkpoints that are small or wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.errors import CheckpointError
from inference.models import vocoder
from inference.tiny.checkpoints import fabricate
from inference.vocabulary import N_CODEBOOKS, TRACKS, VOCODER_HOP

CPU = torch.device("cpu")
N_FFT = 3_528
SMALL_WIDTH = 16
SMALL_IN_WIDTH = 24
SMALL_HIDDEN_WIDTH = 32
SMALL_N_FFT = 2 * VOCODER_HOP
SMALL_LAYERS = 2


def fabricated(track: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    tensors = {name: fabricate(f"{track}.{name}", shape) for name, shape in shapes.items()}
    return tensors | {"head.istft.window": torch.hann_window(shapes["head.istft.window"][0])}


@pytest.fixture(scope="session")
def shapes(parity_dir: Path) -> Mapping[str, Sequence[int]]:
    return json.loads((parity_dir / "vocos_keys.json").read_text())


@pytest.fixture
def small_tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """A narrower Vocos of fewer layers."""
    lengths = {
        512: SMALL_WIDTH,
        1_024: SMALL_IN_WIDTH,
        1_536: SMALL_HIDDEN_WIDTH,
        N_FFT: SMALL_N_FFT,
        N_FFT + 2: SMALL_N_FFT + 2,
    }
    dropped = tuple(f"backbone.convnext.{layer}." for layer in range(SMALL_LAYERS, 8))
    small = {
        name: [lengths.get(length, length) for length in shape]
        for name, shape in shapes.items()
        if not name.startswith(dropped)
    }
    return fabricated("vocal", small)


def load(folder: Path, tensors: Mapping[str, torch.Tensor]) -> vocoder.Vocos:
    path = folder / "decoder.pth"
    torch.save(dict(tensors), path)
    return vocoder.load(path, CPU)


@pytest.mark.parametrize("track", TRACKS)
def test_a_track_is_voiced_as_recorded(
    tmp_path: Path, parity_dir: Path, shapes: Mapping[str, Sequence[int]], track: str
) -> None:
    with np.load(parity_dir / "audio.npz") as numbers:
        codes, expected = numbers[f"{track}_codes"], torch.from_numpy(numbers[f"{track}_44k"])
    books = [fabricate(f"xcodec.quantizer.vq.layers.{k}._codebook.embed", (1_024, 1_024)) for k in range(N_CODEBOOKS)]
    embeddings = sum(book[torch.from_numpy(row).long()] for book, row in zip(books, codes, strict=True)).T  # (1024, T)
    waveform = load(tmp_path, fabricated(track, shapes))(embeddings)
    assert waveform.dtype == torch.float32
    torch.testing.assert_close(waveform, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 50])
def test_every_frame_becomes_882_samples(tmp_path: Path, small_tensors: dict[str, torch.Tensor], n_frames: int) -> None:
    waveform = load(tmp_path, small_tensors)(fabricate("embeddings", (SMALL_IN_WIDTH, n_frames)))
    assert waveform.shape == (VOCODER_HOP * n_frames,)
    assert waveform.isfinite().all() and waveform.abs().max() > 0


def test_a_huge_magnitude_is_held(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    small_tensors["head.out.bias"][: SMALL_N_FFT // 2 + 1] = 1_000.0  # exp of it is infinite
    assert load(tmp_path, small_tensors)(torch.zeros(SMALL_IN_WIDTH, 4)).isfinite().all()


def test_a_missing_tensor_is_named(tmp_path: Path, small_tensors: dict[str, torch.Tensor]) -> None:
    del small_tensors["head.out.weight"]
    with pytest.raises(CheckpointError, match=r"head\.out\.weight is missing"):
        load(tmp_path, small_tensors)


@pytest.mark.parametrize("name", ["backbone.convnext.1.dwconv.bias", "head.istft.window"])
def test_a_misshapen_tensor_is_named(tmp_path: Path, small_tensors: dict[str, torch.Tensor], name: str) -> None:
    small_tensors[name] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path, small_tensors)


def test_a_window_that_is_no_periodic_hann_window_is_refused(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor]
) -> None:
    small_tensors["head.istft.window"] = torch.hann_window(SMALL_N_FFT, periodic=False)
    with pytest.raises(CheckpointError, match="not the periodic Hann window"):
        load(tmp_path, small_tensors)


@pytest.mark.parametrize("n_rows", [VOCODER_HOP, SMALL_N_FFT, SMALL_N_FFT + 3])
def test_windows_that_leave_gaps_are_refused(
    tmp_path: Path, small_tensors: dict[str, torch.Tensor], n_rows: int
) -> None:
    small_tensors["head.out.weight"] = torch.zeros(n_rows, SMALL_WIDTH)
    with pytest.raises(CheckpointError, match=rf"head\.out\.weight has {n_rows} rows"):
        load(tmp_path, small_tensors)
