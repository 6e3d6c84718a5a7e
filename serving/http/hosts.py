"""Checks of the Host header, and of requests that a browser sends for a page of another site.

Independent of keys and routes: `serving/http/access.py` uses it.

A name that its owner points at this machine (DNS rebinding) makes a browser treat a foreign page as the server's own;
the Host header reveals it. For a foreign page under its own name the browser sends Sec-Fetch-Site or, on pages without
TLS, Origin.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers

LOCALHOST = "localhost"
HOST = re.compile(r"(?P<name>\[[^\]\s]+\]|[^\[\]:/@\s]+)(:[0-9]*)?")  # the header's form, with or without a port
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OWN_SITE = ("same-origin", "none")  # of Sec-Fetch-Site; none: a person typed the address


class Hosts:
    """The names of a server that is bound to an address: its own, and the `allowed` ones."""

    def __init__(self, bound: str, allowed: Collection[str]) -> None:
        self._bound, self._allowed = ipaddress.ip_address(bound), allowed
        self._own = (LOCALHOST, socket.gethostname().lower())

    def include(self, host: str | None) -> bool:
        """True if the Host header names this server. Programs may omit it; browsers never do."""
        if not host:
            return True
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].lower().removesuffix(".")
        return (
            name in self._own or name.endswith(f".{LOCALHOST}") or self._is_allowed(name) or self._is_own_address(name)
        )

    def is_foreign_page(self, headers: Headers, method: str) -> bool:
        """True if a browser sends the request for a page of another site. Only browsers say so."""
        if site := headers.get("Sec-Fetch-Site", "").strip().lower():
            return site not in OWN_SITE and not (site == "same-site" and method in SAFE_METHODS)
        origin = headers.get("Origin", "").strip().lower()
        return bool(origin) and not self._is_own_origin(origin, headers.get("Host", "").lower())

    def _is_own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return bool(parts.netloc) and (parts.netloc == host or self._is_allowed(parts.hostname or ""))

    def _is_allowed(self, name: str) -> bool:
        below = any(each.startswith("*.") and name.endswith(each[1:]) for each in self._allowed)
        return below or name in self._allowed or "*" in self._allowed

    def _is_own_address(self, name: str) -> bool:
        """Beyond this machine every address is: no name was used, so none leads astray, and probes use addresses."""
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or not self._bound.is_loopback or str(address) in self._allowed
