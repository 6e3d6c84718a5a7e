"""A server without a key answers to its own names, and never to other sites' pages."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.datastructures import Headers

from server import close_app
from serving.http.hosts import Hosts
from tests.support.fakes import INSTANCE, Served, problem

KEY = "first-key-0123456789"
EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """It has no key, and only this machine reaches it."""
    served = Served()
    yield served
    close_app(served.app)


@pytest.fixture(scope="module")
def beyond() -> Iterator[Served]:
    """It has no key, and other machines reach it."""
    served = Served(host="0.0.0.0")
    yield served
    close_app(served.app)


def ask(served: Served, method: str, path: str, **headers: str) -> Any:
    return served.client.open(path, method=method, headers={name.replace("_", "-"): headers[name] for name in headers})


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "studio.localhost:8080",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.8.9.10:1",
        "[::1]",
        "[::1]:8080",
        "[::ffff:127.0.0.1]:8080",
        socket.gethostname(),
        f"{socket.gethostname().upper()}:8080",
    ],
)
def test_a_server_is_asked_by_its_own_names(served: Served, host: str) -> None:
    assert ask(served, "GET", "/jobs", Host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "localhost@evil.example",
        "localhost:80:80",
        "localhost,evil.example",
        "localhost evil.example",
        "10.0.0.1",
        "0.0.0.0:8080",
        "2130706433",
        "[::]:8080",
        "[::1",
        "[localhost]",
        ".localhost@evil.example",
    ],
)
def test_it_does_not_answer_to_other_names(served: Served, host: str) -> None:
    for method, path in (("GET", "/jobs"), ("POST", "/download-models"), ("GET", "/health"), ("GET", "/no/such/path")):
        answer = problem(ask(served, method, path, Host=host), 403)
        assert answer["type"] == "urn:yue:problem:host-not-allowed"
        assert "YUE_ALLOWED_HOSTS" in answer["detail"] and "YUE_API_KEY" in answer["detail"]
    assert answer["value"] == host
    assert served.models.fetches == []


def test_a_program_may_leave_the_host_out(served: Served) -> None:
    assert served.client.get("/jobs", environ_overrides={"HTTP_HOST": ""}).status_code == 200


@pytest.mark.parametrize("host", ["yue", "yue.default.svc:8080", "gpu.example.com", "10.1.2.3:8080", "evil.example"])
def test_beyond_this_machine_any_name_will_do_as_only_its_owner_knows_them(beyond: Served, host: str) -> None:
    assert ask(beyond, "GET", "/models/status", Host=host).status_code == 200


@pytest.mark.parametrize("settings", [{"api_key": KEY}, {"aip_mode": "PREDICTION"}])
def test_any_name_will_do_where_somebody_asks_who_comes(settings: dict[str, str]) -> None:
    served = Served(host="127.0.0.1", **settings)
    assert ask(served, "GET", "/jobs", Host="music.example.com", X_API_Key=KEY).status_code == 200
    close_app(served.app)


@pytest.mark.parametrize(
    ("allowed", "host", "answered"),
    [
        ("music.example.com", "music.example.com", True),
        ("Music.Example.com, other.example", "MUSIC.example.COM.:8443", True),
        ("music.example.com", "a.music.example.com", False),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("10.0.0.1", "10.0.0.1:8080", True),
        ("10.0.0.1", "10.0.0.2:8080", False),
        ("fd00:0::5, [fd00::6]", "[fd00::6]:8080", True),
        ("fd00:0::5", "[fd00::5]", True),
        ("*", "anything.example", True),
        ("music.example.com", "localhost:8080", True),
    ],
)
def test_more_names_are_a_setting(allowed: str, host: str, answered: bool) -> None:
    served = Served(allowed_hosts=allowed)
    assert ask(served, "GET", "/jobs", Host=host).status_code == (200 if answered else 403)
    close_app(served.app)


def test_allowed_names_hold_beyond_this_machine_too_where_probes_use_addresses() -> None:
    served = Served(host="0.0.0.0", allowed_hosts="music.example.com", api_key=KEY)
    statuses = {
        host: ask(served, "GET", "/health", Host=host).status_code
        for host in ("music.example.com", "10.1.2.3:8080", "[fd00::1]:8080", "localhost:8080", "evil.example")
    }
    assert statuses == dict.fromkeys(statuses, 200) | {"evil.example": 403}
    assert "YUE_API_KEY" not in problem(ask(served, "GET", "/health", Host="evil.example"), 403)["detail"]
    close_app(served.app)


FROM_OTHER_SITES = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "Cross-Site"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"},
    {"Sec_Fetch_Site": "something-new"},
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "http://[broken"},
    {"Origin": "localhost"},
]


@pytest.mark.parametrize("headers", FROM_OTHER_SITES)
@pytest.mark.parametrize("where", ["served", "beyond"])
def test_what_a_browser_sends_for_other_sites_is_refused(
    where: str, headers: dict[str, str], request: pytest.FixtureRequest
) -> None:
    server: Served = request.getfixturevalue(where)
    for method, path in (
        ("POST", "/download-models"),
        ("POST", "/download-models/cancel"),
        ("DELETE", "/download-models"),
        ("POST", "/predict"),
        ("POST", "/health"),
        ("GET", "/jobs"),
    ):
        plain = {"Content_Type": "text/plain", **headers}
        answer = problem(ask(server, method, path, **plain), 403)
        assert answer["type"] == "urn:yue:problem:cross-site"
    assert server.models.fetches == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
        {"Origin": "http://localhost"},
        {"Origin": "http://LOCALHOST"},
        {"Origin": "https://music.example.com:8443", "Host": "music.example.com:8443"},  # through a proxy with TLS
        {"Origin": "https://music.example.com", "Sec_Fetch_Site": "same-origin"},  # which names another host to us
    ],
)
def test_programs_and_the_servers_own_pages_are_answered(beyond: Served, headers: dict[str, str]) -> None:
    assert ask(beyond, "POST", "/models/status", **headers).status_code == 200
    assert ask(beyond, "GET", "/models/status", **headers).status_code == 200


def test_a_page_of_the_same_site_may_look_but_not_act() -> None:
    hosts = Hosts("127.0.0.1", ())
    headers = Headers({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000", "Host": "localhost:8080"})
    assert [hosts.is_foreign_page(headers, method) for method in ("GET", "HEAD", "POST", "DELETE")] == [
        *[False, False],
        *[True, True],
    ]


def test_an_allowed_name_is_an_own_origin_too() -> None:
    served = Served(allowed_hosts="music.example.com")
    origin = {"Origin": "http://music.example.com:8000"}  # whose proxy asks us by our address
    assert ask(served, "POST", "/models/status", Host="127.0.0.1:8080", **origin).status_code == 200
    close_app(served.app)


def test_a_link_leads_to_the_pages_and_to_nothing_else(served: Served) -> None:
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(served, "GET", "/docs", **link).status_code == 200
    problem(ask(served, "GET", "/jobs", **link), 403)
    problem(ask(served, "GET", "/docs", **{**link, "Sec_Fetch_Dest": "iframe"}), 403)


def test_with_a_key_only_the_key_counts() -> None:
    served = Served(api_key=KEY)
    for headers in FROM_OTHER_SITES:
        assert ask(served, "POST", "/models/status", **headers, X_API_Key=KEY).status_code == 200
        problem(ask(served, "POST", "/models/status", **headers), 401)
    close_app(served.app)


def test_on_vertex_ai_the_platform_asks_who_comes() -> None:
    served = Served(aip_mode="PREDICTION")
    headers = {"Host": "4211.us-central1-1.prediction.vertexai.goog", "Origin": "https://app.example"}
    answer = served.client.post("/predict", json={"instances": [INSTANCE]}, headers=headers)
    assert answer.json["predictions"][0]["status"] == "succeeded"
    close_app(served.app)
