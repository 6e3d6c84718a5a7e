"""Reads a server's address as people write it: without a scheme, with a slash or one of the API's paths at the end.

It opens no connection.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse

from yue_client.errors import Misused

DEFAULT_SERVER = "http://127.0.0.1:8080"
PATHS = r"predict|health|livez|readyz|docs|openapi\.json|metrics|models/status|download-models(/cancel)?|jobs(/.*)?"
PATH_OF_API = re.compile(rf"(/({PATHS}))?/*$")
ENDPOINT = re.compile(r"projects/[^/:]+/locations/[^/:]+/endpoints/[^/:?]+(/invoke)?")
HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def server_address(text: str, name: str = "--url") -> str:
    """The address as `scheme://host:port/prefix`, without a path of the API's. Raises Misused, which names the option.

    Another path is kept: a reverse proxy may have the server there.
    """
    allowed = f"{name}: got {text!r}; allowed: an address such as {DEFAULT_SERVER}"
    if endpoint := ENDPOINT.search(text):
        raise Misused(allowed, f"this is an endpoint of Vertex AI: --endpoint {endpoint[0]}")
    address = text.strip()
    if not HAS_SCHEME.match(address):
        address = f"http://{f'[{address}]' if _is_ipv6(address) else address}"
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname or "", parts.port
        host = host if _is_ipv6(host) else host.encode("idna").decode()
    except ValueError as error:  # UnicodeError is one
        raise Misused(allowed, _hint(str(error), address)) from None
    if "@" in parts.netloc:
        raise Misused(f"{name}: got an address with a user name; allowed: an address such as {DEFAULT_SERVER}", _KEY)
    if reason := _mistake(address, parts, host):
        raise Misused(allowed, reason)
    netloc = f"[{host}]" if ":" in host else host
    path = urllib.parse.quote(PATH_OF_API.sub("", parts.path), safe="/%:@!$&'()*+,;=~")
    return f"{parts.scheme}://{netloc}{'' if port is None else f':{port}'}{path}"


def _mistake(address: str, parts: urllib.parse.SplitResult, host: str) -> str:
    """What is wrong with an address that can be read; nothing where it is right."""
    if parts.scheme not in ("http", "https"):
        return f"{parts.scheme}: is no scheme of a server; allowed: http and https"
    if unprintable := re.search(r"[\s\x00-\x1f]", address):
        return f"there is {unprintable[0]!r} in it"
    if parts.query:
        return f"a query is not allowed: leave out ?{parts.query}"
    if parts.fragment:
        return f"a fragment is not allowed: leave out #{parts.fragment}"
    if not host or host.isdecimal():
        return "the name of the host is missing"
    return "the port is missing behind the colon" if parts.netloc.endswith(":") else ""


_KEY = "the server's key is given by --api-key or YUE_API_KEY"


def root_of(address: str) -> str:
    """The address without a path."""
    parts = urllib.parse.urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


def is_this_machine(host: str | None) -> bool:
    """True for this very machine, which no proxy can reach."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).version == 6
    except ValueError:
        return False


def _hint(reason: str, address: str) -> str:
    if address.count(":") > 2 and "[" not in address:
        return "an IPv6 address is written in brackets, as in http://[::1]:8080"
    return f"the reason: {reason}"
