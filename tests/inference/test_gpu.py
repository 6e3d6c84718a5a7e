"""Whether a machine has a GPU, by the files of its devices and what the environment says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inference.gpu import is_missing, warning


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine with two GPUs."""
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / "dev" / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("device", "visible", "missing"),
    [
        ("auto", None, False),
        ("cuda:1", None, False),
        ("cpu", None, True),
        ("auto", "", True),
        ("cuda", " ", True),
        ("auto", "-1", True),
        ("auto", "none", True),
        ("auto", "0,1", False),
        ("auto", "GPU-5ebe9f43", False),
        ("auto", "MIG-5ebe9f43", False),
    ],
)
def test_a_gpu_counts_where_the_settings_allow_it(
    machine: Path, device: str, visible: str | None, missing: bool
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert is_missing(device, environment, machine) == missing


@pytest.mark.parametrize(
    ("file", "missing"), [("nvidia-uvm", True), ("nvidiactl", True), ("null", True), ("dxg", False)]
)
def test_a_machine_is_known_by_its_devices(tmp_path: Path, file: str, missing: bool) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / file).touch()
    assert is_missing("auto", {}, tmp_path) == missing
    assert is_missing("cuda", {}, tmp_path) == missing


def test_the_warning_tells_the_size_and_what_a_cpu_takes() -> None:
    text = warning("en-cot", 16_210_000_000)
    assert text.startswith("en-cot: 16.2 GB of weights are downloaded")
    assert all(word in text for word in ("no GPU", "hour", "estimate"))


def test_asking_imports_no_torch() -> None:
    program = "import sys, inference.gpu; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
