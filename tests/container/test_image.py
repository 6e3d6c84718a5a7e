"""How the image is built: what the deploy scripts ask of Cloud Build, and what that asks of docker.

It does not build one: that is done in test_container.py.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.cloud.person import Person
from tests.support.job_server import JobServer
from tests.support.paths import PROJECT
from tests.support.threaded import answering


def substitutions_of(person: Person) -> str:
    (build,) = person.calls("gcloud", "builds", "submit")
    (substitutions,) = (word for word in build if word.startswith("--substitutions="))
    return substitutions


@pytest.mark.slow
def test_weights_are_put_into_the_image_when_asked_for(person: Person) -> None:
    person.deploy("deploy_with_entrypoint.sh", "--bake-weights", "yes")
    assert substitutions_of(person).endswith("server:v1-en-cot,_BAKE_MODEL=en-cot")
    assert "YUE_WEIGHTS" not in person.cloud["models"]["yue-server"]["environment"]


def test_weights_in_the_image_and_in_a_mirror_are_refused(person: Person) -> None:
    """The server would prefer the mirror, and those in the image were for nothing."""
    done = person.run("deploy_on_demand.sh", "--dry-run", "--bake-weights=yes", "--weights=gs://mirror/yue")
    assert done.returncode == 2
    assert "WEIGHTS: got 'gs://mirror/yue' with BAKE_WEIGHTS=yes; allowed: one of the two" in done.stderr


def test_another_torch_is_put_into_an_image_of_its_own(person: Person) -> None:
    settings = ("--torch-requirement=torch>=2.12", "--pip-args=--pre --no-deps")
    printed = person.run("deploy_on_demand.sh", "--dry-run", *settings).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith("gcloud builds submit "))
    (substitutions,) = (word for word in shlex.split(line) if word.startswith("--substitutions="))
    assert substitutions.endswith(",_TORCH_REQUIREMENT=torch>=2.12,_PIP_ARGS=--pre --no-deps")
    assert "server:v1-" in substitutions, "the image v1 may be there already, with the usual torch"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--torch-requirement=torch>=2,<3"], "TORCH_REQUIREMENT: got 'torch>=2,<3'"),
        (["--pip-args=--pre,_IMAGE=other"], "PIP_ARGS: got '--pre,_IMAGE=other'"),
        (["--pip-args", "--pre"], "--pip-args: got nothing; allowed: a value, or --pip-args=--pre"),
    ],
)
def test_what_cloud_build_would_misread_is_refused(person: Person, arguments: list[str], named: str) -> None:
    done = person.run("deploy_on_demand.sh", "--dry-run", *arguments)
    assert done.returncode == 2 and named in done.stderr


def test_the_cloud_builds_and_pushes_the_image_and_keeps_its_packages(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$*"\n')
    docker.chmod(0o755)
    config = yaml.safe_load((PROJECT / "cloudbuild.yaml").read_text())
    (step,) = config["steps"]
    substitutions = config["substitutions"]
    given = {
        "${_IMAGE}": "registry/yue-server:v1",
        "${_BAKE_MODEL}": "en-cot",
        "${_TORCH_REQUIREMENT}": "torch==2.12.1",
        "${_PIP_ARGS}": "--pre --no-deps",
    }
    assert {f"${{{name}}}" for name in substitutions} == set(given)
    assert {"machineType", "diskSizeGb"} <= set(config["options"])
    variables = dict(line.split("=", 1) for line in step["env"])
    settings = {name: given.get(value, value) for name, value in variables.items()}
    script = ["sh", "-c", step["script"]]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    done = subprocess.run(script, env=path | settings, check=True, capture_output=True, text=True)
    packages, image, *pushes = done.stdout.splitlines()
    assert "--target packages --tag registry/yue-server:packages" in packages
    assert "--tag registry/yue-server:v1" in image and "BAKE_MODEL=en-cot" in image
    assert "--cache-from registry/yue-server:packages" in image
    for build in (packages, image):  # the same, or the packages of the first would not serve the second
        assert "TORCH_REQUIREMENT=torch==2.12.1" in build and "PIP_ARGS=--pre --no-deps" in build
    assert pushes == ["push registry/yue-server:packages", "push registry/yue-server:v1"]

    # A setting that is not given is what the Dockerfile takes by itself.
    dockerfile = (PROJECT / "Dockerfile").read_text()
    assert all(f"ARG {name[1:]}={value}\n" in dockerfile for name, value in substitutions.items() if name != "_IMAGE")

    nameless = subprocess.run(script, env=path | settings | {"IMAGE": ""}, capture_output=True, text=True)
    assert nameless.returncode and "_IMAGE: got nothing" in nameless.stderr and not nameless.stdout


def test_every_file_is_copied_with_a_mode_of_its_own() -> None:
    """Those of the checkout may be closed to the image's user."""
    lines = [line for line in (PROJECT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    assert len(lines) > 5 and all("--chmod=" in line or "--from=" in line for line in lines)


@pytest.mark.parametrize("variables", [("PORT",), ("PORT", "AIP_HTTP_PORT")])
def test_health_is_asked_for_where_the_server_listens(variables: tuple[str, ...]) -> None:
    text = (PROJECT / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("HEALTHCHECK "))
    command = json.loads(line.partition(" CMD ")[2])
    assert command[0] == "python3"
    with answering(JobServer()) as server:
        ports = dict.fromkeys(variables[:-1], "1") | {variables[-1]: str(server.server_address[1])}
        environment = {name: value for name, value in os.environ.items() if name not in ("PORT", "AIP_HTTP_PORT")}
        healthy = [sys.executable, *command[1:]]
        subprocess.run(healthy, env=environment | ports | {"http_proxy": "http://127.0.0.1:1"}, check=True)
    assert subprocess.run(healthy, env=environment | ports, stderr=subprocess.DEVNULL).returncode


@pytest.mark.slow
def test_the_stage_that_fetches_the_weights_holds_what_that_needs_and_no_more(tmp_path: Path) -> None:
    stage = tmp_path / "app"
    copied = copy_weights_stage(stage)
    program = "import sys; from inference.weights import download, hub, mirror, sync, terminal\n"
    program += "from inference.tiny import checkpoints\n"
    program += "print(*(getattr(module, '__file__', None) or '' for module in list(sys.modules.values())), sep='\\n')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("YUE_", "AIP_", "PYTHON"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=stage, env=environment, check=True, capture_output=True, text=True).stdout

    imported = {Path(file) for file in run("python3", "-c", program).splitlines()}
    used = {str(file.relative_to(stage)) for file in imported if file.is_relative_to(stage)}
    assert used | {"entrypoint.sh"} == copied
    assert '"event": "done"' in run("./entrypoint.sh", "download")  # the tiny model


def copy_weights_stage(folder: Path) -> set[str]:
    """Copies what the stage of the Dockerfile copies; the names."""
    text = (PROJECT / "Dockerfile").read_text().replace("\\\n", " ")
    stage = text.split(" AS weights\n")[1].split("\nFROM ")[0]
    names: set[str] = set()
    for line in stage.splitlines():
        if line.startswith("COPY "):
            names |= {word for word in line.split()[1:-1] if not word.startswith("--")}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    return names
