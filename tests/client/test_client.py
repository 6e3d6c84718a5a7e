"""The command line, against a real HTTP server that plays a job's life."""

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
from tests.support.job_server import AUDIO, DONE, DOWNLOADING, JOB_ID, QUEUED, READY, JobServer, Json, running
from tests.support.paths import PROJECT
from tests.support.threaded import answering

CLIENT = PROJECT / "client.py"
SING = ["sing", "--genres", "folk calm", "--lyrics", "[verse]\nla la"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "song.mp3"


def sing(server: JobServer, *more: str) -> int:
    with answering(server):
        return client.main([*SING, "--url", server.address, *more], FakeClock())


def test_a_song_is_written_and_told_of(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sing(JobServer(), "--out", str(output)) == 0
    assert output.read_bytes() == AUDIO
    assert capsys.readouterr().out == f"{output}: 12.3 s, seed 7, job {JOB_ID}\n"


def test_the_way_to_the_song_is_shown(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sing(JobServer(), "--out", str(output))
    assert capsys.readouterr().err.splitlines() == [
        "  0% waiting for the models: downloading 12%",
        "  0% waiting for the models: loading stage1",
        " 20% generating section 1 of 3, 41 s left",
        " 40% generating section 2 of 3",
        " 80% filling in the sound",
        "100% succeeded",
        "warning: lyrics: [intro] comes first",
    ]


def test_a_step_that_changes_nothing_is_not_shown_again(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [running("stage1", 0.21, 1, 41.0), running("stage1", 0.22, 1, 40.0), running("stage1", 0.23, 1, 39.0), DONE]
    sing(JobServer(steps), "--out", str(output))
    assert capsys.readouterr().err.count("generating section 1") == 1


def test_on_a_terminal_one_line_moves(output: Path) -> None:
    controller, terminal = pty.openpty()
    with answering(JobServer()) as server:
        command = [sys.executable, str(CLIENT), *SING, "--url", server.address, "--out", str(output)]
        done = subprocess.run(command, stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    shown = os.read(controller, 100_000).decode()
    os.close(controller)
    assert done.returncode == 0
    assert "\r[############------------------]  40% generating section 2 of 3" in shown
    assert shown.count("\n") == 2, "one for the bar's end, one for the warning"


def test_given_options_are_sent(tmp_path: Path) -> None:
    server = JobServer()
    sing(server, "--segments", "2", "--seed", "5", "--out", str(tmp_path / "song.flac"))
    asked = server.instances[0]
    assert asked.pop("request_id")
    assert asked == {
        "genres": "folk calm",
        "lyrics": "[verse]\nla la",
        "segments": 2,
        "seed": 5,
        "format": "flac",
        "wait_seconds": 0,
    }


def test_a_reference_may_be_an_address(output: Path) -> None:
    server = JobServer()
    sing(server, "--reference", "https://example.org/a.mp3", "--reference-end", "9", "--out", str(output))
    assert server.instances[0]["reference"] == {"audio_uri": "https://example.org/a.mp3", "end_seconds": 9.0}


def test_a_place_in_the_queue_is_shown(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sing(JobServer([{**QUEUED, "position": 3, "expected_seconds": 80.4}, DONE], [READY]), "--out", str(output))
    assert "  0% waiting as number 3, 80 s left" in capsys.readouterr().err


def test_what_holds_the_download_up_is_shown(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_up = {**DOWNLOADING, "download": {"waiting": {"seconds": 8, "reason": "model.safetensors: timed out"}}}
    proving = {**DOWNLOADING, "download": {"proving": "m-a-p/YuE/model.safetensors"}}
    sing(JobServer(models=[held_up, proving, READY]), "--out", str(output))
    assert capsys.readouterr().err.splitlines()[:2] == [
        "  0% waiting for the models: trying again: model.safetensors: timed out",
        "  0% waiting for the models: checking m-a-p/YuE/model.safetensors",
    ]


def test_models_that_are_not_told_of_hold_no_song_up(output: Path) -> None:
    closed = {"title": "Forbidden", "status": 403, "detail": "models are closed here"}
    assert sing(JobServer(models=[closed]), "--out", str(output)) == 0


def test_options_that_are_not_given_are_left_to_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = JobServer()
    sing(server)
    assert server.instances[0].keys() == {"genres", "lyrics", "wait_seconds", "request_id"}
    assert (tmp_path / "song.mp3").read_bytes() == AUDIO


def test_words_come_from_files(tmp_path: Path, output: Path) -> None:
    genres, lyrics = tmp_path / "genres.txt", tmp_path / "lyrics.txt"
    genres.write_text("folk calm\n")
    lyrics.write_bytes("\ufeff[verse]\nné à l’aube 歌\n".encode())
    with answering(JobServer()) as server:
        words = ["--genres-file", str(genres), "--lyrics-file", str(lyrics)]
        client.main(["sing", *words, "--url", server.address, "--out", str(output)], FakeClock())
    assert server.instances[0]["genres"] == "folk calm"
    assert server.instances[0]["lyrics"] == "[verse]\nné à l’aube 歌\n"


def test_a_song_is_fetched_as_a_file_where_that_can_be_reached(output: Path) -> None:
    server = JobServer()
    assert sing(server, "--out", str(output)) == 0
    assert output.read_bytes() == AUDIO
    assert "result" not in [instance.get("operation") for instance in server.instances]


def test_nothing_half_written_is_left(output: Path) -> None:
    sing(JobServer(), "--out", str(output))
    assert list(output.parent.iterdir()) == [output]


def test_a_refusal_is_passed_on(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"title": "Bad request", "status": 400, "detail": "lyrics (line 1): got 'la'; allowed: a [tag] first"}
    assert sing(JobServer(submitted=problem), "--out", str(output)) == 4
    assert capsys.readouterr().err == "client.py: lyrics (line 1): got 'la'; allowed: a [tag] first\n"
    assert not output.exists()


def test_every_listed_problem_is_passed_on(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = [{"title": "a", "detail": "seed: got -1"}, {"title": "a", "detail": "segments: got 0"}]
    problem = {"title": "Bad request", "status": 400, "detail": "2 fields are wrong", "errors": errors}
    assert sing(JobServer(submitted=problem), "--out", str(output)) == 4
    assert capsys.readouterr().err == "client.py: 2 fields are wrong\nseed: got -1\nsegments: got 0\n"


def test_an_error_in_the_prediction_is_passed_on(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"job_id": JOB_ID, "status": "failed", "error": {"title": "Engine", "detail": "out of memory"}}
    assert sing(JobServer([QUEUED, failed]), "--out", str(output)) == 1
    assert f"client.py: job {JOB_ID} failed: out of memory\n" in capsys.readouterr().err


def test_a_song_cancelled_by_another_is_no_success(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sing(JobServer([QUEUED, {"job_id": JOB_ID, "status": "cancelled"}]), "--out", str(output)) == 1
    assert f"job {JOB_ID} cancelled" in capsys.readouterr().err


def test_ctrl_c_cancels_the_song(output: Path) -> None:
    with answering(JobServer([running("stage1", 0.1, 1)])) as server:
        command = [sys.executable, str(CLIENT), *SING, "--url", server.address, "--out", str(output)]
        singing = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.looked.wait(30)
        singing.send_signal(signal.SIGINT)
        _, shown = singing.communicate(timeout=30)
    assert singing.returncode == 130
    assert f"job {JOB_ID}: cancelled" in shown and "Traceback" not in shown
    assert server.instances[-1] == {"job_id": JOB_ID, "operation": "cancel"}
    assert not output.exists()


def test_status_says_where_a_job_is(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(JobServer([running("stage1", 0.34, 2, 41.2)])) as server:
        assert client.main(["status", JOB_ID, "--url", server.address]) == 0
    assert capsys.readouterr().out == f"job {JOB_ID}: 34%, generating section 2 of 3, 41 s left\n"


@pytest.mark.parametrize("state", ["cancelled", "failed", "interrupted"])
def test_status_of_a_job_that_ended_without_a_song_has_no_percentage(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {**running("stage1", 0.34, 2), "status": state, "error": {"detail": "somebody did not want it"}}
    with answering(JobServer([job])) as server:
        assert client.main(["status", JOB_ID, "--url", server.address]) == 0
        assert capsys.readouterr().out == f"job {JOB_ID}: {state}: somebody did not want it\n"
        assert client.main(["result", JOB_ID, "--url", server.address]) == 1
    assert "%" not in capsys.readouterr().err


def test_a_job_is_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(JobServer()) as server:
        assert client.main(["cancel", JOB_ID, "--url", server.address]) == 0
    assert server.instances == [{"job_id": JOB_ID, "operation": "cancel"}]
    assert f"job {JOB_ID}: cancelled" in capsys.readouterr().out


def test_a_song_that_is_still_generated_is_cancelled_soon(capsys: pytest.CaptureFixture[str]) -> None:
    class Busy(JobServer):
        def prediction(self, instance: Json) -> Json:
            return {**running("stage1", 0.2, 1), "cancel_requested": True}

    with answering(Busy()) as server:
        assert client.main(["cancel", JOB_ID, "--url", server.address]) == 0
    assert f"job {JOB_ID}: running, being cancelled" in capsys.readouterr().out


def test_a_finished_song_cannot_be_cancelled_and_says_what_became_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Failed(JobServer):
        def prediction(self, instance: Json) -> Json:
            return {"job_id": JOB_ID, "status": "failed", "error": {"title": "Engine", "detail": "out of memory"}}

    with answering(Failed()) as server:
        assert client.main(["cancel", JOB_ID, "--url", server.address]) == 0
    assert f"job {JOB_ID}: failed already; there is nothing to cancel" in capsys.readouterr().out


def test_an_unknown_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    class Forgetful(JobServer):
        def prediction(self, instance: Json) -> Json:
            return {"error": {"title": "Not found", "status": 404, "detail": "no job 'x' is here"}}

    with answering(Forgetful()) as server:
        assert client.main(["cancel", "x", "--url", server.address]) == 4
        assert client.main(["status", "x", "--url", server.address]) == 4
    assert capsys.readouterr().err == "client.py: no job 'x' is here\n" * 2


def test_an_earlier_song_is_fetched(output: Path) -> None:
    with answering(JobServer([DONE])) as server:
        assert client.main(["result", JOB_ID, "--url", server.address, "--out", str(output)]) == 0
    assert output.read_bytes() == AUDIO


def test_models_are_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(JobServer(models=[READY])) as server:
        assert client.main(["models", "--url", server.address]) == 0
    assert json.loads(capsys.readouterr().out) == READY


NO_GPU: Json = {"status": "not_loaded", "model": "en-cot", "gpu": False}


def asked_to_download(
    models: Json, *arguments: str, answer: str = ""
) -> tuple[subprocess.CompletedProcess[str], str, list[Json]]:
    """The command in front of a person who gives that answer; what the terminal shows, what the server was asked."""
    controller, terminal = pty.openpty()
    server = JobServer(models=[models, {**READY, "model": "en-cot"}])
    os.write(controller, answer.encode())
    with answering(server):
        command = [sys.executable, str(CLIENT), "download", "--url", server.address, *arguments]
        done = subprocess.run(command, stdin=terminal, stderr=terminal, stdout=subprocess.PIPE, text=True)
    os.write(terminal, b".")  # where nothing is shown, there is nothing to read
    os.close(terminal)
    shown = os.read(controller, 100_000).decode()
    os.close(controller)
    return done, shown, [instance for instance in server.instances if instance["operation"] == "download-models"]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_a_download_for_a_server_without_a_gpu_is_asked_about(answer: str, code: int) -> None:
    done, shown, downloads = asked_to_download(NO_GPU, answer=answer)
    assert done.returncode == code
    assert "en-cot: some 16 GB" in shown and "no GPU" in shown and "estimate" in shown and "[y/N]" in shown
    assert len(downloads) == 1 - code and ("--yes" in shown) == bool(code)


@pytest.mark.parametrize(
    ("models", "arguments", "warned"),
    [
        (NO_GPU, ["--yes"], True),
        (NO_GPU, ["--yes", "--quiet"], False),
        ({**NO_GPU, "gpu": True}, [], False),
        ({"status": "not_loaded", "model": "en-cot"}, [], False),  # an older server
        ({**NO_GPU, "model": "tiny"}, [], False),
        ({**NO_GPU, "model": "tiny"}, ["--model", "en-cot", "--yes"], True),
        ({**NO_GPU, "status": "ready"}, ["--force"], False),
    ],
)
def test_a_download_is_not_asked_about(models: Json, arguments: list[str], warned: bool) -> None:
    _, shown, downloads = asked_to_download(models, *arguments)
    assert "[y/N]" not in shown and len(downloads) == 1
    assert ("warning: en-cot: some 16 GB" in shown) == warned


def test_a_download_by_a_script_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(JobServer(models=[NO_GPU, {**READY, "model": "en-cot"}])) as server:
        assert client.main(["download", "--url", server.address]) == 0
    assert "warning: en-cot: some 16 GB" in capsys.readouterr().err


def test_python_alone_is_enough(tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(CLIENT), "--help"]  # without installed packages
    subprocess.run(command, cwd=tmp_path, capture_output=True, env={}, check=True)
