"""Reads one file from an https address, and never from a place that only this machine can reach.

Independent of the file's content and of who requests it; the allowed hosts are an argument.

The address that was checked is the one that is connected to: a name is resolved once for each connection, so it cannot
name another machine by the time it is used. TLS then proves that the machine has that name.
"""

from __future__ import annotations

import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

Address = IPv4Address | IPv6Address

HTTPS_PORT = 443
MOST_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK_BYTES = 1 << 16


def _networks(*texts: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


# One file as it is: what is packed could unpack to any size.
HEADERS = {
    "Accept": "audio/*, application/octet-stream;q=0.5",
    "Accept-Encoding": "identity",
    "User-Agent": "yue-server",
}
# IANA's special-purpose registries, multicast and what is reserved, listed here because Python's own list differs from
# version to version. Whatever the registries call reachable among them is no web server's either.
_SPECIAL_IPV4 = _networks(
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared between a provider and its customers; Alibaba's metadata
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local; most clouds' metadata
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocols; Oracle's metadata
    "192.0.2.0/24",  # documentation
    "192.31.196.0/24",  # AS112
    "192.52.193.0/24",  # AMT
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",  # private
    "192.175.48.0/24",  # AS112
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved; broadcast
    "168.63.129.16/32",  # Azure's agent, in no registry
)
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")  # the only part of IPv6 that is given out to the internet
_SPECIAL_IPV6 = _networks(
    "2001::/23",  # IETF protocols: Teredo, benchmarks, ORCHID and others
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "2620:4f:8000::/48",  # AS112
    "3ffe::/16",  # 6bone, returned
    "3fff::/20",  # documentation
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = 0x5EFE  # the upper half of its interface identifiers, but for two flags; the lower is an IPv4 address
_ISATAP_FLAGS = 0x0300_0000


class Refused(Exception):
    """The address itself has to change; the message says why, after "got ADDRESS: "."""


class Unreachable(Exception):
    """The address may be right, but nothing came; asking again may help."""


def resolve(host: str, port: int) -> list[str]:
    """All IP addresses of a host. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: Address) -> bool:
    """True for an ordinary address of the internet, outside all special-purpose networks."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_IPV4)
    inner = _inner(address)
    if inner is not None:
        return is_public(inner)
    is_tunnel = (int(address) >> 32) & 0xFFFF_FFFF & ~_ISATAP_FLAGS == _ISATAP
    return address in _GLOBAL_IPV6 and not is_tunnel and not any(address in network for network in _SPECIAL_IPV6)


@dataclass(frozen=True)
class Fetcher:
    """Reads files of up to `limit_bytes` within `seconds` from `hosts` (`name`, or `name:port`), and no others.

    May be used by several threads at once.
    """

    hosts: Collection[str]
    limit_bytes: int
    seconds: float
    resolve: Callable[[str, int], list[str]] = resolve
    may_connect: Callable[[Address], bool] = is_public
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def __post_init__(self) -> None:
        self.context.sslsocket_class = _TimedSocket

    def fetch(self, address: str, trace: Mapping[str, str] | None = None) -> bytes:
        """The file at that address; `trace` is sent with HEADERS. Raises Refused and Unreachable."""
        ends_at = time.monotonic() + self.seconds
        for _ in range(1 + MOST_REDIRECTS):
            found = self._ask(self._checked(address), {**HEADERS, **(trace or {})}, ends_at)
            if isinstance(found, bytes):
                return found
            address = urljoin(address, found)
        raise Refused(f"more than {MOST_REDIRECTS} redirects")

    def _checked(self, address: str) -> SplitResult:
        """The parts of an address that may be asked."""
        if not address.isascii() or not address.isprintable() or set(address) & set(' \\"<>'):
            raise Refused("characters that are not percent-encoded")
        try:
            parts = urlsplit(address)
            port = parts.port or HTTPS_PORT
        except ValueError as error:
            raise Refused("no address") from error
        if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc:
            raise Refused("no https:// address without a user")
        allowed = {parts.hostname} if port == HTTPS_PORT else set()
        if not (allowed | {f"{parts.hostname}:{port}"}) & set(self.hosts):
            raise Refused(f"the host {parts.netloc}, which is not one of YUE_REFERENCE_HOSTS")
        return parts

    def _ask(self, parts: SplitResult, headers: Mapping[str, str], ends_at: float) -> bytes | str:
        """The file, or where it is instead."""
        assert parts.hostname, "not checked"
        host, port = parts.hostname, parts.port or HTTPS_PORT
        connection = HTTPSConnection(host, port)
        connection.auto_open = 0  # it would look the name up again
        try:
            connection.sock = self._connected(host, port, ends_at)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers=headers)
            with connection.getresponse() as response:
                location = response.headers["Location"]
                return location if response.status in REDIRECTS and location else self._read(response)
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"{host} has no certificate that proves its name") from error
        except TimeoutError as error:
            raise Unreachable(f"{host} took longer than {self.seconds:g} s") from error
        except (OSError, HTTPException, ValueError) as error:
            raise Unreachable(f"{host} did not send the file ({type(error).__name__})") from error
        finally:
            connection.close()

    def _read(self, response: HTTPResponse) -> bytes:
        if response.status >= 500 or response.status == 429:
            raise Unreachable(f"it answered {response.status}")
        if response.status != 200:
            raise Refused(f"it answered {response.status}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(f"it answered in the encoding {response.headers['Content-Encoding']}")
        content = io.BytesIO()
        while chunk := response.read(CHUNK_BYTES):
            content.write(chunk)
            if content.tell() > self.limit_bytes:
                raise Refused(f"more than {self.limit_bytes} bytes")
        if response.length:
            raise Unreachable(f"it broke off {response.length} bytes before its end")
        return content.getvalue()  # which copies nothing

    def _connected(self, host: str, port: int, ends_at: float) -> ssl.SSLSocket:
        """A connection to an address that was checked, with a machine that has proved to be `host`."""
        addresses = self.resolve(host, port)
        if not all(self.may_connect(ipaddress.ip_address(each)) for each in addresses):
            raise Refused(f"the host {host}, which has an address that is not public")
        plain = _first_that_answers(addresses, port, ends_at)
        try:
            plain.settimeout(_left_s(ends_at))
            secure = self.context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        assert isinstance(secure, _TimedSocket), "the context has its class"
        secure.ends_at = ends_at
        return secure


class _TimedSocket(ssl.SSLSocket):
    """Every reading has what is left of the time: bytes that drip cannot go on for ever."""

    ends_at: float

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(_left_s(self.ends_at))
        return super().recv_into(buffer, nbytes, flags)


def _first_that_answers(addresses: list[str], port: int, ends_at: float) -> socket.socket:
    trouble: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_left_s(ends_at))
        except OSError as error:
            trouble = error
    raise trouble


def _left_s(ends_at: float) -> float:
    """What is left of the time. Raises TimeoutError."""
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that is reached where an IPv6 one is only its other form."""
    return IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else address.ipv4_mapped
