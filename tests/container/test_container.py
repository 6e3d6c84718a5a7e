"""The real Dockerfile, built without a Docker engine on a bare Debian base, and the image run as Vertex AI would.

Deselected unless asked for, because it takes minutes: `./run_tests.sh -m container`; `.ci/run` asks for it.
It needs root, buildah and debootstrap; the base is kept under ~/.cache.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.paths import PROJECT
from tests.support.vertex import SHARED, Deployment, Probes, endpoint
from tests.support.vertex_requests import SONG, ask_models, predict

# A build may install some gigabytes from a slow registry.
pytestmark = [pytest.mark.container, pytest.mark.timeout(1_200)]

BASE = "localhost/yue-server-base"
IMAGE = "localhost/yue-server-test"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
USER_ID = 10001
DEADLINE_S = 120.0
BUILD_S = 900.0
PROBES = Probes(liveness_period_s=0.5, liveness_tries=80, health_period_s=0.5)
PIP_FILE = "/etc/pip.conf"
TOOLS = ("buildah", "debootstrap")


def buildah(*arguments: str, folder: Path = PROJECT, timeout_s: float = DEADLINE_S) -> str:
    """Its output. It works without a daemon and without namespaces, so also inside a container."""
    done = subprocess.run(
        ["buildah", *arguments],
        cwd=folder,
        env=buildah_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    return done.stdout.strip()


def buildah_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YUE_", "AIP_", "HF_", "PORT"))}
    return kept | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": os.environ.get("STORAGE_DRIVER", "overlay")}


@pytest.fixture(scope="module")
def base() -> str:
    """A bare Debian with Python, as an image."""
    if os.geteuid() or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"building the image needs root and {' and '.join(TOOLS)} (Debian: apt-get install)")
    known = subprocess.run(["buildah", "inspect", "--type=image", BASE], env=buildah_environment(), capture_output=True)
    if known.returncode:
        archive = Path.home() / ".cache" / "yue-server-tests" / "base-bookworm.tar"
        if not archive.exists():
            make_base(archive)
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, str(archive), "/")
        buildah("commit", "--quiet", "--rm", container, BASE)
    return BASE


def make_base(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}"]
    root = archive.with_suffix(".new")
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run([*command, "bookworm", str(root)], check=True, capture_output=True, timeout=BUILD_S)
    half = archive.with_suffix(".half")
    subprocess.run(["tar", "-C", str(root), "-cf", str(half), "."], check=True, timeout=BUILD_S)
    half.rename(archive)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def image(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image, with the tiny model's weights inside, and with the torch that runs these tests.

    It is built of a checkout that nobody but its owner may read.
    """
    arguments = {
        "BASE": base,
        "TORCH_REQUIREMENT": f"torch=={importlib.metadata.version('torch')}",
        "PIP_ARGS": os.environ.get("YUE_PIP_ARGS", ""),
        "BAKE_MODEL": "tiny",
        "COMPILER": "",  # what runs here has no GPU to compile for
    }
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    options += [f"--volume={mount}:ro" for mount in host_mounts(tmp_path_factory.mktemp("pip"))]
    checkout = closed_copy(tmp_path_factory.mktemp("checkout"))
    buildah("bud", "--layers", "--format=docker", *options, f"--tag={IMAGE}", ".", folder=checkout, timeout_s=BUILD_S)
    yield IMAGE


def closed_copy(folder: Path) -> Path:
    """What the image is made of, as a clone under `umask 077` leaves it."""
    listed = (PROJECT / ".dockerignore").read_text().splitlines()
    wanted = [path for line in listed if line.startswith("!") for path in PROJECT.glob(line[1:])]
    for path in (*wanted, PROJECT / "Dockerfile", PROJECT / ".dockerignore"):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy(path, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o077)
    return folder


def host_mounts(folder: Path) -> list[str]:
    """What this machine's pip is set up with, at the same places: its settings, and the files they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True, timeout=DEADLINE_S
    ).stdout
    settings = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.split(".")[-1]] = shlex.split(value)[0]
    words = [word for value in settings.values() for word in value.split()]
    paths = {word for word in words if word.startswith("/")}
    # An index of files lies beside the packages that it lists.
    paths |= {str(Path(urllib.parse.urlsplit(word).path).parent) for word in words if word.startswith("file:///")}
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    return [f"{file}:{PIP_FILE}", *(f"{path}:{path}" for path in sorted(outermost(paths)) if Path(path).exists())]


def outermost(paths: set[str]) -> set[str]:
    """Without those that lie in another one."""
    return {path for path in paths if not any(str(parent) in paths for parent in Path(path).parents)}


@pytest.fixture
def container(image: str) -> Iterator[str]:
    name = buildah("from", image)
    yield name
    buildah("rm", name)


def run_in(container: str, *command: str) -> str:
    return buildah("run", container, "--", *command)


def test_the_image_is_what_it_says(image: str) -> None:
    config = json.loads(buildah("inspect", "--type=image", image))["Docker"]["config"]
    assert config["User"] == f"{USER_ID}:{USER_ID}" and config["WorkingDir"] == "/app"
    assert config["Entrypoint"] == ["./entrypoint.sh"] and config["Cmd"] == ["serve"]
    assert "8080/tcp" in config["ExposedPorts"] and config["StopSignal"] == "SIGTERM"
    assert "/health" in " ".join(config["Healthcheck"]["Test"])
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_it_runs_as_nobody_special_and_holds_no_compiler(container: str) -> None:
    assert run_in(container, "id", "--user") == str(USER_ID)
    assert run_in(container, "sh", "-c", "command -v gcc cc g++ make curl || echo none") == "none"
    assert run_in(container, "sh", "-c", "test -w /app || echo no") == "no"
    assert run_in(container, "python3", "-c", "import torch; print(torch.__version__)") == torch_version()


def test_nothing_but_the_program_is_inside(container: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_in(container, "ls", "-A", "/app").splitlines()
    assert {"entrypoint.sh", "server.py", "inference", "serving"} <= set(names)
    assert not {"tests", "docs", ".git", "benchmarks"} & set(names)
    torch_bytes = int(
        run_in(container, "sh", "-c", "du -sbc /opt/venv/lib/python3*/site-packages/torch | tail -1").split()[0]
    )
    all_bytes = int(run_in(container, "sh", "-c", "du -sbxc /usr /opt /app /home | tail -1").split()[0])
    with capsys.disabled():
        print(f"\nthe image without torch and weights: {(all_bytes - torch_bytes) / 1e6:.0f} MB")


def test_weights_belong_to_a_group_that_may_write_them(container: str) -> None:
    """Whoever of that group runs the next container on the same volume."""
    modes = run_in(container, "find", "/models", "-type", "d", "-printf", "%m %g\n").splitlines()
    assert set(modes) == {"2775 root"} and len(modes) > 1
    assert not run_in(container, "find", "/models", "!", "-group", "0", "-o", "!", "-perm", "-0060", "!", "-type", "l")
    script = (
        "umask 002; mkdir /models/more; umask 077; export XDG_CACHE_HOME=/models/more; "
        "./entrypoint.sh download >/dev/null; stat -c %a,%g /models/more/*"
    )
    assert run_in(container, "sh", "-c", script) == "2770,0"


@pytest.mark.parametrize(("loading", "user"), [("on_demand", f"{USER_ID}:{USER_ID}"), ("startup", "123456:0")])
def test_it_generates_songs_on_vertex_ai_in_both_modes(loading: str, user: str, container: str) -> None:
    """Once as a user that the image does not know, as OpenShift runs it."""
    command = run_command(container, loading, user)
    deployment = Deployment(command, buildah_environment(), PROBES, find_main=main_process)
    with deployment, endpoint(deployment, SHARED) as shared:
        assert deployment.wait_until_alive(DEADLINE_S)
        assert deployment.wait_until_routed(DEADLINE_S)
        assert ask_models(shared.url)["status"] == ("ready" if loading == "startup" else "not_loaded")
        assert predict(shared.url, SONG)["status"] == "succeeded"
        assert deployment.starts == 1
        assert deployment.end() == 0, "SIGTERM is a good end"
        assert not deployment.left_behind


def run_command(container: str, loading: str, user: str) -> Sequence[str]:
    """A shell that passes on what the platform sets: buildah gives the container no variable by itself."""
    names = ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE", "AIP_MODE")
    passed = " ".join(f'--env "{name}=${name}"' for name in names)
    settings = f"--user {user} --env YUE_LOADING={loading} --env OMP_NUM_THREADS=1"
    return ["sh", "-c", f"exec buildah run {passed} {settings} {container} -- ./entrypoint.sh serve"]


def main_process(pid: int) -> int:
    """The container's first process: buildah, which would not pass on a signal, stands above it three deep."""
    while "buildah" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode():
        threads = Path(f"/proc/{pid}/task").glob("*/children")  # any of them may have started it
        (pid,) = (int(child) for children in threads for child in children.read_text().split())
    return pid


def torch_version() -> str:
    return importlib.metadata.version("torch")
