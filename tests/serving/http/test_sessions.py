"""A browser signs in once with a key: its cookie then opens what the key opens, for as long as the key is one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from werkzeug.test import TestResponse

from server import close_app
from serving.http import access, session_tokens
from serving.settings import Settings
from tests.support.fakes import INSTANCE, Served, problem

KEY, OTHER = "first-key-0123456789", "second-key-987654321"
JSON = "application/json"


@pytest.fixture
def locked() -> Iterator[Served]:
    """It has two keys."""
    served = Served(api_key=f"{KEY},{OTHER}", host="0.0.0.0")
    yield served
    close_app(served.app)


def sign_in(served: Served, key: object = KEY, **headers: str) -> TestResponse:
    return served.client.post("/session", json={"key": key}, headers=headers)


def ask(served: Served, method: str, headers: dict[str, str]) -> int:
    """The status of the list of jobs, for a client that sends these cookies alone."""
    return served.app.test_client(use_cookies=False).open("/jobs", method=method, headers=headers).status_code


def token(key: str = KEY) -> dict[str, str]:
    """The header of a client that was given the token by some replica."""
    return {"Cookie": f"a=b; {session_tokens.COOKIE}={session_tokens.new_token(SecretStr(key))}"}


def attributes(response: TestResponse) -> set[str]:
    return set(response.headers["Set-Cookie"].split("; ")[1:])


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_session_opens_what_the_key_opens(locked: Served, key: str) -> None:
    told = {"signed_in": False, "key_required": True, "may_administer": False}
    assert locked.client.get("/session").json.items() >= told.items()
    problem(locked.client.get("/jobs"), 401)
    answer = sign_in(locked, key)
    assert answer.status_code == 200
    assert answer.json.items() >= {**told, "signed_in": True, "may_administer": True}.items()
    assert locked.client.get("/session").json == answer.json
    assert locked.predict(INSTANCE).json["predictions"][0]["status"] == "succeeded"
    for path in ("/jobs", "/metrics", "/models/status"):
        assert locked.client.get(path).status_code == 200
    assert locked.client.post("/download-models", json={"force": True}).status_code == 200


def test_it_ends_by_signing_out(locked: Served) -> None:
    sign_in(locked)
    assert locked.client.delete("/session").json["signed_in"] is False
    problem(locked.client.get("/jobs"), 401)
    assert locked.client.get("/session").json["signed_in"] is False


def test_scripts_other_sites_and_plain_http_do_not_get_the_cookie(locked: Served) -> None:
    answer = sign_in(locked)
    given = {each for each in attributes(answer) if not each.startswith("Expires=")}
    assert given == {"HttpOnly", "SameSite=Strict", "Max-Age=43200"}  # without Path: it is that of this route
    assert KEY not in str(answer.headers) + answer.text
    for headers in ({"Origin": "https://music.example.com"}, {"X-Forwarded-Proto": "https"}):
        assert "Secure" in attributes(sign_in(locked, **headers))
    assert "Secure" not in attributes(sign_in(locked, Origin="http://127.0.0.1:8080"))


@pytest.mark.parametrize("key", ["", KEY[:-1], KEY + "0", f"{KEY},{OTHER}", "ké" * 20, "no key of this server"])
def test_a_wrong_key_opens_nothing(locked: Served, key: str) -> None:
    answer = sign_in(locked, key)
    assert problem(answer, 401)["type"] == "urn:yue:problem:unauthorized"
    assert "Set-Cookie" not in answer.headers
    problem(locked.client.get("/jobs"), 401)


@pytest.mark.parametrize("body", [{}, {"key": None}, {"key": [KEY]}, {"key": KEY, "name": "me"}, [KEY], KEY])
def test_what_is_no_sign_in_is_refused(locked: Served, body: Any) -> None:
    answer = locked.client.post("/session", json=body)
    problem(answer, 400)
    assert "Set-Cookie" not in answer.headers


def test_a_stranger_cannot_have_a_large_body_read(locked: Served) -> None:
    assert problem(sign_in(locked, "x" * 5_000), 413)["allowed"] == 4_096


def test_every_replica_and_the_next_start_know_the_session_until_its_key_is_replaced() -> None:
    cookie = token(OTHER)
    for keys, status in ((f"{KEY},{OTHER}", 200), (OTHER, 200), (f"{OTHER},{KEY}", 200), (KEY, 401), (None, 200)):
        served = Served(api_key=keys)
        assert ask(served, "GET", cookie) == status
        close_app(served.app)


def test_a_session_ends_after_twelve_hours(locked: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for hours, status in ((11.9, 200), (12.1, 401), (-0.1, 200)):  # a replica's clock may be ahead
        monkeypatch.setattr(time, "time", lambda hours=hours: now - hours * 3_600)
        cookie = token()
        monkeypatch.undo()
        assert ask(locked, "GET", cookie) == status


@pytest.mark.parametrize(
    "changed",
    [
        lambda value: value[:-2] + ("AA" if value[-2:] != "AA" else "BB"),
        lambda value: "x" + value,
        lambda value: value.replace("session.", "session.A"),
        lambda value: "",
        lambda value: "session",
        lambda value: "..",
    ],
)
def test_a_cookie_that_was_changed_opens_nothing(locked: Served, changed: Any) -> None:
    value = changed(session_tokens.new_token(SecretStr(KEY)))
    assert ask(locked, "GET", {"Cookie": f"{session_tokens.COOKIE}={value}"}) == 401


@pytest.mark.parametrize("seconds", [2**40, 2**62])
def test_a_cookie_from_no_time_of_this_world_opens_nothing(
    locked: Served, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: seconds)
    cookie = token()
    monkeypatch.undo()
    assert ask(locked, "GET", cookie) == 401


def test_a_cookie_that_is_no_text_is_ignored(locked: Served) -> None:
    for cookies in ("\xff", f"{session_tokens.COOKIE}=\xff"):
        assert ask(locked, "GET", {"Cookie": cookies}) == 401
        assert ask(locked, "GET", {"Cookie": f"{cookies}; {token()['Cookie']}"}) == 200


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", {"Sec-Fetch-Site": "none"}, 200),
        ("POST", {"Origin": "http://localhost"}, 200),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 401),
        ("POST", {"Sec-Fetch-Site": "same-site"}, 401),
        ("POST", {"Origin": "https://elsewhere.example.com"}, 401),
    ],
)
def test_pages_of_other_sites_have_no_session(
    locked: Served, method: str, headers: dict[str, str], status: int
) -> None:
    assert ask(locked, method, {**token(), **headers}) == status
    assert ask(locked, method, {"X-API-Key": KEY, **headers}) == 200


def test_without_keys_none_is_needed() -> None:
    served = Served(host="0.0.0.0")
    for answer in (sign_in(served), served.client.get("/session"), served.client.delete("/session")):
        told = (answer.json["signed_in"], answer.json["key_required"], answer.json["may_administer"])
        assert (answer.status_code, told) == (200, (False, False, False))
    assert "Set-Cookie" not in sign_in(served).headers
    close_app(served.app)


def test_programs_see_what_their_key_allows(locked: Served) -> None:
    told = locked.client.get("/session", headers={"Authorization": f"Bearer {KEY}"}).json
    assert (told["signed_in"], told["may_administer"]) == (True, True)


def test_on_vertex_ai_the_platform_signs_in() -> None:
    served = Served(aip_mode="PREDICTION", api_key=KEY)
    assert served.predict(INSTANCE).status_code == 200
    problem(served.client.get("/jobs"), 401)
    sign_in(served)
    assert served.client.get("/jobs").status_code == 200
    close_app(served.app)


def test_a_browser_that_signed_in_does_not_wait_among_strangers() -> None:
    settings = Settings(api_key=SecretStr(f"{KEY},{OTHER}"), aip_mode=None)
    assert access.is_trusted(settings, f"GET / HTTP/1.1\r\ncookie: {token(OTHER)['Cookie']}\r\n\r\n".encode())
    for value in (token("another-key-4567890")["Cookie"], f"{session_tokens.COOKIE}=", "\xff;=;"):
        assert not access.is_trusted(settings, f"GET / HTTP/1.1\r\nCookie: {value}\r\n\r\n".encode("latin-1"))
