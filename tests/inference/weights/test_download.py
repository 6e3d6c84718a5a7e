"""A model's files come whole from a stand-in for the Hub, and what is here already is verified."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inference import catalog
from inference.catalog import Model
from inference.weights.download import PARTS, DownloadProcess
from tests.support.downloads import (
    EN_COT,
    SECONDS,
    STAGE_1,
    UNWANTED,
    ZH_COT,
    Progress,
    assert_whole,
    process,
    refusal,
)
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 3711\n" % (b"0a" * 32)


# -- from the Hub


def test_three_repositories_are_fetched_as_they_are(hub: HubServer, tmp_path: Path) -> None:
    files = process(ZH_COT, tmp_path).run()
    assert (files.model, files.revision) == ("zh-cot", hub.commit(STAGE_1))
    assert (files.stage2.name, files.codec.name) == (catalog.STAGE_2.revision, catalog.CODEC.revision)
    assert_whole(hub, ZH_COT, files)
    assert hub.count(UNWANTED) == 0


def test_progress_adds_up(hub: HubServer, tmp_path: Path) -> None:
    progress = Progress()
    process(ZH_COT, tmp_path).run(progress)
    repositories = [getattr(ZH_COT, part).name for part in PARTS]
    totals = {name: hub.size_bytes(name, UNWANTED) for name in repositories}
    for name, total in totals.items():
        done = progress.of(name, "bytes_done")
        assert done[0] == 0 and done[-1] == total
        assert set(progress.of(name, "bytes_total")) == {total}
    overall = [event["overall_done"] for event in progress.events]
    assert overall == sorted(overall, key=lambda count: int(str(count)))
    assert {event["overall_total"] for event in progress.events} == {sum(totals.values())} == {overall[-1]}
    assert any(event["bytes_per_second"] for event in progress.events)
    assert progress.events[-1]["seconds_left"] == 0


@pytest.mark.parametrize("model", [EN_COT, ZH_COT], ids=["pinned", "resolved"])
def test_the_next_start_makes_no_request(
    hub: HubServer, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = process(model, tmp_path).run()
    hub.forget()
    assert process(model, tmp_path).run() == first
    assert hub.count() == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert process(model, tmp_path).run() == first


def test_a_revision_that_is_not_pinned_is_asked_for_once(hub: HubServer, tmp_path: Path) -> None:
    process(ZH_COT, tmp_path).run()
    assert hub.count("/revision/") == 1


def test_force_asks_for_the_newest_commit(hub: HubServer, tmp_path: Path) -> None:
    process(ZH_COT, tmp_path).run()
    hub.commits[STAGE_1] = "ab" * 20
    hub.write(STAGE_1, "config.json", b"{}")
    assert process(ZH_COT, tmp_path).run().revision != "ab" * 20
    files = process(ZH_COT, tmp_path, force=True).run()
    assert files.revision == "ab" * 20
    assert_whole(hub, ZH_COT, files)


def test_two_models_share_what_they_have_in_common(hub: HubServer, tmp_path: Path) -> None:
    process(EN_COT, tmp_path).run()
    hub.forget()
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())
    assert hub.count(catalog.STAGE_2.name) == hub.count(catalog.CODEC.name) == 0


def test_a_machine_without_a_gpu_is_warned_of_before_the_first_byte(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    held = hub.fault("model-00001", effect="hold")
    running = DownloadProcess(ZH_COT, tmp_path, device="cpu")
    thread = threading.Thread(target=running.run)
    thread.start()
    assert held.reached.wait(SECONDS)
    (warning,) = warnings()
    held.release()
    assert warning.startswith("zh-cot: 0.1 GB of weights are downloaded, but this machine has no GPU")
    assert "estimate" in warning
    thread.join(SECONDS)
    DownloadProcess(ZH_COT, tmp_path, device="cpu").run()
    assert warnings() == [warning], "nothing is fetched the second time"


# -- what is here is verified


def test_a_corrupted_cached_file_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    files = process(EN_COT, tmp_path).run()
    victim = (files.stage2 / "model.safetensors").resolve()
    victim.write_bytes(bytes([victim.read_bytes()[0] ^ 1]) + victim.read_bytes()[1:])  # of the same size
    os.utime(victim, (1, 1))
    hub.forget()
    assert_whole(hub, EN_COT, process(EN_COT, tmp_path).run())
    assert hub.count("resolve") == hub.count("m-a-p") == 1  # that file, and no list of files


def test_a_file_that_was_only_touched_is_not_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    files = process(EN_COT, tmp_path).run()
    os.utime((files.stage2 / "model.safetensors").resolve(), (1, 1))
    hub.forget()
    assert process(EN_COT, tmp_path).run() == files
    assert hub.count() == 0


def test_a_cached_file_that_was_cut_short_or_lost_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    files = process(EN_COT, tmp_path).run()
    (files.stage2 / "model.safetensors").resolve().write_bytes(b"short")
    (files.codec / "decoders/decoder_131000.pth").resolve().unlink()
    assert_whole(hub, EN_COT, process(EN_COT, tmp_path).run())


def test_a_pointer_in_the_cache_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    files = process(EN_COT, tmp_path).run()
    (files.stage2 / "model.safetensors").resolve().write_bytes(POINTER)
    assert_whole(hub, EN_COT, process(EN_COT, tmp_path).run())


def test_a_pointer_that_the_hub_sends_is_named_until_the_file_is_there(hub: HubServer, tmp_path: Path) -> None:
    content = (hub.root / STAGE_1 / "tokenizer.model").read_bytes()
    hub.write(STAGE_1, "tokenizer.model", POINTER)
    for _ in range(2):
        error = refusal(ZH_COT, tmp_path)
        assert error.reason == "corrupted"
        assert f"tokenizer.model of repository {STAGE_1} is a Git LFS pointer" in str(error)
    hub.write(STAGE_1, "tokenizer.model", content)
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())


def test_a_file_that_comes_corrupted_once_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("decoder_131000.pth", effect="corrupt")
    assert_whole(hub, EN_COT, process(EN_COT, tmp_path).run())
    assert hub.count("decoder_131000.pth") == 2


def test_a_file_that_stays_corrupted_is_named(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("config.json", effect="corrupt", times=None)
    error = refusal(EN_COT, tmp_path)
    assert error.reason == "corrupted" and "config.json" in str(error)


def test_weights_that_another_program_fetched_are_proven_and_used(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; from huggingface_hub import snapshot_download as s; s(sys.argv[1], revision=sys.argv[2])"
    for part in PARTS:
        repository = getattr(ZH_COT, part)
        command = [sys.executable, "-c", code, repository.name, repository.revision or "main"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    hub.forget()
    files = process(ZH_COT, tmp_path).run()
    assert hub.count("resolve") == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert process(ZH_COT, tmp_path / "without records").run() == files
