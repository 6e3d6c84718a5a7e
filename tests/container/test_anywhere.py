"""Every program of a checkout starts from any folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.paths import PROJECT
from tests.support.real_server import until
from tests.support.vertex import free_port

PROGRAMS = {
    "client.py --version": "client.py ",
    "entrypoint.sh --help": "Usage: entrypoint.sh",
    "run_local.sh --help": "Usage: ./run_local.sh",
    "deploy_on_demand.sh --help": "usage: ./deploy_on_demand.sh",
    "deploy_with_entrypoint.sh --help": "usage: ./deploy_with_entrypoint.sh",
    "undeploy.sh --help": "usage: ./undeploy.sh",
}


def of_project(program: str) -> list[str]:
    name, *arguments = program.split()
    return [*([sys.executable] if name.endswith(".py") else []), str(PROJECT / name), *arguments]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_starts_from_any_folder(program: str, tmp_path: Path) -> None:
    done = subprocess.run(of_project(program), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(PROGRAMS[program])


def test_the_server_file_serves_and_keeps_jobs_in_a_folder_of_the_caller(tmp_path: Path) -> None:
    """`python /path/server.py` is the server, with the Python that runs it, whatever is on PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YUE_", "AIP_"))}
    port = free_port()
    own = {"PORT": str(port), "XDG_CACHE_HOME": "cache", "YUE_DATA": "songs", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(of_project("server.py"), cwd=tmp_path, env={**kept, **own}) as server:
        until(lambda: _answers(port) or server.poll() is not None)
        until(lambda: (tmp_path / "songs").is_dir() or server.poll() is not None)
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert (tmp_path / "cache").is_dir()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False
