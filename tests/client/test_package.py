"""`pip install .` installs the client alone: one package, one command, and none of the server's modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import yue_client
from tests.support.paths import PROJECT

VERSION = yue_client.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md", "docs", "yue_client", "serving", "server.py", "client.py"):
        take = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        take(PROJECT / name, copy / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=copy, check=True, capture_output=True, timeout=120)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_client_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"yue_client-{VERSION}-py3-none-any.whl"
    modules = {f"yue_client/{path.name}" for path in (PROJECT / "yue_client").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"yue_client-{VERSION}.dist-info/METADATA").decode()
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert f"yue_client-{VERSION}.dist-info/licenses/LICENSE" in names
    assert "Requires-Dist" not in metadata and "Requires-Python: >=3.11" in metadata


def test_the_installed_command_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(venv / "bin" / "python"),
        "install",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    asked = {
        "cwd": here,
        "env": {"PATH": str(here)},
        "check": True,
        "capture_output": True,
        "text": True,
        "timeout": 60,
    }
    for command in ([str(venv / "bin" / "yue")], [str(venv / "bin" / "python"), "-m", "yue_client"]):
        assert subprocess.run([*command, "--version"], **asked).stdout == f"yue {VERSION}\n"
        usage = subprocess.run([*command, "sing", "--help"], **asked).stdout
        assert usage.startswith("usage: yue sing --genres TAGS --lyrics TEXT")
    failing = {**asked, "check": False}
    for module in ("server", "client", "storage", "flask", "torch"):
        assert subprocess.run([str(venv / "bin" / "python"), "-c", f"import {module}"], **failing).returncode == 1


def test_the_front_door_of_a_checkout_runs_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "client.py"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"client.py {VERSION}\n"
