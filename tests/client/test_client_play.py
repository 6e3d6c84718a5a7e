"""`--play` lets a song be heard while it is generated, and costs it nothing, whatever the player does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import client
from tests.support.fakes import FakeClock
from tests.support.job_server import AUDIO, DONE, JOB_ID, QUEUED, STREAM, STREAM_URL, JobServer, running
from tests.support.paths import PROJECT
from tests.support.threaded import answering

SING = ["sing", "--genres", "folk calm", "--lyrics", "[verse]\nla la", "--play"]
STREAMED = {**running("stage1", 0.4, 1), "stream_url": STREAM_URL}
LIFE = (QUEUED, STREAMED, {**DONE, "stream_url": STREAM_URL})
KEEP = "cat >{heard}"
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs players, and nothing else: each is a shell script. What is heard is in the file that is returned."""
    folder, heard = tmp_path / "bin", tmp_path / "heard"
    folder.mkdir()
    (folder / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(folder))

    def install(**players: str) -> Path:
        for name, script in players.items():
            (folder / name).write_text(f"#!/bin/sh\n{script.format(heard=heard)}\n")
            (folder / name).chmod(0o755)
        return heard

    return install


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "song.mp3"


def sing(server: JobServer, output: Path, *more: str) -> int:
    with answering(server):
        return client.main([*SING, "--url", server.address, "--out", str(output), *more], FakeClock())


def test_the_song_is_heard_from_its_stream_and_written(
    install: Install, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = install(ffplay=KEEP)
    assert sing(JobServer(LIFE), output) == 0
    assert (heard.read_bytes(), output.read_bytes()) == (STREAM, AUDIO)
    assert capsys.readouterr().out == f"{output}: 12.3 s, seed 7, job {JOB_ID}\n"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_stream_that_is_cut_goes_on_where_it_was(install: Install, output: Path, ranges: bool) -> None:
    heard = install(ffplay=KEEP)
    server = JobServer(LIFE, cuts=[7_500, 12_345, 12_345, 20_000], ranges=ranges)
    assert sing(server, output) == 0
    assert heard.read_bytes() == STREAM
    assert server.streamed[:2] == [None, "bytes=7500-"]


def test_a_song_that_was_there_already_is_heard_from_its_start(install: Install, output: Path) -> None:
    heard = install(ffplay=KEEP)
    with answering(JobServer(LIFE[-1:])) as server:
        words = ["result", JOB_ID, "--play", "--url", server.address, "--out", str(output)]
        assert client.main(words, FakeClock()) == 0
    assert heard.read_bytes() == STREAM


def test_without_a_stream_the_file_is_played(install: Install, output: Path) -> None:
    heard = install(mpv=KEEP)
    assert sing(JobServer(), output) == 0
    assert heard.read_bytes() == output.read_bytes() == AUDIO


def test_the_first_player_that_is_installed_is_taken(install: Install, output: Path) -> None:
    heard = install(mpv="echo mpv $* >{heard}; cat >/dev/null", cvlc="echo cvlc >{heard}; cat >/dev/null")
    assert sing(JobServer(LIFE), output) == 0
    assert heard.read_text() == "mpv --no-video --really-quiet -\n"


def test_without_a_player_it_says_which_to_install(
    install: Install, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sing(JobServer(LIFE), output) == 0
    assert output.read_bytes() == AUDIO
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "--play" in line)
    assert "no player is installed" in line and "ffmpeg" in line and "mpv" in line


@pytest.mark.parametrize(
    ("script", "told"),
    [("echo no audio device >&2; exit 3", "ffplay ended with exit code 3: no audio device"), ("exit 0", "exit code 0")],
)
def test_a_player_that_ends_early_costs_the_song_nothing(
    install: Install, output: Path, script: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install(ffplay=script)
    assert sing(JobServer(LIFE), output) == 0
    assert output.read_bytes() == AUDIO
    error = capsys.readouterr().err
    assert told in error and "the song is written all the same" in error and "Traceback" not in error


def test_a_player_that_cannot_be_started_costs_the_song_nothing(
    install: Install, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(ffplay="").with_name("bin").joinpath("ffplay").write_text("#!/no/such/interpreter\n")
    assert sing(JobServer(LIFE), output) == 0
    assert output.read_bytes() == AUDIO
    assert "ffplay cannot be started: No such file or directory" in capsys.readouterr().err


def test_a_stream_that_is_refused_costs_the_song_nothing(
    install: Install, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(ffplay=KEEP)
    gone = {**STREAMED, "stream_url": "http://127.0.0.1:1/none.mp3"}
    assert sing(JobServer([gone, DONE]), output) == 0
    assert output.read_bytes() == AUDIO
    assert "warning: --play: the song cannot be played on: no answer" in capsys.readouterr().err


def test_a_song_that_fails_ends_the_music(install: Install, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(ffplay="cat >/dev/null; exec sleep 600")
    failed = {"job_id": JOB_ID, "status": "failed", "error": {"detail": "out of memory"}}
    assert sing(JobServer([STREAMED, failed]), output) == 1
    assert "out of memory" in capsys.readouterr().err


def test_the_output_may_be_piped_while_the_song_is_heard(install: Install) -> None:
    heard = install(ffplay=KEEP)
    with answering(JobServer(LIFE)) as server:
        command = [sys.executable, str(PROJECT / "client.py"), *SING, "--url", server.address, "--out", "-"]
        done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stdout, heard.read_bytes()) == (0, AUDIO, STREAM)


def test_ctrl_c_ends_the_music_and_keeps_the_song(install: Install, output: Path) -> None:
    heard = install(ffplay="cat >{heard}; exec /bin/sleep 600")
    with answering(JobServer(LIFE)) as server:
        command = [sys.executable, str(PROJECT / "client.py"), *SING, "--url", server.address, "--out", str(output)]
        singing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert singing.stderr
        assert any("the music goes on" in line for line in singing.stderr)
        singing.send_signal(signal.SIGINT)
        shown, _ = singing.communicate(timeout=30)
    assert singing.returncode == 0 and shown.startswith(f"{output}: 12.3 s")
    assert output.read_bytes() == AUDIO and STREAM.startswith(heard.read_bytes())
    assert not any(instance.get("operation") == "cancel" for instance in server.instances)
