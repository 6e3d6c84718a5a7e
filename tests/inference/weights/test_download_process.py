"""The process of a download: cancelled, killed, one of two, and what it prints."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from inference import catalog
from inference.errors import DownloadError
from inference.weights.download import fetch
from paths import cache_folder
from tests.support.downloads import (
    EN_COT,
    SECONDS,
    ZH_COT,
    Progress,
    assert_whole,
    command,
    process,
    refusal,
    run_module,
)
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow

KILLS = 15


# -- the process


def test_a_cancelled_download_ends_and_is_continued(hub: HubServer, tmp_path: Path) -> None:
    held = hub.fault("model-00001", effect="hold")
    running = process(ZH_COT, tmp_path)
    errors: list[DownloadError] = []

    def run() -> None:
        try:
            running.run()
        except DownloadError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert held.reached.wait(SECONDS)  # in the middle of a file
    running.cancel()
    thread.join(SECONDS)
    assert [(str(error), error.reason) for error in errors] == [("the download was cancelled", "cancelled")]
    held.release()
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())


def test_a_download_cancelled_before_it_began_does_not_begin(hub: HubServer, tmp_path: Path) -> None:
    running = process(ZH_COT, tmp_path)
    running.cancel()
    with pytest.raises(DownloadError, match="cancelled"):
        running.run()
    assert hub.count() == 0


def test_the_process_ends_when_its_parent_is_gone(hub: HubServer, tmp_path: Path) -> None:
    held = hub.fault("model-00001", effect="hold")
    with subprocess.Popen([*command(tmp_path), "--end-with-stdin"], stdin=-1, stdout=-1) as child:
        assert held.reached.wait(SECONDS)
        assert child.stdin is not None
        child.stdin.close()  # what the system does for a parent that died
        assert child.wait(SECONDS) == 1


def test_a_second_download_waits_for_the_first(hub: HubServer, tmp_path: Path) -> None:
    held = hub.fault("model-00001", effect="hold")
    both = [Progress(), Progress()]
    threads = [threading.Thread(target=process(EN_COT, tmp_path).run, args=(progress,)) for progress in both]
    threads[0].start()
    assert held.reached.wait(SECONDS)
    threads[1].start()
    deadline = time.monotonic() + SECONDS
    while not both[1].waits() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    held.release()
    for thread in threads:
        thread.join(SECONDS)
    assert "another process fetches" in str(both[1].waits())
    assert hub.count("model-00001", "GET") == 1


def blobs(tmp_path: Path, suffix: str = "") -> list[Path]:
    return [path for path in (tmp_path / "hf").rglob("*") if path.parent.name == "blobs" and path.suffix == suffix]


def test_killed_at_any_moment_the_next_run_completes(hub: HubServer, tmp_path: Path) -> None:
    chance = random.Random(0)
    hub.fault("/resolve/", effect="slow", times=None)
    for _ in range(KILLS):
        lines = chance.randrange(25)  # of progress, before the end
        with subprocess.Popen(command(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(lines):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
    hub.heal()
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())
    assert blobs(tmp_path, ".partial") == []


def test_what_other_programs_left_is_removed_unless_they_still_run(hub: HubServer, tmp_path: Path) -> None:
    files = process(EN_COT, tmp_path).run()
    blob = (files.stage2 / "model.safetensors").resolve()
    stale = blob.with_name("0123.abcd.incomplete")
    stale.touch()
    running = blob.with_name("4567.abcd.incomplete")
    running.touch()
    lock = tmp_path / "hf/hub/.locks" / blob.parent.parent.name / "4567.lock"
    blob.unlink()
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()  # now it holds the lock
        process(EN_COT, tmp_path).run()
    assert not stale.exists() and running.exists()


def test_every_line_is_json_and_the_last_names_the_files(hub: HubServer, tmp_path: Path) -> None:
    code, events = run_module(tmp_path, "zh-cot")
    assert code == 0
    assert {event["event"] for event in events[:-1]} == {"progress"}
    files = events[-1]["files"]
    assert isinstance(files, dict) and sorted(files) == ["codec", "model", "revision", "stage1", "stage2"]
    code, events = run_module(tmp_path, "zh-cot", "--force")
    assert code == 0 and {event["event"] for event in events[:-1]} == {"verifying"}


def test_an_error_is_a_line_and_an_exit_code(hub: HubServer, tmp_path: Path) -> None:
    code, events = run_module(tmp_path, "nobody/nothing")
    assert code == 1
    last = events[-1]
    assert (last["event"], last["error"], last["reason"]) == ("error", "DownloadError", "no_repository")
    code, events = run_module(tmp_path, "nonsense")
    assert (code, events[-1]["error"]) == (1, "UnknownModel")


def test_importing_it_imports_neither_torch_nor_the_hub() -> None:
    program = (
        "import sys, inference.weights.download; sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# -- without the Hub


def test_the_tiny_model_is_made_in_the_cache(tmp_path: Path) -> None:
    files = process(catalog.find("tiny"), tmp_path).run()
    assert files.model == "tiny" and files.stage1.is_relative_to(tmp_path)
    assert files == fetch(catalog.find("tiny"), tmp_path)


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = refusal(catalog.find("tiny"), tmp_path / "file" / "cache")
    assert error.reason == "not_writable" and "cannot be written" in str(error)


class TestCacheFolder:
    HOME: ClassVar = Path("/home/someone")

    @pytest.fixture(autouse=True)
    def home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(self.HOME))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def test_is_in_the_home_folder(self) -> None:
        assert cache_folder() == self.HOME / ".cache" / "yue-server"

    def test_follows_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_folder() == Path("/somewhere/yue-server")

    def test_ignores_a_relative_path_as_the_standard_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "here")
        assert cache_folder() == self.HOME / ".cache" / "yue-server"
