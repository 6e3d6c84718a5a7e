"""What the environment may say about the Hub and the way to it."""

from __future__ import annotations

import pytest

from inference.errors import DownloadError
from inference.weights.hub_settings import check, endpoint_of, mistakes, way_to

NO_UTF8 = "\udce9"  # what Python makes of a byte in a variable that is no UTF-8


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("HF_ENDPOINT", "hf-mirror.invalid", "'hf-mirror.invalid'"),
        ("HF_ENDPOINT", "hf-mirror.invalid:8080", "'hf-mirror.invalid:8080'"),
        ("HF_ENDPOINT", "ftp://hf-mirror.invalid", "'ftp://hf-mirror.invalid'"),
        ("HF_ENDPOINT", "https://", "'https://'"),
        ("HF_ENDPOINT", "https://hf mirror", "'https://hf mirror'"),
        ("HF_ENDPOINT", "https://hf-mirror…", "'https://hf-mirror…'"),
        ("HF_ENDPOINT", "http://host:99999", "'http://host:99999'"),
        ("HF_ENDPOINT", "http://[::1", "'http://[::1'"),
        ("HF_ENDPOINT", "me:secret@host", "'***@host'"),
        ("HTTPS_PROXY", "socks://127.0.0.1:1080", "'socks://127.0.0.1:1080'"),
        ("https_proxy", "not a proxy", "'not a proxy'"),
        ("HTTP_PROXY", "http://me:secret@host:port", "'http://***@host:port'"),
        ("ALL_PROXY", "socks4://127.0.0.1:1080", "'socks4://127.0.0.1:1080'"),
        ("HF_TOKEN", "hf_secret…", "a token that is not shown"),
        ("HF_TOKEN", "hf_secret hf_secret", "a token that is not shown"),
        ("HF_TOKEN", "hf_secret\nhf_secret", "a token that is not shown"),
        ("HF_TOKEN", f"hf_secret{NO_UTF8}", "a token that is not shown"),
        ("HUGGING_FACE_HUB_TOKEN", "hf_secretä", "a token that is not shown"),
        ("HF_HUB_ETAG_TIMEOUT", "soon", "'soon'"),
        ("SSL_CERT_FILE", "/no/such/file", "'/no/such/file'"),
    ],
)
def test_what_leads_nowhere_is_named_in_one_line_without_secrets(variable: str, value: str, shown: str) -> None:
    with pytest.raises(DownloadError) as caught:
        check({variable: value})
    message = str(caught.value)
    assert caught.value.reason == "invalid_setting" and caught.value.permanent
    assert message.startswith(f"{variable}: got {shown}; allowed: ")
    assert "\n" not in message and "secret" not in message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_ENDPOINT", ""),
        ("HF_ENDPOINT", "https://hf-mirror.example/"),
        ("HF_ENDPOINT", "HTTP://host:8080/artifactory/api/huggingface"),
        ("HF_ENDPOINT", "http://[::1]:8080"),
        ("HF_ENDPOINT", "https://me:word@host"),
        ("HTTPS_PROXY", "proxy:3128"),
        ("https_proxy", "http://me:word@10.0.0.1:3128/"),
        ("ALL_PROXY", "socks5h://127.0.0.1:1080"),
        ("ALL_PROXY", ""),
        ("HF_TOKEN", "hf_word"),
        ("HF_TOKEN", " hf_word\n"),
        ("HF_TOKEN", ""),
        ("HF_HUB_ETAG_TIMEOUT", "30"),
    ],
)
def test_what_can_be_used_is_taken(variable: str, value: str) -> None:
    assert list(mistakes({variable: value})) == []


def test_every_mistake_is_told() -> None:
    environment = {"HF_ENDPOINT": "host", "HF_TOKEN": "a b", "ALL_PROXY": "socks4://host"}
    assert [line.split(":")[0] for line in mistakes(environment)] == list(environment)


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({}, ""),
        ({"HTTPS_PROXY": "http://me:secret@proxy"}, " through the proxy http://***@proxy of HTTPS_PROXY"),
        (
            {"HTTPS_PROXY": "http://loud", "https_proxy": "http://quiet"},
            " through the proxy http://quiet of https_proxy",
        ),
        ({"HTTPS_PROXY": "http://loud", "https_proxy": ""}, ""),
        ({"HTTP_PROXY": "http://proxy"}, ""),
        ({"ALL_PROXY": "socks5://proxy"}, " through the proxy socks5://proxy of ALL_PROXY"),
        ({"ALL_PROXY": "socks5://proxy", "NO_PROXY": "huggingface.co"}, ""),
    ],
)
def test_the_way_to_the_hub_names_the_proxy(environment: dict[str, str], way: str) -> None:
    assert way_to(endpoint_of(environment), environment) == way
