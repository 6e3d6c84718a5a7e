"""Checks the environment variables for the Hub, its token, proxies and certificates. Each mistake is one line.

It makes no requests, and does not import the Hub's library, which reads the same variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from inference.errors import DownloadError

DEFAULT_ENDPOINT = "https://huggingface.co"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # the first that is set counts
TOKEN_TEXT = "got a token that is not shown; allowed: visible ASCII characters, as the Hub made it"
SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
PROXIES = ("http", "https", "all")  # HTTP_PROXY and so on
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")

_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+(%\w+)?", re.IGNORECASE)
_CREDENTIALS = re.compile(r"^(\w[\w+.-]*://)?.*@")


def check(environment: Mapping[str, str]) -> None:
    """Raise DownloadError for the first mistake."""
    for mistake in mistakes(environment):
        raise DownloadError(mistake, "invalid_setting")


def mistakes(environment: Mapping[str, str]) -> Iterator[str]:
    """One line for each invalid variable."""
    endpoint = environment.get("HF_ENDPOINT", "")
    if endpoint and not _is_address(endpoint, ("http", "https"), "?#"):
        allowed = f"an address that begins with http:// or https://, such as {DEFAULT_ENDPOINT}"
        yield f"HF_ENDPOINT: got {shown(endpoint)!r}; allowed: {allowed}"
    name = next((name for name in TOKENS if environment.get(name)), "")
    if name and not is_token(environment[name].strip()):
        yield f"{name}: {TOKEN_TEXT}"
    for name in SECONDS:
        if not environment.get(name, "0").strip().isdecimal():
            yield f"{name}: got {environment[name]!r}; allowed: a whole number of seconds"
    for name, value in _proxies(environment).values():
        if not _is_address(value if "://" in value else f"http://{value}", PROXY_SCHEMES):
            allowed = f"an address that begins with {', '.join(f'{scheme}://' for scheme in PROXY_SCHEMES)}"
            yield f"{name}: got {shown(value)!r}; allowed: {allowed}"
    certificates = environment.get("SSL_CERT_FILE", "")
    if certificates and not os.path.isfile(certificates):
        yield f"SSL_CERT_FILE: got {certificates!r}; allowed: a file of certificates"


def is_token(text: str) -> bool:
    """True if the text can be sent as a token."""
    return all("!" <= character <= "~" for character in text)


def shown(address: str) -> str:
    """The address without its user and password."""
    return _CREDENTIALS.sub(r"\1***@", address)


def endpoint_of(environment: Mapping[str, str]) -> str:
    """The Hub's address."""
    return environment.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT


def way_to(address: str, environment: Mapping[str, str]) -> str:
    """The proxy for an address, as the end of a sentence; empty if there is none."""
    parts, proxies = urlsplit(address), _proxies(environment)
    name, proxy = proxies.get(parts.scheme) or proxies.get("all") or ("", "")
    exceptions = {"no": environment.get("no_proxy") or environment.get("NO_PROXY") or ""}
    if not proxy or proxy_bypass_environment(parts.netloc, exceptions):
        return ""
    return f" through the proxy {shown(proxy)} of {name}"


def _proxies(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """For each kind of address, name and value of its proxy variable. The lower-case spelling has precedence."""
    names = {kind: f"{kind}_proxy" for kind in PROXIES}
    names = {kind: name if name in environment else name.upper() for kind, name in names.items()}
    return {kind: (name, environment[name]) for kind, name in names.items() if environment.get(name)}


def _is_address(text: str, schemes: tuple[str, ...], unwanted: str = "") -> bool:
    """True if the text is an address to which a connection can be made."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if re.search(r"\s", text) or any(character in text for character in unwanted):
        return False
    return parts.scheme in schemes and bool(_HOST.fullmatch(parts.hostname or "")) and port != 0
