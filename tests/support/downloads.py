"""Downloads of a model's files in processes of their own, and what tests ask of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from inference import catalog
from inference.catalog import Model, ModelFiles
from inference.errors import DownloadError
from inference.weights.download import PARTS, DownloadProcess
from tests.support.hub_server import HubServer

EN_COT = catalog.find("en-cot")
ZH_COT = catalog.find("zh-cot")  # not pinned: its default branch is resolved
STAGE_1 = ZH_COT.stage1.name
SECONDS = 60.0
UNWANTED = "README.md"


def process(model: Model, cache: Path, local: Path | str | None = None, force: bool = False) -> DownloadProcess:
    return DownloadProcess(model, cache, local, force=force, first_wait_s=0.01)


def refusal(model: Model, cache: Path, local: Path | str | None = None) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        process(model, cache, local).run()
    return caught.value


def assert_whole(hub: HubServer, model: Model, files: ModelFiles) -> None:
    """Every needed file is there, byte for byte, and nothing else."""
    for part in PARTS:
        repository, folder = getattr(model, part), getattr(files, part)
        wanted = {name: path.read_bytes() for name, path in hub.files(repository.name).items() if name != UNWANTED}
        here = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert here == wanted


class Progress:
    """Notes what is reported."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []

    def __call__(self, event: Mapping[str, object]) -> None:
        self.events.append(dict(event))

    def of(self, repository: str, field: str) -> list[object]:
        return [event[field] for event in self.events if event["repository"] == repository]

    def waits(self) -> list[object]:
        return [event["waiting"] for event in self.events if "waiting" in event]


def command(cache: Path, model: str = "zh-cot") -> list[str]:
    return [sys.executable, "-m", "inference.weights.download", "--model", model, "--cache", str(cache)]


def run_module(cache: Path, model: str, *more: str) -> tuple[int, list[dict[str, object]]]:
    """Exit code, and every line of standard output as JSON."""
    done = subprocess.run([*command(cache, model), *more], stdout=-1, stdin=subprocess.DEVNULL, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]
