"""By which names a server is asked, and whether it is asked by another site's page in a browser.

It knows nothing of keys or routes: `serving/http/access.py` does.

A name that its owner points at this machine (DNS rebinding) makes a stranger's page the server's own in the eyes of a
browser: what gives it away is the header Host. A stranger's page under its own name is given away by the browser,
which says so in Sec-Fetch-Site or, on pages that came without TLS, in Origin.
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
    """The names of a server that is bound to an address: its own, and those it is `allowed`."""

    def __init__(self, bound: str, allowed: Collection[str]) -> None:
        self._bound, self._allowed = ipaddress.ip_address(bound), allowed
        self._own = (LOCALHOST, socket.gethostname().lower())

    def include(self, host: str | None) -> bool:
        """Whether the header Host names this server. Programs may leave it out; browsers never do."""
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
        """Whether a browser says that a page of another site asks. Nothing else than a browser says who asks."""
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
