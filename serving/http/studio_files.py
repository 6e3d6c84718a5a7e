"""The studio's page and the files that it loads, as they lie in `serving/studio/`.

They are the same for every client, hold no data and need no key.
"""

from __future__ import annotations

from flask import Response, redirect, request
from werkzeug import Response as WerkzeugResponse

from paths import PROJECT
from serving.http.job_routes import Route, View
from serving.http.problems import not_found

FOLDER = PROJECT / "serving" / "studio"
PAGE = "index.html"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/vnd.microsoft.icon",
}
HEADERS = {
    "Cache-Control": "no-cache",  # a browser asks each time, and mostly gets 304
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def table() -> list[Route]:
    """The paths and methods of the views."""
    return [
        ("/", ("GET",), studio_page),
        ("/studio", ("GET",), studio_redirect),
        ("/studio/<name>", ("GET",), studio_file),
    ]


def views() -> set[View]:
    """All views, which need no key."""
    return {view for _, _, view in table()}


def studio_page() -> Response:
    """The studio, a web page for this server."""
    return studio_file(PAGE)


def studio_redirect() -> WerkzeugResponse:
    """Redirect to the studio's page."""
    return redirect("./")


def studio_file(name: str) -> Response:
    """A file that the studio's page loads."""
    found = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES and path.is_file()}.get(name)
    if found is None:
        raise not_found("the studio has no such file; its page is at /")
    response = Response(found.read_bytes(), mimetype=TYPES[found.suffix], headers=HEADERS)
    response.add_etag()
    response.make_conditional(request)
    return response
