"""`check` tells of lyrics what the server says of them, and ends with 1 where no song could be made."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import client
from tests.support.job_server import CHECKED, JobServer
from tests.support.threaded import answering

LYRICS = "[intro]\n\n[verse]\na\nb\n"
NO_GENRES = {"field": "genres", "line": None, "detail": "genres: got nothing; allowed: text"}
NO_TAG = {"field": "lyrics", "line": 2, "detail": "lyrics (line 2): got 'la'; allowed: sections"}
FAILED: dict[str, Any] = {"sections": [], "expected_seconds": 0, "warnings": [], "ok": False}


@pytest.fixture
def lyrics(tmp_path: Path) -> str:
    file = tmp_path / "lyrics.txt"
    file.write_text(LYRICS)
    return str(file)


def check(server: JobServer, *words: str) -> int:
    with answering(server):
        return client.main(["check", *words, "--url", server.address])


def test_each_section_is_shown_with_its_length_and_each_warning_with_its_line(
    lyrics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(JobServer(), lyrics) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 sections, about 40 s",
        "  line 1   [intro]   15 s, no words",
        "  line 12  [verse]   25 s, 2 lines",
        "  line 15  [outro]  not generated, 1 line",
        "warning: lyrics (line 1): [intro] comes first",
    ]


def test_the_server_is_asked_what_was_given(lyrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = JobServer()
    check(server, lyrics, "--genres", "folk", "--segments", "2", "--max-new-tokens", "500")
    given = {"lyrics": LYRICS, "genres": "folk", "segments": 2, "max_new_tokens": 500}
    assert server.instances == [{"operation": "check", **given}]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[verse]\nla")))
    server = JobServer()
    check(server, "-")
    assert server.instances == [{"operation": "check", "lyrics": "[verse]\nla"}]


def test_wrong_lyrics_end_with_1(lyrics: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(JobServer(checked={**FAILED, "errors": [NO_GENRES, NO_TAG]}), lyrics) == 1
    assert capsys.readouterr().out == "error: lyrics (line 2): got 'la'; allowed: sections\n"


def test_genres_are_checked_where_they_are_given(lyrics: str, capsys: pytest.CaptureFixture[str]) -> None:
    checked = {**CHECKED, "ok": False, "errors": [NO_GENRES]}
    assert check(JobServer(checked=checked), lyrics) == 0
    assert "error" not in capsys.readouterr().out
    assert check(JobServer(checked=checked), lyrics, "--genres", "pop") == 1
    assert "error: genres: got nothing" in capsys.readouterr().out


def test_a_script_gets_json(lyrics: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(JobServer(checked={**FAILED, "errors": [NO_TAG]}), lyrics, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {**FAILED, "errors": [NO_TAG]}


def test_an_older_server_says_what_it_can_do(lyrics: str, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = {"title": "Bad request", "status": 400, "detail": "operation: got 'check'; allowed: status"}
    assert check(JobServer(checked=unknown), lyrics) == 4
    assert "operation: got 'check'" in capsys.readouterr().err
