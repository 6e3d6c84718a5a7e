"""Getting a model's files from a stand-in for the Hub, in a real process of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from inference import catalog
from inference.catalog import Model, ModelFiles
from inference.errors import DownloadError
from inference.weights.download import PARTS, DownloadProcess, fetch
from paths import cache_folder
from tests.support.hub_server import HubServer, serve_tiny
from tests.support.socks_server import SocksServer

EN_COT = catalog.find("en-cot")
ZH_COT = catalog.find("zh-cot")  # not pinned: its default branch is resolved
STAGE_1 = ZH_COT.stage1.name
SECONDS = 60.0
KILLS = 15
UNWANTED = "README.md"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 3711\n" % (b"0a" * 32)


@pytest.fixture
def hub(tiny_files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that the processes started by the test use, with an empty cache."""
    with serve_tiny(tiny_files) as server:
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield server


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


def blobs(tmp_path: Path, suffix: str = "") -> list[Path]:
    return [path for path in (tmp_path / "hf").rglob("*") if path.parent.name == "blobs" and path.suffix == suffix]


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


# -- trouble that passes


@pytest.mark.parametrize(
    ("path", "status"), [("/revision/", 429), ("/revision/", 503), ("/tree/", 503), ("model-00002", 429)]
)
def test_a_busy_hub_is_asked_again_after_the_time_it_names(
    hub: HubServer, tmp_path: Path, path: str, status: int
) -> None:
    hub.fault(path, status=status, retry_after_s=0)
    progress = Progress()
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run(progress))
    (wait,) = progress.waits()
    assert isinstance(wait, dict)
    assert wait["seconds"] == 0 and f"the Hub at {hub.url} answered {status}" in wait["reason"]


@pytest.mark.parametrize("effect", ["drop", "cut"])
def test_a_broken_connection_is_taken_up_again(hub: HubServer, tmp_path: Path, effect: str) -> None:
    hub.fault("/resolve/", effect=effect, times=4)  # type: ignore[arg-type]
    progress = Progress()
    assert_whole(hub, EN_COT, process(EN_COT, tmp_path).run(progress))
    assert len(progress.waits()) == 4


def test_a_file_goes_on_where_it_was_cut(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("model-00001", effect="cut")
    process(EN_COT, tmp_path).run()
    size = hub.files(EN_COT.stage1.name)["model-00001-of-00003.safetensors"].stat().st_size
    ranges = [request.range for request in hub.requests if "model-00001" in request.path]
    assert ranges[0] == "bytes=0-" and ranges[1] == f"bytes={size // 2}-"


def test_a_hub_that_stays_busy_is_given_up(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("/tree/", status=503, times=None)
    error = refusal(EN_COT, tmp_path)
    assert error.reason == "unavailable"
    assert EN_COT.stage1.name in str(error) and hub.url in str(error) and "503, 6 times in a row" in str(error)


# -- trouble that stays


@pytest.mark.parametrize(
    ("path", "status", "code", "reason", "advice"),
    [
        ("zh-cot/resolve/", 403, "GatedRepo", "gated", "is gated: accept its terms"),
        ("/revision/", 401, "RepoNotFound", "no_repository", "does not exist, or is private"),
        ("/revision/", 404, "RevisionNotFound", "no_revision", "has no such revision"),
        ("/tree/", 404, "RevisionNotFound", "no_revision", "has no such revision"),
        ("model-00001", 404, "EntryNotFound", "missing_file", "has no file model-00001-of"),
        ("/tree/", 400, "", "unavailable", "answered 400; check HF_ENDPOINT"),
        ("/revision/", 404, "", "unavailable", "answered 404; check HF_ENDPOINT"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: HubServer, tmp_path: Path, path: str, status: int, code: str, reason: str, advice: str
) -> None:
    hub.fault(path, status=status, error_code=code, times=None)
    error = refusal(ZH_COT, tmp_path)
    assert STAGE_1 in str(error) and advice in str(error)
    assert error.reason == reason


def test_a_gated_repository_opens_with_a_token(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gate(STAGE_1, "secret")
    assert refusal(ZH_COT, tmp_path).reason == "gated"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())


def test_an_empty_cache_offline_says_what_to_do(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refusal(ZH_COT, tmp_path)
    assert error.reason == "offline"
    assert "HF_HUB_OFFLINE" in str(error) and "YUE_WEIGHTS" in str(error)
    assert hub.count() == 0


def test_a_hub_that_is_not_there_is_named(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    error = refusal(ZH_COT, tmp_path)
    assert error.reason == "unavailable" and "the Hub at http://127.0.0.1:1 cannot be reached" in str(error)


# -- settings that lead to no Hub


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HF_ENDPOINT", "hf-mirror.invalid"), ("HF_ENDPOINT", "http://[::1"), ("HF_TOKEN", "hf_secret…")],
)
def test_a_setting_that_leads_nowhere_is_named_at_once(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """The others are in test_hub_settings.py."""
    monkeypatch.setenv(variable, value)
    code, (event,) = run_module(tmp_path, "zh-cot")
    assert code == 1 and event["reason"] == "invalid_setting"
    assert str(event["message"]).startswith(f"{variable}: got ") and "secret" not in str(event["message"])
    assert hub.count() == 0


def test_a_token_in_a_file_is_held_to_the_same(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text("hf_secret…")
    error = refusal(ZH_COT, tmp_path)
    assert error.reason == "invalid_setting" and str(tmp_path / "hf/token") in str(error)
    assert "secret" not in str(error)
    monkeypatch.setenv("HF_HOME", "/dev/null/hf")
    error = refusal(ZH_COT, tmp_path)
    assert error.reason == "invalid_setting" and "HF_HOME" in str(error) and "/dev/null/hf" in str(error)


def test_white_space_around_a_token_is_no_part_of_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gate(STAGE_1, "secret")
    monkeypatch.setenv("HF_TOKEN", " secret\r\n")
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())


def test_what_is_here_already_needs_no_way_to_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = process(ZH_COT, tmp_path).run()
    monkeypatch.setenv("HF_TOKEN", "hf_…")
    monkeypatch.setenv("ALL_PROXY", "socks4://nowhere")
    assert process(ZH_COT, tmp_path).run() == first


@pytest.mark.parametrize(
    ("path", "body"), [("/revision/", b"<html>Log in, please"), ("/tree/", b"[1]"), ("/tree/", b"")]
)
def test_what_answers_but_is_no_hub_is_named(hub: HubServer, tmp_path: Path, path: str, body: bytes) -> None:
    hub.fault(path, body=body, times=None)
    error = refusal(ZH_COT, tmp_path)
    assert hub.url in str(error) and "HF_ENDPOINT" in str(error) and error.reason == "unavailable"


def test_an_endpoint_may_have_a_path(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.prefix = "/hub"
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/hub/")
    assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())


@pytest.mark.parametrize(("variable", "scheme"), [("ALL_PROXY", "socks5"), ("http_proxy", "socks5h")])
def test_the_way_may_lead_through_a_socks_proxy(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")  # which only the proxy can reach
    with SocksServer(hub.port) as socks:
        monkeypatch.setenv(variable, socks.url(scheme))
        assert_whole(hub, ZH_COT, process(ZH_COT, tmp_path).run())
    assert set(socks.hosts) == {"hub.invalid"}


def test_a_proxy_that_is_not_there_is_named(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1")
    error = refusal(ZH_COT, tmp_path)
    assert "through the proxy socks5://***@127.0.0.1:1 of ALL_PROXY" in str(error) and "secret" not in str(error)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only who may mount a file system has a disk that is full")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a broken download may still be closing files


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(
    hub: HubServer, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(small_disk))
    error = refusal(EN_COT, tmp_path)
    needed = sum(hub.size_bytes(getattr(EN_COT, part).name, UNWANTED) for part in PARTS)
    assert error.reason == "no_space"
    assert f"{needed:,} bytes are needed" in str(error) and "are free at" in str(error)
    assert hub.count("resolve") == 0


def test_a_disk_that_others_fill_meanwhile_is_named(hub: HubServer, tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(EN_COT, small_disk, f"file://{mirror(hub)}", free_bytes=lambda folder: 10**12)
    assert caught.value.reason == "no_space" and "the disk is full" in str(caught.value)


def mirror(hub: HubServer) -> Path:
    """The Hub's folder, as a mirror."""
    return hub.root / "m-a-p"


def test_a_repository_of_something_else_is_refused(hub: HubServer, tmp_path: Path) -> None:
    error = refusal(catalog.find(catalog.CODEC.name), tmp_path)
    assert error.reason == "missing_file" and "holds none of the files of a model" in str(error)


def test_a_repository_without_its_tokenizer_is_refused(hub: HubServer, tmp_path: Path) -> None:
    (hub.root / STAGE_1 / "tokenizer.model").unlink()
    error = refusal(ZH_COT, tmp_path)
    assert error.reason == "missing_file" and "lacks tokenizer.model" in str(error)


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


def command(cache: Path, model: str = "zh-cot") -> list[str]:
    return [sys.executable, "-m", "inference.weights.download", "--model", model, "--cache", str(cache)]


def run_module(cache: Path, model: str, *more: str) -> tuple[int, list[dict[str, object]]]:
    """Exit code, and every line of standard output as JSON."""
    done = subprocess.run([*command(cache, model), *more], stdout=-1, stdin=subprocess.DEVNULL, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


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
