"""Asks gcloud itself what it refuses: runs commands in its own code, up to the first request that would be sent.

Independent of the commands; nothing leaves this machine. It is started by gcloud's Python, with gcloud's library
folder as its argument; lists of words come in as JSON, and what is refused goes out, an empty text for what is not.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

TOO_LONG_S = 240
SETTINGS = {
    "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
    "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
    "CLOUDSDK_STORAGE_PROCESS_COUNT": "1",  # what is raised in another process or thread would be lost
    "CLOUDSDK_STORAGE_THREAD_COUNT": "1",
    "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "1",
}
MODEL = {"supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES"]}


def library() -> Path | None:
    """The folder of gcloud's code, where gcloud is installed."""
    gcloud = shutil.which("gcloud")
    found = Path(gcloud).resolve().parents[1] / "lib" if gcloud else None
    return found if found and (found / "googlecloudsdk").is_dir() else None


def refusals(commands: Sequence[Sequence[str]], folder: Path) -> list[str]:
    """Why gcloud refuses each of the commands, its name left out; empty where it does not."""
    lib = library()
    assert lib, "gcloud is not installed"
    bundled = lib.parent / "platform" / "bundledpythonunix" / "bin" / "python3"
    python = str(bundled) if bundled.exists() else sys.executable
    with tempfile.TemporaryDirectory() as config:
        (Path(config) / "token").write_text("ya29.no-token")
        (Path(config) / "gce").write_text("False")  # spares a look for Google's own machines
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDSDK_")}
        environment |= {"CLOUDSDK_CONFIG": config, "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": f"{config}/token", **SETTINGS}
        done = subprocess.run(
            [python, "-S", __file__, str(lib)],
            input=json.dumps([list(command) for command in commands]),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TOO_LONG_S,
        )
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


class Sent(BaseException):
    """A request would leave this machine now: gcloud has nothing to say against the command."""


def main(lib: str) -> None:
    sys.path[:0] = [f"{lib}/third_party", lib]
    said, answers = io.StringIO(), sys.stdout
    sys.stdout = sys.stderr = said  # before gcloud is loaded, which keeps what it finds
    import requests
    from googlecloudsdk import gcloud_main

    def offline(*_: object, **__: object) -> NoReturn:
        raise Sent

    def send(session: Any, method: str, url: str, *_: object, **__: object) -> Any:
        """The one answer that gcloud needs before it has checked everything: how a model can be deployed."""
        if method != "GET" or "/models/" not in url:
            raise Sent
        response = requests.Response()
        response.status_code, response.raw = 200, io.BytesIO(json.dumps(MODEL).encode())
        return response

    cli = gcloud_main.CreateCLI([])
    requests.Session.request = send
    socket.getaddrinfo = offline
    socket.socket.connect = offline
    json.dump([_refusal(cli, words, said) for words in json.load(sys.stdin)], answers)


def _refusal(cli: Any, words: list[str], said: io.StringIO) -> str:
    said.seek(0)
    said.truncate()
    try:
        cli.Execute(words, call_arg_complete=False)
    except Sent:
        return ""
    except SystemExit as end:
        return (said.getvalue() or f"exit status {end.code}") if end.code else ""
    except Exception as error:  # some choices are not checked where the command is read
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1])
