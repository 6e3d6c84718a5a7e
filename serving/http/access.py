"""Access control: the server's names, keys and sessions, administrators' rights, and the size of a body.

Independent of what the routes do. It never shows or logs a key.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256

from flask import Flask, Request, Response, current_app, g, request
from pydantic import SecretStr
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from serving.http.hosts import Hosts
from serving.http.problems import Problem, shown
from serving.http.session_tokens import has_token
from serving.settings import HOSTS_VARIABLE, KEY_VARIABLE, Settings

SCHEME = "Bearer"
KEY_HEADER = "X-API-Key"
MOST_VALUES = 200_000  # which take 50 ms; a reference's base64 is one
STARTS = (b",", b"[", b"{")
KEY_IN_HEAD = re.compile(rb"\r\n(?:X-API-Key|Authorization):[ \t]*(?:Bearer[ \t]+)?([^ \t\r\n]+)", re.IGNORECASE)
COOKIES_IN_HEAD = re.compile(rb"\r\nCookie:[ \t]*([^\r\n]+)", re.IGNORECASE)
FOREIGN_PAGE = (
    "a browser sent this for a page of another site, and this server has no key that tells its users from strangers; "
    f"allowed: programs, pages of the server itself, and with {KEY_VARIABLE} whoever has the key"
)
KEY_WILL_DO = f", or set {KEY_VARIABLE}, with which any name will do"
ASK_FOR_KEY = {"WWW-Authenticate": f'{SCHEME} realm="yue"'}


def install(app: Flask, settings: Settings, open_views: Collection[Callable[..., object]]) -> None:
    """Require a key or a session, where there are keys, for all views but `open_views`, which show no data.

    A session does not count for requests that a browser sends for a page of another site.
    On Vertex AI the predict route is open too: there the platform authenticates clients, and passes no headers on.
    Without keys, pages of other sites must not use a visitor's browser to reach the server.
    """
    keys, hosts = settings.api_keys, Hosts(settings.host, settings.allowed_hosts)
    keyless = not keys and not settings.aip_mode
    names_count = bool(settings.allowed_hosts) or (keyless and settings.is_local)

    def is_open() -> bool:
        return app.view_functions.get(request.endpoint or "") in open_views

    def check_host() -> None:
        host = request.environ.get("HTTP_HOST")
        if names_count and not hosts.include(host):
            raise _not_allowed(host, "" if settings.allowed_hosts else KEY_WILL_DO)

    def check_page() -> None:
        is_link = request.method == "GET" and is_open() and request.headers.get("Sec-Fetch-Dest") == "document"
        if keyless and not is_link and hosts.is_foreign_page(request.headers, request.method):
            raise Problem(403, "cross-site", FOREIGN_PAGE)

    def check_key() -> None:
        in_session = has_token(keys, request.headers.get("Cookie", ""))
        in_session = in_session and not hosts.is_foreign_page(request.headers, request.method)
        g.signed_in = in_session or _opens(keys, request)
        on_vertex = settings.aip_mode and request.path == (settings.predict_route or "/predict")
        if not keys or on_vertex or is_open() or g.signed_in:
            return
        detail = (
            f"this server needs a key: send it as Authorization: {SCHEME} KEY, or as {KEY_HEADER}: KEY; in a browser, "
            "sign in on the page at /"
        )
        raise Problem(401, "unauthorized", detail, headers=ASK_FOR_KEY)

    for check in (check_host, check_page, check_key):
        app.before_request(check)
    app.after_request(_take_by_its_name)


def is_signed_in() -> bool:
    """True if the current request has a key or a session."""
    return bool(g.signed_in)


def key_among(keys: Collection[SecretStr], sent: str) -> SecretStr | None:
    """The key that was sent. It takes the same time whichever it is, and however much of one matches."""
    found = [key for key in keys if hmac.compare_digest(_digest(sent), _digest(key.get_secret_value()))]
    return found[0] if found else None


def check_admin(settings: Settings) -> None:
    """Raise Problem unless clients may change models and list all jobs."""
    if settings.may_administer:
        return
    what = "changing models, cancelling their download and listing all jobs are closed"
    if settings.admin == "off":
        raise Problem(403, "forbidden", f"{what} here, by YUE_ADMIN=off")
    detail = (
        f"{what}, as anybody may reach this server; "
        f"set {KEY_VARIABLE}, so that only those with the key do, or YUE_ADMIN=on"
    )
    raise Problem(403, "forbidden", detail)


def read_body() -> bytes:
    """The request's body. Raises Problem if it is larger than allowed."""
    limit = request.max_content_length
    try:
        body = request.get_data(cache=False)
        # A chunked body has no length and is cut at the limit, so check whether more follows.
        if request.content_length is None and len(body) == limit and request.environ["wsgi.input"].read(1):
            raise RequestEntityTooLarge
    except RequestEntityTooLarge as error:
        setting = " (YUE_MAX_REQUEST_BYTES)" if limit == current_app.config["MAX_CONTENT_LENGTH"] else ""
        detail = f"the body is too large; allowed: up to {limit} bytes{setting}"
        raise Problem(413, "request-entity-too-large", detail, {"allowed": limit}) from error
    except ClientDisconnected as error:
        raise Problem(408, "request-timeout", "the body did not come to its end in time; send it again") from error
    return body


def check_values(body: bytes) -> None:
    """Raise Problem if the JSON has so many values that parsing it would delay other requests."""
    values = sum(map(body.count, STARTS))
    if values > MOST_VALUES:
        detail = f"the body has more than {MOST_VALUES} lists, objects and commas; send fewer instances in one request"
        raise Problem(413, "request-entity-too-large", detail, {"allowed": MOST_VALUES})


def is_trusted(settings: Settings, head: bytes) -> bool:
    """True if the raw head of a request has a key or a session, or if this server needs none for most routes."""
    keys = settings.api_keys
    if not keys or settings.aip_mode:
        return True
    sent, cookies = (
        [found.decode("latin-1") for found in each.findall(head)] for each in (KEY_IN_HEAD, COOKIES_IN_HEAD)
    )
    return _is_one(keys, sent) or any(has_token(keys, each) for each in cookies)


def _not_allowed(host: object, otherwise: str) -> Problem:
    detail = (
        f"Host: got {shown(host)}; allowed: localhost, this machine's own name and addresses, and the names in "
        f"{HOSTS_VARIABLE}; set it to have this one too{otherwise}"
    )
    return Problem(403, "host-not-allowed", detail, {"field": "Host", "value": shown(host)})


def _opens(keys: Collection[SecretStr], asked: Request) -> bool:
    """True if one of the keys was sent."""
    scheme, _, token = asked.headers.get("Authorization", "").partition(" ")
    sent = [asked.headers.get(KEY_HEADER, "")] + ([token.strip()] if scheme.lower() == SCHEME.lower() else [])
    return _is_one(keys, sent)


def _is_one(keys: Collection[SecretStr], sent: Sequence[str]) -> bool:
    """True if one of these is a key."""
    return any([key_among(keys, one) for one in sent])  # a list: `any` alone would stop at the first


def _digest(text: str) -> bytes:
    """Of equal length for all, so that the comparison does not reveal the length of a key."""
    return sha256(text.encode()).digest()


def _take_by_its_name(response: Response) -> Response:
    """Keep browsers from treating audio or JSON as a page."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
