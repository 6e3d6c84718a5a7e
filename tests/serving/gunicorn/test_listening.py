"""Where nobody can listen, one line says what to do; where everybody may ask, one says so."""

from __future__ import annotations

import socket

import pytest

from serving.gunicorn import listening
from serving.settings import Settings


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (Settings(host="127.0.0.1"), "set PORT to another port"),
        (Settings(host="127.0.0.1", aip_http_port=1), "set AIP_HTTP_PORT to another port"),
    ],
)
def test_a_port_that_is_taken_is_named_by_its_variable(settings: Settings, hint: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        field = "aip_http_port" if settings.aip_http_port else "port"
        told = listening.bind_problem(settings.model_copy(update={field: port}))
    assert told.startswith(f"127.0.0.1:{port} cannot be listened on (Address already in use)") and hint in told


def test_an_address_of_another_machine_is_refused_with_what_is_allowed() -> None:
    assert "set YUE_HOST to an address of this machine" in listening.bind_problem(Settings(host="192.0.2.1"))


def test_a_free_port_hinders_nobody() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert listening.bind_problem(Settings(host="127.0.0.1", port=port)) == ""


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        (Settings(host="0.0.0.0"), True),
        (Settings(host="::"), True),
        (Settings(host="0.0.0.0", api_key="a-key-that-is-long-enough"), False),
        (Settings(host="127.0.0.1"), False),
        (Settings(aip_mode="PREDICTION"), False),
    ],
)
def test_only_a_server_that_anybody_may_use_is_warned_of(settings: Settings, warns: bool) -> None:
    assert bool(listening.exposure(settings)) == warns
