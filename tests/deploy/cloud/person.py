"""A person with a Google Cloud project, who starts the scripts and looks at what they made.

Independent of what the scripts should do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.paths import PROJECT as ROOT

FOLDER = Path(__file__).parent

DRY_RUN_TOOLS = ("bash", "dirname", "env")
TOO_LONG_S = 120  # an end to waiting where something is broken


class Person:
    """Someone with a Google Cloud project, who starts the scripts and looks at what is there."""

    def __init__(self, folder: Path) -> None:
        self.state_file = folder / "cloud.json"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for tool in ("gcloud", "curl"):
            executable = bin_folder / tool
            command = shlex.join([sys.executable, "-S", str(FOLDER / f"{tool}.py")])
            executable.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            executable.chmod(0o755)
        self.environment = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "STAND_IN_CLOUD": str(folder),
            "PROJECT_ID": "my-project",
            "IMAGE_TAG": "v1",
            "POLL_SECONDS": "0",
        }

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / script), *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOO_LONG_S,
        )

    def deploy(self, script: str = "deploy_on_demand.sh", *arguments: str, **environment: str) -> str:
        """Deploy, which must work; what was printed."""
        done = self.run(script, "--yes", *arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fails(self, script: str, *arguments: str, **environment: str) -> str:
        """Run what must fail; what it says."""
        done = self.run(script, "--yes", *arguments, **environment)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    @property
    def cloud(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.state_file.read_text())
        return state

    def arrange(self, **changes: Any) -> None:
        """Change the cloud behind the scripts' back."""
        subprocess.run(
            [sys.executable, "-c", "from state import opened\nwith opened(): pass"],
            env=self.environment,
            cwd=FOLDER,
            check=True,
        )
        self.state_file.write_text(json.dumps(self.cloud | changes))

    @property
    def endpoint(self) -> dict[str, Any]:
        (endpoint,) = self.cloud["endpoints"].values()
        return dict(endpoint)

    def calls(self, *start: str) -> list[list[str]]:
        return [call for call in self.cloud["calls"] if tuple(call[: len(start)]) == start]


def gpus(limit: str) -> dict[str, str]:
    """A quota for the GPU that is deployed to unless another is asked for."""
    return {"custom_model_serving_nvidia_a100_gpus": limit}


def only(folder: Path, *tools: str) -> str:
    """A PATH with nothing but Python and the tools that every system has."""
    bare = folder / "bare"
    bare.mkdir()
    (bare / "python3").symlink_to(Path(sys.executable).resolve())
    for tool in tools:
        found = shutil.which(tool)
        assert found, f"there is no {tool}"
        (bare / tool).symlink_to(found)
    return str(bare)


def changes_of(printed: str) -> list[str]:
    """The commands that change something, without the numbers that the cloud gave."""
    verbs = "create|enable|submit|upload|add-iam-policy-binding|deploy-model|undeploy-model|delete|rm"
    lines = [line for line in printed.splitlines() if re.match(rf"gcloud [a-z -]*({verbs}) |curl .*POST", line)]
    return [re.sub(r"\b(ENDPOINT_ID|DEPLOYED_MODEL_ID|1\d\d\d)\b", "ID", line) for line in lines]
