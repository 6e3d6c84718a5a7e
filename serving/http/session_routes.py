"""The routes of a browser's session: open it with a key, show it, end it.

A session is a cookie that scripts cannot read. `serving/http/access.py` accepts it in the place of a key.
"""

from __future__ import annotations

from flask import Response, jsonify, request

from serving.http import access, session_tokens
from serving.http.job_routes import Route, View
from serving.http.json_body import read_json
from serving.http.openapi import VERSION
from serving.http.problems import Problem
from serving.http.request_models import SignIn, read
from serving.http.response_models import SessionView
from serving.settings import Settings

MOST_BYTES = 4_096  # of the body, which comes from anyone


class SessionRoutes:
    """The views, which need no key."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def table(self) -> list[Route]:
        """The paths and methods of the views."""
        return [
            ("/session", ("GET",), self.show_session),
            ("/session", ("POST",), self.sign_in),
            ("/session", ("DELETE",), self.sign_out),
        ]

    def views(self) -> set[View]:
        """All views."""
        return {view for _, _, view in self.table()}

    def show_session(self) -> Response:
        """The rights of this client."""
        return self._session(access.is_signed_in())

    def sign_in(self) -> Response:
        """Open a session with a key; a browser then sends its cookie with each request."""
        request.max_content_length = MOST_BYTES
        asked = read(SignIn, read_json())
        if not self._settings.api_keys:
            return self._session(signed_in=False)
        key = access.key_among(self._settings.api_keys, asked.key.get_secret_value())
        if key is None:
            raise Problem(401, "unauthorized", "this is no key of the server", headers=access.ASK_FOR_KEY)
        response = self._session(signed_in=True)
        # Without a path it is that of this route: behind a proxy's path prefix, other sites there do not get it.
        response.set_cookie(
            session_tokens.COOKIE,
            session_tokens.new_token(key),
            max_age=session_tokens.LIFETIME,
            path=None,
            secure=_is_encrypted(),
            httponly=True,
            samesite="Strict",
        )
        return response

    def sign_out(self) -> Response:
        """End the session: remove its cookie."""
        response = self._session(signed_in=False)
        response.delete_cookie(
            session_tokens.COOKIE, path=None, secure=_is_encrypted(), httponly=True, samesite="Strict"
        )
        return response

    def _session(self, signed_in: bool) -> Response:
        key_required = bool(self._settings.api_keys)
        view = SessionView.of(
            signed_in=signed_in,
            key_required=key_required,
            may_administer=self._settings.may_administer and (signed_in or not key_required),
            version=VERSION,
        )
        response = jsonify(view.as_json())
        response.headers["Cache-Control"] = "no-store"
        return response


def _is_encrypted() -> bool:
    """True if the client uses TLS, be it to a proxy. One that pretends to only keeps its cookie from plain HTTP."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    return request.is_secure or forwarded == "https" or request.headers.get("Origin", "").lower().startswith("https:")
