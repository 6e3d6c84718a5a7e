"""What the documents tell people to type works: in order, twice, with no audio on the terminal or errors in songs."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from tests.support.checkout import ROOT, short_checkout

pytestmark = pytest.mark.slow

LONGEST_LINE = 2000  # characters on a terminal; base64 of a song is far longer
DEADLINE_S = 240
# Those whose commands are typed, in this order; the first command of all starts the server.
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("api", "cli", "operations", "deploy"))]
NOT_HERE = {  # what cannot be typed in this test -> why
    r"YUE_MODEL=en-cot": "real weights",
    r"(^|-- )\./entrypoint\.sh": "another server; tests/container/test_entrypoint.py",
    r"^\. \.venv": "the environment is another one here",
    r"^docker ": "no image",
    r"ENDPOINT": "no endpoint",
    r"deploy\w*\.sh --project-id": "it costs money",
    r"^(gcloud|pip) ": "neither a login nor a package is needed here",
}
SHORTER = {  # songs have a second each
    '{"genres": ': '{"max_new_tokens": 100, "genres": ',
    "client.py sing ": "client.py sing --max-new-tokens 100 ",
}
JOB = re.compile(r'(?:"job_id": ?"|, job )([0-9a-f]{32})')


def blocks(document: Path, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """All that is to be typed, in order, without what cannot be typed here."""
    found, typed = [], ""
    for line in "".join(block for document in DOCUMENTS for block in blocks(document)).splitlines(keepends=True):
        typed += line
        try:
            shlex.split(typed, comments=True)
        except ValueError:  # within quotes
            continue
        if not typed.endswith("\\\n"):
            found.append(typed.strip())
            typed = ""
    for reason in NOT_HERE:
        assert any(re.search(reason, command) for command in found), f"nothing matches {reason!r} any more"
    return [command for command in found if not any(re.search(reason, command) for reason in NOT_HERE)]


@dataclass
class Terminal:
    """A checkout where commands are typed, each of which may name the newest job."""

    folder: Path
    environment: dict[str, str]
    port: int
    job_id: str = "none yet"

    def translated(self, command: str) -> str:
        for text, here in {**SHORTER, "8080": str(self.port), "JOB_ID": self.job_id}.items():
            command = command.replace(text, here)
        return command

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        typed = ["bash", "-c", self.translated(command)]
        done = subprocess.run(
            typed, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_S
        )
        self.job_id = (JOB.findall(done.stdout) or [self.job_id])[-1]
        return done


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A second terminal, while what the first command has started runs in the first one."""
    folder = tmp_path_factory.mktemp("newcomer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("YUE_", "HF_"))}
    own |= {"YUE_VENV": sys.prefix, "PORT": str(port), "YUE_URL": f"http://127.0.0.1:{port}", "OMP_NUM_THREADS": "1"}
    own |= {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    own |= {"HF_ENDPOINT": "http://127.0.0.1:9"}  # no real weights are fetched
    second = Terminal(short_checkout(folder / "checkout"), own, port)
    with subprocess.Popen(
        ["bash", "-c", commands()[0]],
        cwd=second.folder,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as first:
        assert first.stdout is not None
        said: list[str] = []
        while not said or "Serving at" not in said[-1]:
            said.append(first.stdout.readline())
            assert said[-1], "".join(said)
        yield second
        os.killpg(first.pid, signal.SIGINT)
        first.stdout.read()  # ends when the last process that holds it ends
        assert first.wait(DEADLINE_S) == 128 + signal.SIGINT


@pytest.mark.parametrize("time", ["first", "second"])
def test_the_commands_of_the_documents_work_in_order_and_overwrite_no_song(terminal: Terminal, time: str) -> None:
    typed = commands()[1:]
    before = {path: path.read_bytes() for path in terminal.folder.glob("song*")}
    assert len(typed) > 15 and terminal.folder / "song.mp3" in before
    for command in typed:
        done = terminal.type(command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-LONGEST_LINE:]}\n{done.stderr}"
        for line in (done.stdout + done.stderr).splitlines():
            assert len(line) <= LONGEST_LINE, f"{command}\n{line[:80]}… has {len(line)} characters"
    assert all(path.read_bytes() == content for path, content in before.items())
    for ending in ("mp3", "flac"):
        for song in terminal.folder.glob(f"*.{ending}"):
            assert soundfile.info(song).format == ending.upper(), song


def test_the_python_of_the_readme_works(terminal: Terminal) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    assert len(code.splitlines()) <= 12
    song = terminal.folder / "kettle.mp3"
    song.unlink(missing_ok=True)
    command = [sys.executable, "-c", terminal.translated(code)]
    subprocess.run(command, cwd=terminal.folder, env=terminal.environment, check=True, timeout=DEADLINE_S)
    assert soundfile.info(song).format == "MP3"


def test_an_error_is_in_no_song_and_is_no_success(terminal: Terminal) -> None:
    curls = [command for command in commands() if " -o " in command]
    assert len(curls) >= 3
    for command in curls:
        file = terminal.folder / shlex.split(command)[shlex.split(command).index("-o") + 1]
        file.unlink(missing_ok=True)
        wrong = command.replace("/predict", "/none").replace("JOB_ID", "none")
        assert terminal.type(wrong).returncode == 22
        assert file.suffix == ".json" or not file.exists()


CURLS = [
    line
    for document in (ROOT / "docs").glob("*.md")
    for line in document.read_text().splitlines()
    if line.startswith("curl ") and re.search(r'"lyrics"|"result"', line) and '"wait_seconds": 0' not in line
]


def test_no_document_has_a_song_printed_to_the_terminal() -> None:
    assert len(CURLS) >= 4
    assert all(" | python3 -c " in line or " -o " in line for line in CURLS)


@pytest.mark.parametrize("curl", sorted(set(CURLS)), ids=range(len(set(CURLS))))
def test_what_the_documents_pipe_a_song_into_writes_songs_alone(curl: str, tmp_path: Path) -> None:
    saving = ["bash", "-c", curl.partition(" | ")[2]]
    problem = {"title": "Bad request", "status": 400, "detail": "lyrics: got nothing"}
    unfinished = {"predictions": [{"job_id": "5d1c", "status": "running"}]}
    for answer in (problem, unfinished):
        done = subprocess.run(saving, input=json.dumps(answer), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert ("lyrics: got nothing" in done.stderr) == (answer is problem) and "Traceback" not in done.stderr
        assert not list(tmp_path.iterdir())
    song = {"predictions": [{"audio": base64.b64encode(b"a song").decode()}]}
    done = subprocess.run(saving, input=json.dumps(song), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "song.mp3").read_bytes() == b"a song"
