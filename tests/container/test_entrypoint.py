"""What the container runs, deployed on the stand-in for Vertex AI."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import soundfile

from inference.catalog import ModelFiles
from tests.support.hub_server import HubServer, serve_tiny
from tests.support.paths import PROJECT
from tests.support.vertex import DEDICATED, SHARED, Deployment, endpoint, free_port
from tests.support.vertex_requests import DEADLINE_S, SONG, TOLERANT, ask_models, body_of, post, predict

pytestmark = pytest.mark.slow

ENTRYPOINT = str(PROJECT / "entrypoint.sh")
BINDS_S = 10.0
ENDS_S = 5.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The real interpreter, own folders, nobody's settings."""
    return clean_environment(tmp_path / "cache")


@pytest.mark.parametrize("command", ["serve", "download"])
def test_an_environment_without_the_requirements_is_told_in_one_line(tmp_path: Path, command: str) -> None:
    bare = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=DEADLINE_S)
    environment = clean_environment(tmp_path / "cache") | {"PATH": f"{bare}/bin:{os.environ['PATH']}"}
    done = subprocess.run([ENTRYPOINT, command], env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and str(bare) in line and "requirements.txt" in line


def clean_environment(cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YUE_", "AIP_", "HF_", "PORT"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def hub(tiny_files: ModelFiles) -> Iterator[HubServer]:
    with serve_tiny(tiny_files) as hub:
        yield hub


# -- usage and checks


def entrypoint(
    environment: dict[str, str], *arguments: str, folder: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    command = [ENTRYPOINT, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S)


def test_help_tells_the_commands_and_starts_nothing(environment: dict[str, str]) -> None:
    done = entrypoint(environment, "--help")
    assert done.returncode == 0
    for word in ("serve", "download", "YUE_MODEL", "YUE_LOADING", "PORT"):
        assert word in done.stdout
    assert not Path(environment["XDG_CACHE_HOME"]).exists()


@pytest.mark.parametrize("arguments", [["sing"], ["--port"], ["serve", "now"], [""]])
def test_wrong_arguments_are_code_2_and_named(arguments: list[str], environment: dict[str, str]) -> None:
    done = entrypoint(environment, *arguments)
    assert done.returncode == 2
    assert f"got '{' '.join(arguments)}'; allowed: " in done.stderr and "Usage:" in done.stderr


@pytest.mark.parametrize("command", ["serve", "download"])
@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "YUE_DATA"])
def test_a_folder_that_cannot_be_written_is_named(variable: str, command: str, environment: dict[str, str]) -> None:
    done = entrypoint(environment | {"YUE_MODEL": "en-cot", variable: "/dev/null/folder"}, command)
    assert done.returncode == 1
    assert f"{variable}: /dev/null/folder" in done.stderr and "allowed" in done.stderr


@pytest.mark.parametrize("command", ["serve", "download"])
def test_relative_folders_are_those_of_the_caller(command: str, environment: dict[str, str], tmp_path: Path) -> None:
    relative = {"XDG_CACHE_HOME": "cache", "HF_HOME": "./hub", "YUE_WEIGHTS": "../weights", "YUE_DATA": "songs"}
    done = entrypoint(seen_by_python(environment | relative, tmp_path), command, folder=tmp_path)
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert {name: seen[name] for name in relative} == {name: f"{tmp_path}/{path}" for name, path in relative.items()}
    if command == "download":
        assert f"--cache {tmp_path}/cache/yue-server --local {tmp_path}/../weights" in seen["arguments"]
    assert (tmp_path / "cache").is_dir() and (tmp_path / "songs").is_dir()


def test_a_tilde_in_the_hub_s_folder_is_the_home(environment: dict[str, str], tmp_path: Path) -> None:
    settings = {"YUE_MODEL": "en-cot", "HOME": str(tmp_path), "HF_HOME": "~/hub"}
    entrypoint(seen_by_python(environment | settings, tmp_path), "download", folder=tmp_path)
    assert (tmp_path / "hub").is_dir() and not (PROJECT / "~").exists()


@pytest.mark.parametrize("place", ["gs://mirror/yue", "/mnt/weights"])
def test_addresses_and_absolute_folders_stay(place: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = entrypoint(seen_by_python(environment | {"YUE_WEIGHTS": place}, tmp_path), "download", folder=tmp_path)
    assert f"YUE_WEIGHTS={place}" in done.stdout.splitlines()


@pytest.mark.parametrize(("word", "code"), [("1", 0), ("yes", 0), ("True", 0), ("0", 1), ("no", 1), ("", 1)])
def test_offline_needs_no_folder_of_the_hub(word: str, code: int, environment: dict[str, str], tmp_path: Path) -> None:
    settings = {"YUE_MODEL": "en-cot", "HF_HOME": "/dev/null/folder", "HF_HUB_OFFLINE": word}
    done = entrypoint(seen_by_python(environment | settings, tmp_path))
    assert done.returncode == code and ("HF_HOME: /dev/null/folder" in done.stderr) == bool(code)


def seen_by_python(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """With a python3 that only prints its arguments and its environment."""
    python = folder / "bin" / "python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "arguments=$*"\nenv\n')
    python.chmod(0o755)
    return environment | {"PATH": f"{python.parent}:{os.environ['PATH']}"}


def test_without_a_home_it_says_what_to_set(environment: dict[str, str]) -> None:
    del environment["XDG_CACHE_HOME"]
    environment.pop("HOME", None)
    done = entrypoint(environment)
    assert done.returncode == 1
    assert "neither HOME nor XDG_CACHE_HOME is set" in done.stderr


@pytest.mark.parametrize(("variable", "wrong"), [("PORT", "http"), ("AIP_HTTP_PORT", "0"), ("PORT", "65536")])
def test_a_port_that_is_none_is_named(variable: str, wrong: str, environment: dict[str, str]) -> None:
    done = entrypoint(environment | {variable: wrong})
    assert done.returncode == 1
    assert f"{variable}: got '{wrong}'; allowed: a port from 1 to 65535" in done.stdout + done.stderr


def test_downloading_an_unknown_model_fails_and_names_those_that_there_are(environment: dict[str, str]) -> None:
    done = entrypoint(environment | {"YUE_MODEL": "opera"}, "download")
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "error" and "opera" in last["message"] and "en-cot" in last["message"]


def test_a_download_on_a_terminal_is_told_in_words(environment: dict[str, str], hub: HubServer) -> None:
    home = Path(environment["XDG_CACHE_HOME"])
    settings = environment | {"YUE_MODEL": "en-cot", **hub.environment(home)}
    ours, theirs = pty.openpty()
    with subprocess.Popen([ENTRYPOINT, "download"], env=settings, stdout=theirs, stderr=theirs) as downloading:
        os.close(theirs)
        shown = ""
        with suppress(OSError):  # where the other end is closed
            while block := os.read(ours, 65_536):
                shown += block.decode()
    os.close(ours)
    assert downloading.returncode == 0, shown
    assert "100%" in shown and "GB" in shown and "{" not in shown
    assert shown.splitlines()[-1] == "The weights of en-cot are complete and verified."


def test_a_port_that_is_taken_is_told_in_one_line(environment: dict[str, str]) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = entrypoint(environment | {"PORT": str(port)})
    (line,) = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on (Address already in use)" in line and "set PORT" in line


# -- the real server, deployed


def test_on_demand_it_is_healthy_at_once_and_the_first_song_brings_the_models(environment: dict[str, str]) -> None:
    with (
        Deployment([ENTRYPOINT, "serve"], environment, TOLERANT) as deployment,
        endpoint(deployment, SHARED) as shared,
    ):
        assert deployment.wait_until_alive(BINDS_S)
        assert deployment.wait_until_routed(BINDS_S)
        assert ask_models(shared.url)["status"] == "not_loaded"

        song = predict(shared.url, SONG)
        assert song["status"] == "succeeded" and song["model"] == "tiny"
        assert seconds_of(song) == pytest.approx(song["duration_seconds"], abs=0.2)

        raw = post(f"{shared.url}:rawPredict", body_of(SONG))
        (same,) = json.loads(raw.body)["predictions"]
        assert raw.content_type == "application/json"
        assert same["audio"] == song["audio"], "the same seed gives the same song"

        wrong = post(f"{shared.url}:rawPredict", b"no json")
        assert (wrong.status, wrong.content_type) == (400, "application/problem+json")

        engine_pid = ask_models(shared.url)["engine"]["pid"]
        assert deployment.end() == 0, "SIGTERM is a good end"
        assert deployment.starts == 1 and not deployment.left_behind
    with pytest.raises(ProcessLookupError):
        os.kill(engine_pid, 0)


def seconds_of(prediction: dict[str, Any]) -> float:
    return float(soundfile.info(io.BytesIO(base64.b64decode(prediction["audio"]))).duration)


def test_at_startup_it_gets_no_requests_until_the_models_are_ready(environment: dict[str, str], hub: HubServer) -> None:
    held = hub.fault("resolve", effect="hold", method="GET")
    settings = {"YUE_LOADING": "startup", "YUE_MODEL": "en-cot", **hub.environment(Path(environment["XDG_CACHE_HOME"]))}
    with (
        Deployment([ENTRYPOINT], environment | settings, TOLERANT) as deployment,
        endpoint(deployment, DEDICATED) as dedicated,
    ):
        assert deployment.wait_until_alive(BINDS_S)
        assert deployment.wait_until_health(503, BINDS_S)
        assert held.reached.wait(DEADLINE_S)
        assert post(f"{dedicated.url}:predict", body_of(SONG)).status == 503
        assert not deployment.routed

        held.release()
        assert deployment.wait_until_routed(DEADLINE_S)
        assert ask_models(dedicated.url)["status"] == "ready"
        assert predict(dedicated.url, SONG)["status"] == "succeeded"


def test_what_was_downloaded_is_served_without_a_network(environment: dict[str, str], tiny_files: ModelFiles) -> None:
    home = Path(environment["XDG_CACHE_HOME"])
    with serve_tiny(tiny_files) as hub:
        settings = environment | {"YUE_MODEL": "en-cot", "YUE_LOADING": "startup", **hub.environment(home)}
        done = entrypoint(settings | {"YUE_DEVICE": "cpu"}, "download")
        assert done.returncode == 0, done.stderr
        (warning,) = done.stderr.splitlines()
        assert warning.startswith("en-cot: ") and "has no GPU" in warning and "estimate" in warning
        last = json.loads(done.stdout.splitlines()[-1])
        assert last["event"] == "done" and Path(last["files"]["stage1"]).is_dir()
    offline = settings | {"HF_HUB_OFFLINE": "1"}  # and the Hub is gone
    with Deployment([ENTRYPOINT], offline, TOLERANT) as deployment, endpoint(deployment, SHARED) as shared:
        assert deployment.wait_until_routed(DEADLINE_S)
        assert ask_models(shared.url)["model"] == "en-cot"


# -- SIGTERM during a download


@pytest.mark.parametrize("command", ["serve", "download"])
def test_sigterm_ends_a_download(command: str, environment: dict[str, str], hub: HubServer) -> None:
    begun = begin_download([ENTRYPOINT, command], environment, hub)
    begun.terminate()
    output, _ = begun.communicate(timeout=ENDS_S)  # until all have ended that write to it
    assert begun.returncode == (0 if command == "serve" else 128 + signal.SIGTERM)
    assert command == "serve" or "what is here already is kept" in output


@pytest.mark.parametrize("command", ["serve", "download"])
def test_sigterm_ends_a_download_as_a_containers_first_process(
    command: str, environment: dict[str, str], hub: HubServer
) -> None:
    namespace = ["unshare", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this user may not start a process as the first of its own (unshare --pid)")
    begun = begin_download([*namespace, ENTRYPOINT, command], environment, hub)
    first = int(Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text())
    os.kill(first, signal.SIGTERM)
    begun.communicate(timeout=ENDS_S)
    assert begun.returncode == (0 if command == "serve" else 128 + signal.SIGTERM)


def begin_download(command: list[str], environment: dict[str, str], hub: HubServer) -> subprocess.Popen[str]:
    """The process, in the middle of a download that never ends by itself."""
    held = hub.fault("resolve", effect="hold", method="GET", times=None)
    port = {"PORT": str(free_port())}
    settings = {"YUE_LOADING": "startup", "YUE_MODEL": "en-cot", **hub.environment(Path(environment["XDG_CACHE_HOME"]))}
    begun = subprocess.Popen(
        command, env=environment | port | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert held.reached.wait(DEADLINE_S)
    return begun
