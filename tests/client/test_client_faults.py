"""The command line against the real app over fake models: whatever is cut, restarted or busy, there is one song."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

import pytest
from werkzeug.serving import BaseWSGIServer, make_server

import client
from server import close_app
from tests.support.cutting_proxy import CuttingProxy
from tests.support.fakes import LYRICS, SECONDS, FakeClock, Served, new_folder
from tests.support.paths import PROJECT
from tests.support.songs import tone
from tests.support.threaded import answering

CLIENT = PROJECT / "client.py"
SING = ["sing", "--genres", "pop", "--lyrics", LYRICS, "--seed", "7"]
SONG = b"mix of pop 7"


@contextmanager
def listening(served: Served, port: int = 0) -> Iterator[BaseWSGIServer]:
    """The app on a port of this machine."""
    try:
        with answering(make_server("127.0.0.1", port, served.app, threaded=True)) as server:
            yield server
    finally:
        close_app(served.app)


def url(server: BaseWSGIServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def jobs(served: Served) -> list[dict[str, Any]]:
    return served.client.get("/jobs").json["jobs"]  # type: ignore[index,no-any-return]


class ActingClock(FakeClock):
    """Does something at the first pause, instead of waiting."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        act, self._act = self._act, None
        if act:
            act()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "song.mp3"


@pytest.mark.parametrize("cut", [0, 30, 400], ids=["before the answer", "in its head", "in its body"])
def test_a_song_whose_submission_is_cut_is_generated_once(cut: int, out: Path) -> None:
    served = Served()
    with listening(served) as server, CuttingProxy(server.server_port, [cut]) as proxy:
        assert client.main([*SING, "--url", proxy.url, "--out", str(out)], FakeClock()) == 0
        assert proxy.were_cut == 1
        assert len(jobs(served)) == 1
    assert out.read_bytes() == SONG


def test_any_one_connection_may_be_cut(tmp_path: Path) -> None:
    served = Served()
    with listening(served) as server:
        for place in range(4):
            out = tmp_path / f"song-{place}.mp3"
            with CuttingProxy(server.server_port, [None] * place + [310]) as proxy:
                assert client.main([*SING, "--url", proxy.url, "--out", str(out)], FakeClock()) == 0
            assert out.read_bytes() == SONG


def test_a_file_that_is_cut_goes_on_where_it_was_cut(out: Path) -> None:
    served = Served()
    with listening(served) as server:
        job_id = served.one(seed=7)["job_id"]
        size = _answer_bytes(server, f"/jobs/{job_id}/audio/mix.mp3")
        with CuttingProxy(server.server_port, [None, size - 5]) as proxy:
            assert client.main(["result", job_id, "--url", proxy.url, "--out", str(out)], FakeClock()) == 0
            assert proxy.were_cut == 1
    assert out.read_bytes() == SONG


def test_a_server_that_is_started_again_generates_the_song_it_had_accepted(out: Path) -> None:
    data = new_folder()
    first = Served(may_generate=False, data=data)
    with listening(first) as server:
        port = server.server_port
        second: list[Any] = []

        def restart() -> None:
            server.shutdown()
            server.server_close()
            close_app(first.app)
            again = listening(Served(data=data), port)
            second.extend((again, again.__enter__()))

        code = client.main([*SING, "--url", url(server), "--out", str(out)], ActingClock(restart))
    second[0].__exit__(None, None, None)
    assert code == 0
    assert out.read_bytes() == SONG


def test_a_server_that_has_forgotten_the_song_is_asked_for_it_again(out: Path) -> None:
    first = Served(may_generate=False)
    with listening(first) as server:
        port = server.server_port
        second: list[Any] = []

        def restart() -> None:
            server.shutdown()
            server.server_close()
            again = listening(Served(), port)  # with an empty folder
            second.extend((again, again.__enter__()))

        code = client.main([*SING, "--url", url(server), "--out", str(out)], ActingClock(restart))
    second[0].__exit__(None, None, None)
    assert code == 0
    assert out.read_bytes() == SONG


def test_a_full_queue_is_waited_out_as_long_as_it_says(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = Served(may_generate=False, max_queue=1)
    with listening(served) as server:
        _fill(served)
        clock = ActingClock(lambda: _release(served))
        assert client.main([*SING, "--url", url(server), "--out", str(out)], clock) == 0
    assert clock.slept[0] == 30
    assert "songs are waiting already; try again later; again in 30 s" in capsys.readouterr().err
    assert out.read_bytes() == SONG


def test_a_queue_that_stays_full_is_code_3(out: Path) -> None:
    served = Served(may_generate=False, max_queue=1)
    with listening(served) as server:
        _fill(served)
        assert client.main([*SING, "--url", url(server), "--out", str(out), "--retry-seconds", "60"], FakeClock()) == 3
        served.models.engine.release()


def test_ctrl_c_cancels_the_one_song(out: Path) -> None:
    served = Served(may_generate=False)
    with listening(served) as server:
        command = [sys.executable, str(CLIENT), *SING, "--url", url(server), "--out", str(out), "--json"]
        singing = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert singing.stderr is not None
        assert any("generating section" in line for line in singing.stderr)
        singing.send_signal(signal.SIGINT)
        shown, _ = singing.communicate(timeout=60)
        (job,) = jobs(served)
        served.wait_for(job["job_id"])
        assert jobs(served)[0]["status"] == "cancelled"
    assert singing.returncode == 130
    assert json.loads(shown) == {"error": {"detail": "interrupted", "exit_code": 130}}
    assert list(out.parent.iterdir()) == []


def test_json_is_one_object_with_the_files(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(Served()) as server:
        tracks = ["--tracks", "mix", "vocal"]
        code = client.main([*SING, *tracks, "--url", url(server), "--out", str(out), "--json", "--quiet"], FakeClock())
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    answer = json.loads(shown.out)
    vocal = out.with_name("song-vocal.mp3")
    assert answer["files"] == {"mix": str(out), "vocal": str(vocal)}
    assert (answer["seed"], answer["status"]) == (7, "succeeded") and "audio" not in answer
    assert (out.read_bytes(), vocal.read_bytes()) == (SONG, b"vocal of pop 7")


def test_a_refusal_is_json_too_and_names_the_field(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(Served()) as server:
        command = [*SING, "--segments", "0", "--url", url(server), "--out", str(out), "--json"]
        assert client.main(command, FakeClock()) == 4
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert (error["field"], error["value"], error["exit_code"]) == ("segments", 0, 4)
    assert "segments: got 0; allowed: a whole number from 1 to 100" in shown.err


def test_a_request_that_is_refused_for_its_size_while_it_is_sent_is_not_tried_again(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "reference.wav"
    reference.write_bytes(tone(300))
    with answering(TCPServer(("127.0.0.1", 0), TooLarge)) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        command = [*SING, "--reference", str(reference), "--url", address, "--out", str(out)]
        assert client.main(command, FakeClock()) == 4
    assert "too much" in capsys.readouterr().err


class TooLarge(BaseRequestHandler):
    """Says so as soon as a request has begun, and hangs up on the rest."""

    def handle(self) -> None:
        self.request.recv(1_000)
        body = b'{"title": "Content Too Large", "status": 413, "detail": "too much"}'
        self.request.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def test_every_field_is_understood_by_the_server(out: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.wav"
    reference.write_bytes(tone(8))
    options = "--segments 1 --max-new-tokens 200 --temperature 0.5 --top-p 0.9 --top-k 5 --repetition-penalty 1.2"
    more = ["--guidance-scale", "2", "1.5", "--format", "mp3", "--tracks", "vocal", "--model", "tiny"]
    audio = ["--reference", str(reference), "--reference-start", "1", "--reference-end", "7", "--wait-seconds", "5"]
    with listening(Served()) as server:
        command = [*SING, *options.split(), *more, *audio, "--url", url(server), "--out", str(out)]
        assert client.main(command, FakeClock()) == 0
    assert out.read_bytes() == b"vocal of pop 7"


def test_a_file_that_exists_is_not_overwritten_unasked(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.write_bytes(b"dear")
    served = Served()
    with listening(served) as server:
        assert client.main([*SING, "--url", url(server), "--out", str(out)], FakeClock()) == 2
        assert "--force" in capsys.readouterr().err and jobs(served) == []
        assert out.read_bytes() == b"dear"
        assert client.main([*SING, "--url", url(server), "--out", str(out), "--force"], FakeClock()) == 0
    assert out.read_bytes() == SONG


def test_a_song_without_a_name_takes_a_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with listening(Served()) as server:
        assert client.main([*SING, "--url", url(server)], FakeClock()) == 0
        assert client.main([*SING, "--url", url(server)], FakeClock()) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["song-2.mp3", "song.mp3"]


def test_lyrics_come_from_the_input(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LYRICS.encode())))
    with listening(Served()) as server:
        words = ["sing", "--genres", "pop", "--seed", "7", "--lyrics-file", "-"]
        monkeypatch.setenv("YUE_URL", url(server))
        assert client.main([*words, "--out", str(out)], FakeClock()) == 0
    assert out.read_bytes() == SONG


def test_a_line_end_may_be_spelled_out(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = Served()
    with listening(served) as server:
        words = ["sing", "--genres", "pop", "--seed", "7", "--lyrics", r"[intro]\nA\n\n[chorus]\n[solo]"]
        assert client.main([*words, "--url", url(server), "--out", str(out)], FakeClock()) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings[0] == r"warning: lyrics (lines 1–4): \n are read as line ends"
    assert warnings[-1].startswith("warning: lyrics (lines 4–5): [chorus], [solo] have no words")


def test_models_are_fetched_and_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    served = Served(may_fetch=False)
    with listening(served) as server:
        clock = ActingClock(served.models.may_fetch.set)
        assert client.main(["download", "--url", url(server), "--json"], clock) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["status"] == "ready"
    assert "50% making the demo model 50%" in shown.err


def _fill(served: Served) -> None:
    """One song runs, one waits, and no more may."""
    served.one(seed=1, wait_seconds=0)
    assert served.manager.load().result(SECONDS)
    served.models.engine.wait_until_begun(1)
    served.one(seed=2, wait_seconds=0)


def _release(served: Served) -> None:
    waiting = [job["job_id"] for job in jobs(served)]
    served.models.engine.release()
    for job_id in waiting:
        served.wait_for(job_id)


def _answer_bytes(server: BaseWSGIServer, path: str) -> int:
    """How long a whole answer is, with its head."""
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        asked = f"GET {path} HTTP/1.1\r\nHost: {url(server)[7:]}\r\nConnection: close\r\n\r\n"
        connection.sendall(asked.encode())
        size = 0
        while block := connection.recv(1 << 16):
            size += len(block)
        return size
