"""Settings come from the environment, and a wrong one is named with what is allowed."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from serving.settings import RESERVED_THREADS, InvalidSettings, Settings, read_settings, unknown_variables


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's environment holds is none of these tests' business."""
    for name in os.environ:
        if name.startswith(("YUE_", "AIP_")) or name in ("PORT", "GOOGLE_CLOUD_PROJECT"):
            monkeypatch.delenv(name)


def test_the_defaults_need_no_environment() -> None:
    settings = read_settings()
    assert (settings.model, settings.loading, settings.http_port) == ("tiny", "on_demand", 8080)
    assert settings.wait_seconds == 3_600
    assert settings.predict_route is None


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "YUE_MODEL": "owner/name@main",
        "YUE_LOADING": "startup",
        "YUE_WEIGHTS": str(tmp_path),
        "YUE_DATA": "gs://bucket/songs",
        "YUE_KEEP_HOURS": "24.5",
        "YUE_KEEP_BYTES": "7000",
        "YUE_DEVICE": "cuda:1",
        "YUE_DTYPE": "bfloat16",
        "YUE_QUANTIZATION": "int8",
        "YUE_COMPILE": "never",
        "YUE_DETERMINISTIC": "true",
        "YUE_MAX_SONGS": "2",
        "YUE_MAX_QUEUE": "3",
        "YUE_MAX_INSTANCES": "4",
        "YUE_MAX_REQUEST_BYTES": "5000",
        "YUE_MAX_RESPONSE_BYTES": "20000",
        "YUE_THREADS": "20",
        "YUE_NETWORK_SECONDS": "7.5",
        "YUE_WAIT_SECONDS": "1.5",
        "YUE_LOG_FORMAT": "json",
        "YUE_LOG_LEVEL": "debug",
        "YUE_LOG_LYRICS": "true",
        "GOOGLE_CLOUD_PROJECT": "music",
        "AIP_PROJECT_NUMBER": "1234",
        "YUE_API_KEY": "0123456789abcdef,fedcba9876543210",
        "YUE_ADMIN": "off",
        "YUE_REFERENCE_HOSTS": "audio.example.com, gs://bucket/folder",
        "YUE_ALLOWED_HOSTS": "Music.example.com, *.example.org, FD00:0::5",
        "YUE_HOST": "::",
        "PORT": "9000",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.model_dump(exclude={"aip_mode", "aip_http_port"}) == {
        "model": "owner/name@main",
        "loading": "startup",
        "weights": tmp_path,
        "data": "gs://bucket/songs",
        "keep_hours": 24.5,
        "keep_bytes": 7_000,
        "device": "cuda:1",
        "dtype": "bfloat16",
        "quantization": "int8",
        "compile": "never",
        "deterministic": True,
        "max_songs": 2,
        "max_queue": 3,
        "max_instances": 4,
        "max_request_bytes": 5_000,
        "max_response_bytes": 20_000,
        "threads": 20,
        "network_seconds": 7.5,
        "wait_seconds": 1.5,
        "log_format": "json",
        "log_level": "debug",
        "log_lyrics": True,
        "google_cloud_project": "music",
        "aip_project_number": "1234",
        "api_key": SecretStr("0123456789abcdef,fedcba9876543210"),
        "admin": "off",
        "reference_hosts": ("audio.example.com", "gs://bucket/folder"),
        "allowed_hosts": ("music.example.com", "*.example.org", "fd00::5"),
        "host": "::",
        "port": 9_000,
        "health_route": "/v1/endpoints/1/deployedModels/2",
        "predict_route": "/v1/endpoints/1/deployedModels/2:predict",
    }
    assert settings.max_waiters == 20 - RESERVED_THREADS


def test_jobs_are_kept_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_settings().data == tmp_path / "yue-server" / "data"


def test_on_vertex_its_port_wins_and_the_wait_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    monkeypatch.setenv("AIP_HTTP_PORT", "8081")
    monkeypatch.setenv("PORT", "9000")
    assert read_settings().http_port == 8081
    assert read_settings().wait_seconds == 50


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_MODEL", "")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "")
    monkeypatch.setenv("AIP_HTTP_PORT", "")
    assert read_settings() == Settings()
    assert read_settings().model == "tiny"


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("YUE_MODEL", "no such model", "tiny, en-cot"),
        ("YUE_LOADING", "sometimes", "on_demand or startup"),
        ("YUE_WEIGHTS", "/no/such/folder", "a folder"),
        ("YUE_DATA", "ftp://host/songs", "gs://, s3:// or az://"),
        ("YUE_DATA", __file__, "a folder on this machine"),
        ("YUE_DATA", "gs:/bucket/songs", "gs://, s3:// or az://"),
        ("YUE_KEEP_HOURS", "0", "a number of hours above 0"),
        ("YUE_KEEP_BYTES", "-1", "a whole number of bytes"),
        ("YUE_DEVICE", "tpu", "cuda:N"),
        ("YUE_DTYPE", "int8", "bfloat16"),
        ("YUE_QUANTIZATION", "int4", "none or int8"),
        ("YUE_MAX_QUEUE", "0", "from 1 to 10000"),
        ("YUE_WAIT_SECONDS", "nan", "from 0 to 3600"),
        ("YUE_THREADS", "16", "from 17"),
        ("YUE_MAX_REQUEST_BYTES", "1", "1024 or more"),
        ("YUE_ADMIN", "yes", "auto, on or off"),
        ("YUE_REFERENCE_HOSTS", "https://audio.example.com", "audio.example.com:8443"),
        ("YUE_REFERENCE_HOSTS", "*", "separated by commas"),
        ("YUE_ALLOWED_HOSTS", "http://music.example.com", "without ports"),
        ("YUE_ALLOWED_HOSTS", "music.example.com:8080", "without ports"),
        ("YUE_ALLOWED_HOSTS", "music.example.com,", "separated by commas"),
        ("YUE_ALLOWED_HOSTS", "*example.com", "*.example.com"),
        ("YUE_HOST", "example.com", "an IP address"),
        ("PORT", "http", "a port from 1 to 65535"),
        ("AIP_HTTP_PORT", "70000", "a port from 1 to 65535"),
        ("AIP_HEALTH_ROUTE", "health", "starts with /"),
        ("AIP_PREDICT_ROUTE", "/<x>", "starts with /"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith(f"{variable}: got '{value}'; allowed: ")
    assert allowed in message
    assert "\n" not in message


def test_all_wrong_values_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("YUE_DTYPE", "x")
    with pytest.raises(InvalidSettings, match=r"(?s)YUE_DTYPE: .*\nPORT: "):
        read_settings()


@pytest.mark.parametrize("keys", ["short-key", "0123456789abcdef,", "0123456789 abcdef", "0123456789abcdé€f"])
def test_a_key_that_cannot_be_used_is_refused_and_never_shown(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("YUE_API_KEY", keys)
    with pytest.raises(InvalidSettings) as caught:
        read_settings()
    assert str(caught.value).startswith("YUE_API_KEY: got a key that is not shown; allowed: one key or several")
    assert keys not in "".join(traceback.format_exception(caught.value))


def test_keys_are_not_shown_where_settings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_API_KEY", "0123456789abcdef")
    settings = read_settings()
    assert "0123456789" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("variables", "bind"),
    [
        ({}, "127.0.0.1:8080"),
        ({"YUE_HOST": "::1", "PORT": "80"}, "[::1]:80"),
        ({"AIP_HTTP_PORT": "8081"}, "0.0.0.0:8081"),
        ({"AIP_MODE": "PREDICTION"}, "0.0.0.0:8080"),
    ],
)
def test_only_vertex_ai_and_who_asks_for_it_reach_beyond_this_machine(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], bind: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_settings().bind == bind


# What Kubernetes sets beside services named yue and yue-server.
SERVICE_LINKS = {
    "YUE_SERVICE_HOST": "10.0.0.1",
    "YUE_SERVICE_PORT": "80",
    "YUE_SERVICE_PORT_HTTP": "80",
    "YUE_PORT": "tcp://10.0.0.1:80",
    "YUE_PORT_80_TCP": "tcp://10.0.0.1:80",
    "YUE_PORT_80_TCP_PROTO": "tcp",
    "YUE_PORT_80_TCP_PORT": "80",
    "YUE_PORT_80_TCP_ADDR": "10.0.0.1",
    "YUE_PORT_53_UDP": "udp://[fd00::1]:53",
    "YUE_SERVER_SERVICE_HOST": "10.0.0.1",
    "YUE_SERVER_PORT": "tcp://10.0.0.1:80",
    "YUE_SERVER_PORT_8080_TCP_ADDR": "10.0.0.1",
}


def test_what_kubernetes_sets_beside_a_service_named_yue_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    assert read_settings() == Settings() and read_settings().http_port == 8080
    assert unknown_variables(SERVICE_LINKS) == []


def test_no_setting_is_read_under_a_second_name(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = read_settings()
    aliases = {name: field.validation_alias for name, field in Settings.model_fields.items() if field.validation_alias}
    assert {"port", "aip_mode", "health_route"} <= aliases.keys()
    for name in aliases:
        for second in (f"YUE_{name}".upper(), name.upper()):
            if second not in aliases.values():
                monkeypatch.setenv(second, "/7")
    assert read_settings() == defaults


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("YUE_PORT", "PORT"),
        ("YUE_AIP_MODE", "AIP_MODE"),
        ("YUE_HEALTH_ROUTE", "AIP_HEALTH_ROUTE"),
        ("YUE_LODING", "YUE_LOADING"),
    ],
)
def test_who_sets_another_name_is_told_the_right_one(name: str, meant: str) -> None:
    assert unknown_variables({name: "8081"}) == [f"{name} is not a setting; did you mean {meant}?"]
