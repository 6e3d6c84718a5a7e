"""Errors of the Hub, of the settings that lead to it, and of the disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference import catalog
from inference.errors import DownloadError
from inference.weights.download import PARTS, fetch
from tests.support.downloads import (
    EN_COT,
    STAGE_1,
    UNWANTED,
    ZH_COT,
    Progress,
    assert_whole,
    process,
    refusal,
    run_module,
)
from tests.support.hub_server import HubServer
from tests.support.socks_server import SocksServer

pytestmark = pytest.mark.slow


# -- temporary errors


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


# -- permanent errors


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
