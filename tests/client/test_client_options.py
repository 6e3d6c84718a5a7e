"""The words behind client.py: what is understood, and what is refused in one line and a hint, with no server asked."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import client
from tests.support.fakes import FakeClock
from tests.support.job_server import AUDIO, DONE, JOB_ID, READY, RESULT, JobServer, running
from tests.support.paths import PROJECT
from tests.support.threaded import answering

CLIENT = PROJECT / "client.py"
SING = ["sing", "--genres", "folk", "--lyrics", "[verse]\nla la"]
COMMANDS = ("sing", "result", "check", "status", "cancel", "delete", "models", "download")
NO_SERVER = "http://127.0.0.1:1"  # whatever comes so far ends with 3

WRONG = {  # words -> what is said
    "": "a command is missing; allowed: sing, result",
    "--url http://here": "a command is missing",
    "sang": "got the command 'sang'; allowed: sing, result|did you mean sing?",
    "--quiet modles": "got the command 'modles'|did you mean models?",
    "check": "required: FILE",
    "check none.txt": "FILE: got 'none.txt': No such file or directory; allowed: a text file",
    "check here/empty": "FILE: got 'here/empty', which is empty",
    "check here/genres --genres=": "--genres: got nothing",
    "check here/genres --play": "client.py check has no option --play",
    "models now": "not expected: now",
    "status": "required: JOB_ID",
    "status a b": "not expected: b",
    "models --nope": "client.py models has no option --nope|client.py models --help",
    "models --out song.mp3": "client.py models has no option --out",
    "sing --gnres folk --lyrics la": "no option --gnres|did you mean --genres?",
    "sing --max_new_tokens=5": "no option --max_new_tokens|did you mean --max-new-tokens?",
    "sing -o song.mp3": "no option -o",
    "sing --genres folk": "one of the arguments --lyrics --lyrics-file is required",
    "sing --genres folk --genres-file a --lyrics la": "--genres-file: |",
    "models --url": "--url: expected one argument",
    "models --url http://a --endpoint b": "--endpoint: not allowed with argument --url",
    "sing --lyrics song.txt": "--lyrics: got 'song.txt'; allowed: the words themselves",
    "sing --lyrics -": "--lyrics: got '-'",
    "sing --genres here/genres": "--genres: got 'here/genres'; allowed: the words",
    "sing --genres=": "--genres: got nothing",
    "sing --lyrics-file none.txt": "--lyrics-file: got 'none.txt': No such file or directory; allowed: a text file",
    "sing --lyrics-file here": "--lyrics-file: got 'here': Is a directory",
    "sing --lyrics-file here/empty": "--lyrics-file: got 'here/empty', which is empty",
    "sing --lyrics-file /dev/zero": "--lyrics-file: got '/dev/zero', which is too long; allowed: a text file of up to",
    "sing --lyrics-file here/binary": "--lyrics-file: got 'here/binary', which is not in UTF-8",
    "sing --seed seven": "--seed: got 'seven'; allowed: a whole number",
    "sing --top-p nan": "--top-p: got 'nan'; allowed: a number",
    "sing --format midi": "--format: got 'midi'; allowed: mp3, wav, flac, ogg",
    "sing --tracks mix drums": "--tracks: got 'drums'; allowed: mix, vocal, instrumental",
    "sing --reference none.wav": "--reference: got 'none.wav': No such file or directory; allowed: an audio file",
    "models --retry-seconds -1": "--retry-seconds: got '-1'; allowed: a number of seconds from 0",
    "sing --out here": "--out: got here, which is a folder",
    "sing --out new/": "--out: got 'new/'; allowed: a file",
    "sing --out /dev/null": "--out: got /dev/null, which is no file; allowed: a file, or - for the standard output",
    "sing --out none/song.mp3": "--out: got none/song.mp3, but there is no folder none",
    "sing --out /proc/song.mp3": "--out: got /proc/song.mp3, but /proc cannot be written to",
    "sing --out song.mp4": "--out: got song.mp4; allowed: a name that ends in one of mp3, wav, flac, ogg",
    f"sing --out {'a' * 300}.mp3": "File name too long",
    "sing --genres a --lyrics b --out song.wav --format mp3": "--out: got song.wav, but --format is mp3",
    "sing --genres a --lyrics b --out - --json": "--out: got - together with --json",
    "sing --genres a --lyrics b --out - --tracks mix vocal": "--out: got - together with the tracks mix, vocal",
    "models --api-key schlüssel": "--api-key: got a key with 'ü' in it; allowed: visible ASCII characters",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a folder and files, where the command is given."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "genres").write_text("folk")
    (folder / "empty").touch()
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[:60])
def test_a_wrong_argument_is_one_line_and_a_hint(words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(words.split()) == 2
    shown = capsys.readouterr()
    error, *hints = shown.err.splitlines()
    wanted, _, hint = WRONG[words].partition("|")
    assert bool(shown.out) == ("--json" in words)
    assert error.startswith("client.py: ") and wanted in error
    assert len(hints) <= 1 and all(line.startswith("hint: ") for line in hints)
    assert hint in "".join(hints)


def test_a_wrong_argument_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["models", "--nope", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_options_stand_before_or_behind_the_command(here: Path) -> None:
    with answering(JobServer(models=[READY])) as server:
        where = ["--url", server.address]
        for words in (
            [*where, "models"],
            ["models", *where],
            ["--json", *where, "models"],
            ["--quiet", "models", *where],
        ):
            assert client.main(words) == 0, words
        assert (
            client.main([f"--url={server.address}", "--genres", "sing", "sing", "--lyrics", "models", "--seed", "-1"])
            == 0
        )
    assert server.instances[-1]["operation"] == "status"
    song = next(instance for instance in server.instances if "genres" in instance)
    assert (song["genres"], song["lyrics"], song["seed"]) == ("sing", "models", -1)


def test_words_that_look_like_paths_are_sent(here: Path) -> None:
    with answering(JobServer()) as server:
        command = [
            "sing",
            "--genres",
            "lo-fi/hip-hop feat. nobody",
            "--lyrics",
            "[verse]\nwww.song.txt",
            "--url",
            server.address,
        ]
        assert client.main(command, FakeClock()) == 0
    assert server.instances[0]["genres"] == "lo-fi/hip-hop feat. nobody"


@pytest.mark.parametrize("given", ["a-long-secret-key\n", "  a-long-secret-key\r\n", "a-long-secret-key"])
@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_key_is_sent_without_the_white_space_around_it(given: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_API_KEY", given if way == "environment" else "another-key-of-the-environment")
    with answering(JobServer(models=[READY])) as server:
        more = ["--api-key", given] if way == "option" else []
        assert client.main(["models", "--url", server.address, *more]) == 0
    assert server.keys == ["a-long-secret-key"]


def test_a_wrong_key_in_the_environment_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("YUE_API_KEY", "secret key")
    assert client.main(["models"]) == 2
    error = capsys.readouterr().err
    assert "YUE_API_KEY: got a key with ' ' in it" in error and "secret" not in error


@pytest.mark.parametrize("name", ["song.wav", "song.mp4", "song.mp3.flac"])
def test_a_song_is_never_put_into_a_misnamed_file(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(JobServer([DONE])) as server:
        assert client.main(["result", JOB_ID, "--url", server.address, "--out", name]) == 2
        assert not (here / name).exists()
        assert "--out: got " + name in capsys.readouterr().err
        for fitting in ("song.mp3", "SONG.MP3", "song"):
            assert client.main(["result", JOB_ID, "--url", server.address, "--out", fitting]) == 0
            assert (here / fitting).read_bytes() == AUDIO


def test_a_dash_is_the_standard_output(here: Path) -> None:
    with answering(JobServer()) as server:
        command = [sys.executable, str(CLIENT), *SING, "--url", server.address, "--out"]
        piped = subprocess.run([*command, "-"], capture_output=True)
        named = subprocess.run([*command, "./-"], capture_output=True)
    assert (piped.returncode, piped.stdout) == (0, AUDIO)
    assert b"-: 12.3 s, seed 7" in piped.stderr
    assert named.returncode == 0 and (here / "-").read_bytes() == AUDIO


def test_several_tracks_do_not_go_to_the_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    both = {**DONE, "tracks": {**DONE["tracks"], "vocal": DONE["tracks"]["mix"]}}
    with answering(JobServer([both], result={**RESULT, **both})) as server:
        assert client.main(["result", JOB_ID, "--url", server.address, "--out", "-"]) == 2
    shown = capfdbinary.readouterr()
    assert shown.out == b"" and b"the song has the tracks mix, vocal" in shown.err


def test_a_terminal_gets_no_song() -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, str(CLIENT), *SING, "--url", NO_SERVER, "--out", "-"]
    done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, text=True)
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 2
    assert "--out: got -, and the output is a terminal" in done.stderr


@pytest.mark.parametrize("more", [["models", "--json"], [*SING, "--out", "-"]], ids=["json", "song"])
def test_a_reader_that_goes_away_is_no_error(more: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with answering(JobServer(models=[READY])) as server:
        command = [sys.executable, str(CLIENT), *more, "--url", server.address]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("more", [["models", "--json"], [*SING, "--out", "-"]], ids=["json", "song"])
def test_a_full_disk_behind_the_output_is_named(more: list[str]) -> None:
    with answering(JobServer(models=[READY])) as server, open("/dev/full", "wb") as full:
        command = [sys.executable, str(CLIENT), *more, "--url", server.address]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_while_a_song_is_waited_for_says_how_to_come_back(here: Path) -> None:
    with answering(JobServer([running("stage1", 0.1, 1)])) as server:
        command = [sys.executable, str(CLIENT), "result", JOB_ID, "--url", server.address]
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.looked.wait(30)
        waiting.send_signal(signal.SIGINT)
        _, shown = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert f"the job continues; fetch its song with: client.py result {JOB_ID} --url {server.address}" in shown
    assert not any(instance.get("operation") == "cancel" for instance in server.instances)


def test_letters_that_the_terminal_lacks_are_no_error(here: Path) -> None:
    failed = {"job_id": JOB_ID, "status": "failed", "error": {"title": "Engine", "detail": "带我回家"}}
    with answering(JobServer([failed])) as server:
        command = [sys.executable, str(CLIENT), "status", JOB_ID, "--url", server.address]
        done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert "failed" in done.stdout


def test_an_older_python_is_told_which_is_needed() -> None:
    older = "import sys; sys.version_info = (3, 10); import client"
    done = subprocess.run([sys.executable, "-c", older], cwd=CLIENT.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("client.py: needs Python 3.11 or newer")


def test_help_is_short_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        client.main(["--url", NO_SERVER, "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert len(shown.splitlines()) < 25
    assert shown.count("\n  client.py ") == 3
    assert all(f"\n  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_in_groups_and_tells_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        client.main([command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: client.py {command} ") and "[OPTIONS]\n" in shown
    assert "where the server is:" in shown and "what is shown:" in shown and "\noptions:" not in shown
    assert all(f"\n  {code}  " in shown for code in (0, 1, 2, 3, 4, 5, 130))
