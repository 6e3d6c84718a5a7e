"""Checks the address to listen on: is it free, and who can reach it?"""

from __future__ import annotations

import errno
import ipaddress
import socket
from functools import cache

from serving.settings import KEY_VARIABLE, Settings

HINTS = {
    errno.EADDRINUSE: "stop the program that listens there, or set {port} to another port",
    errno.EADDRNOTAVAIL: "set YUE_HOST to an address of this machine, or to 0.0.0.0 for all of them",
    errno.EACCES: "set {port} to one from 1024 on",
}


def bind_problem(settings: Settings) -> str:
    """Return why the address cannot be listened on, and what to do; empty if it can."""
    error = _bind_error(settings.host, settings.http_port)
    if error is None:
        return ""
    port = "AIP_HTTP_PORT" if settings.aip_http_port else "PORT"
    hint = HINTS.get(error.errno or 0, "set YUE_HOST and {port} to another address").format(port=port)
    return f"{settings.bind} cannot be listened on ({error.strerror}): {hint}"


def exposure(settings: Settings) -> str:
    """Return a warning if anybody on the network may use the server; empty if access is restricted."""
    if settings.api_keys or settings.aip_mode or ipaddress.ip_address(settings.host).is_loopback:
        return ""
    return f"YUE_HOST={settings.host} without {KEY_VARIABLE}: whoever reaches {settings.bind} may use it; set a key"


@cache  # when gunicorn reads this configuration again, the server itself listens there
def _bind_error(host: str, port: int) -> OSError | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
