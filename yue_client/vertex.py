"""A YuE server behind an endpoint of Vertex AI: its address, and the token it needs.

It is independent of what requests ask for, and uses only /predict.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping

from yue_client.errors import Json, Misused, Unauthorized, Unreachable
from yue_client.transport import Found, Http, Server

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
FULL_NAME = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/endpoints/(?P<id>[^/]+)")
INVOKE = "/invoke"  # at the end of an endpoint's name: its model was uploaded with invokeRoutePrefix
ENDPOINT_ID = re.compile(r"[\w-]+")
API_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"  # gcloud's own


class Endpoint(Server):
    """A server behind an endpoint of Vertex AI."""

    by_predict_alone = True
    poll_s = 2.0

    def __init__(
        self, http: Http, name: str, api_key: str | None = None, token: Callable[[], str] | None = None
    ) -> None:
        super().__init__(http, "", api_key)
        self.name, self._fetch_token, self._token = name.removesuffix(INVOKE), token or access_token, ""
        self._method = f"{INVOKE}/predict" if name.endswith(INVOKE) else ":predict"

    @property
    def predict_address(self) -> str:
        """The endpoint's own address where it has one, which then is the only one that answers."""
        if not self.address:
            region = FULL_NAME.fullmatch(self.name)["region"]  # type: ignore[index]
            api = os.environ.get(API_VARIABLE) or f"https://{region}-aiplatform.googleapis.com/"
            self.address = api.rstrip("/")  # which the token is for
            try:
                description = self.get(f"/v1/{self.name}", {}, _description)
            except BaseException:
                self.address = ""
                raise
            host = description.get("dedicatedEndpointDns")
            if host and description.get("dedicatedEndpointEnabled", True):
                self.address = f"https://{host}"
        return f"{self.address}/v1/{self.name}{self._method}"

    def credentials(self) -> Mapping[str, str]:
        """Google's token, and the server's own key."""
        self._token = self._token or self._fetch_token()
        return {**super().credentials(), "Authorization": f"Bearer {self._token}"}

    def _let_in(self, ask: Callable[[], Found]) -> Found:
        """A token is valid for an hour, and a song may take longer: a new one is fetched once."""
        try:
            return ask()
        except Unauthorized:
            if not self._token:  # no token can be had
                raise
            self._token = ""
        try:
            return ask()
        except Unauthorized as error:
            error.hint = (
                error.hint or "the account needs the role roles/aiplatform.user in the project; see: gcloud auth list"
            )
            raise


def full_name(endpoint: str, project: str | None, region: str | None) -> str:
    """projects/P/locations/R/endpoints/E, from that or from its id; /invoke may follow. Raises Misused."""
    plain = endpoint.removesuffix(INVOKE)
    if FULL_NAME.fullmatch(plain):
        return endpoint
    if not ENDPOINT_ID.fullmatch(plain):
        allowed = "projects/P/locations/R/endpoints/E, or the id alone, and /invoke behind either"
        raise Misused(f"--endpoint: got {endpoint!r}; allowed: {allowed}")
    if not project or not region:
        raise Misused("--endpoint: an id alone needs --project and --region (or PROJECT_ID and REGION)")
    return f"projects/{project}/locations/{region}/endpoints/{endpoint}"


def _description(answer: http.client.HTTPResponse) -> Json:
    try:
        description = json.load(answer)
    except ValueError:
        description = None
    if not isinstance(description, dict):
        raise Unreachable("Vertex AI does not describe the endpoint as JSON", temporary=False)
    return description


def access_token() -> str:
    """A token of the application's default credentials where google-auth is installed, else gcloud's own.

    Raises Unauthorized.
    """
    return _token_of_google_auth() or _token_of_gcloud()


def _token_of_google_auth() -> str | None:
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request
    except ImportError:
        return None
    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
        credentials.refresh(Request())
    except GoogleAuthError:  # gcloud may be logged in though
        return None
    return str(credentials.token)


def _token_of_gcloud() -> str:
    hint = "log in with: gcloud auth login"
    gcloud = shutil.which("gcloud")
    if not gcloud:
        raise Unauthorized("no token: neither google-auth's default credentials nor gcloud are here", hint)
    done = subprocess.run([gcloud, "auth", "print-access-token"], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise Unauthorized(f"no token: gcloud says {done.stderr.strip() or 'nothing'}", hint)
    return done.stdout.strip()
