"""Reads a repository of the Hub: its list of files, their bytes, and their places in the Hub's own cache.

Importing it imports `huggingface_hub`, which reads the environment, so only the download's process imports it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, hf_hub_url
from huggingface_hub._tree_cache import TreeCacheEntry, read_tree_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, parse_ratelimit_headers

from inference.catalog import Repository
from inference.errors import DownloadError, first_line
from inference.weights import hub_settings
from inference.weights.checksums import GIT, SHA256, WantedFile
from inference.weights.transfer import PARTIAL, TemporaryError

OTHERWISE = "or set YUE_WEIGHTS to a folder that holds the weights"
INCOMPLETE = ".incomplete"  # the suffix of partial files of other programs in this cache
TIMEOUT_S = 30.0  # to connect, and between two reads
REQUEST_TIMEOUT, TOO_MANY, SERVER_ERROR = 408, 429, 500
PARTIAL_CONTENT = 206
UNAUTHORIZED = 401

_COMMIT = re.compile("[0-9a-f]{40}")


class HubSource:
    """A repository on the Hub, kept in the Hub's cache in the layout of the Hub's own library."""

    removable = True
    keeps_revisions = True

    def __init__(self, repository: Repository) -> None:
        revision = f" at revision {repository.revision}" if repository.revision else ""
        self.title = f"repository {repository.name}{revision}"
        self.key = quote(f"hub/{repository.name}@{repository.revision or ''}", safe="@")
        self._repository = repository
        self._cache = Path(constants.HF_HUB_CACHE)
        self._folder = repo_folder_name(repo_id=repository.name, repo_type="model")
        self._endpoint = hub_settings.endpoint_of(os.environ)
        self._hub = f"the Hub at {hub_settings.shown(self._endpoint)}"

    def resolve(self) -> str:
        """The commit. Sends a request only if the revision is not a commit already."""
        revision = self._repository.revision or constants.DEFAULT_REVISION
        if _COMMIT.fullmatch(revision):
            return revision
        reference = self._cache / self._folder / "refs" / revision
        if constants.is_offline_mode() and reference.is_file():
            return reference.read_text()
        response = self._ask(f"revision/{quote(revision, safe='')}")
        with self._valid_answer():
            return str(response.json()["sha"])

    def listing(self, revision: str) -> list[WantedFile]:
        """All files with their sizes and digests. Offline, the list that another program left in the cache."""
        if constants.is_offline_mode() and (listed := read_tree_cache(str(self._cache / self._folder), revision)):
            return [_listed(path, entry) for path, entry in listed.items()]
        response = self._ask(f"tree/{revision}?recursive=true")
        with self._valid_answer():
            entries: list[dict[str, Any]] = response.json()
            while "next" in response.links:
                response = self._get(response.links["next"]["url"])
                entries += response.json()
            return [_wanted(entry) for entry in entries if entry["type"] == "file"]

    def unchanged(self, files: tuple[WantedFile, ...]) -> bool:
        """Always true: a commit does not change."""
        return True

    def wants(self, path: str) -> bool:
        """True if a model needs the file."""
        return self._repository.wants(path)

    def folder(self, revision: str) -> Path:
        """The snapshot folder, which holds links."""
        return self._cache / self._folder / "snapshots" / revision

    def store(self, revision: str, file: WantedFile) -> Path:
        """The path of the blob, named by its digest."""
        assert file.digest is not None
        return self._blobs / file.digest.partition(":")[2]

    def link(self, revision: str, file: WantedFile) -> None:
        """Create a relative link, so that the cache can be moved."""
        link, blob = self.folder(revision) / file.path, self.store(revision, file)
        if link.exists() and link.samefile(blob):
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(blob, link.parent))
        temporary.replace(link)

    def read(self, revision: str, file: WantedFile, offset: int) -> Generator[bytes, None, None]:
        """The file's bytes from `offset` on."""
        url = hf_hub_url(self._repository.name, file.path, revision=revision, endpoint=self._endpoint)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={offset}-"}
        with (
            self._translated(file.path),
            _client().stream("GET", url, headers=_headers(headers), timeout=TIMEOUT_S) as response,
        ):
            hf_raise_for_status(response)
            skipped = 0 if response.status_code == PARTIAL_CONTENT else offset  # the server may ignore the range
            for chunk in response.iter_raw():
                yield chunk[skipped:]
                skipped -= min(skipped, len(chunk))

    def lock(self) -> Path:
        """A file in the folder of the library's locks."""
        return self._locks / "yue-server.lock"

    def clean(self, revision: str, files: tuple[WantedFile, ...]) -> None:
        """Remove partial files of other commits, and those of other programs that hold no lock."""
        kept = {self.store(revision, file).name + PARTIAL for file in files}
        for path in self._blobs.glob(f"*{PARTIAL}"):
            if path.name not in kept:
                path.unlink()
        for path in self._blobs.glob(f"*{INCOMPLETE}"):
            etag = path.name.split(".")[0]
            if _is_free(self._locks / f"{etag}.lock"):
                path.unlink(missing_ok=True)

    @property
    def _blobs(self) -> Path:
        return self._cache / self._folder / "blobs"

    @property
    def _locks(self) -> Path:
        return self._cache / ".locks" / self._folder

    def _ask(self, what: str) -> httpx2.Response:
        return self._get(f"{self._endpoint}/api/models/{self._repository.name}/{what}")

    def _get(self, url: str) -> httpx2.Response:
        with self._translated():
            response = _client().get(url, headers=_headers({}), timeout=TIMEOUT_S)
            hf_raise_for_status(response)
            return response

    @contextmanager
    def _translated(self, path: str = "") -> Iterator[None]:
        """Translate the library's errors to TemporaryError and DownloadError."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            what = f"{path} of {self.title} is not" if path else f"{self.title} is not complete"
            message = f"{what} in the cache, and HF_HUB_OFFLINE forbids fetching it"
            raise DownloadError(f"{message}: unset it, {OTHERWISE}", "offline") from error
        except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise self._not_the_hub(f"redirects to an invalid address ({error})") from error
        except httpx2.RequestError as error:
            way = hub_settings.way_to(self._endpoint, os.environ)
            raise TemporaryError(f"{self._hub} cannot be reached{way} ({first_line(error)})") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (REQUEST_TIMEOUT, TOO_MANY) or status >= SERVER_ERROR:
                raise TemporaryError(f"{self._hub} answered {status}", _asked_wait_s(error.response)) from error
            raise self._refusal(error, path) from error

    @contextmanager
    def _valid_answer(self) -> Iterator[None]:
        """Raise DownloadError for a response that is not the Hub API's, such as a web page."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._not_the_hub("sent a response that is not the Hub API's") from error

    def _not_the_hub(self, what: str) -> DownloadError:
        """The error for a server that may not be the Hub at all."""
        advice = "check HF_ENDPOINT, and that no proxy or login page responds in its place"
        return DownloadError(f"{self.title}: {self._hub} {what}; {advice}, {OTHERWISE}")

    def _refusal(self, error: HfHubHTTPError, path: str) -> DownloadError:
        """The error for a refused request, with advice."""
        title = self.title
        if isinstance(error, GatedRepoError):  # before its parent class
            advice = "accept its terms on its page, then set HF_TOKEN to a token of that account"
            return DownloadError(f"{title} is gated: {advice}", "gated")
        if isinstance(error, RepositoryNotFoundError):
            advice = "check the name, or set HF_TOKEN to a token that may read it"
            return DownloadError(
                f"{title} does not exist, or is private, according to {self._hub}: {advice}", "no_repository"
            )
        if isinstance(error, RevisionNotFoundError):
            return DownloadError(f"{title} has no such revision: check it, or leave it out", "no_revision")
        if isinstance(error, EntryNotFoundError):
            return DownloadError(f"{title} has no file {path}: check the name and the revision", "missing_file")
        if error.response.status_code == UNAUTHORIZED:
            advice = "set HF_TOKEN to one that is valid"
            return DownloadError(f"{title}: {self._hub} refused the token: {advice}", "gated")
        return self._not_the_hub(f"answered {error.response.status_code}")


def _wanted(entry: dict[str, Any]) -> WantedFile:
    lfs = entry.get("lfs")
    digest = f"{SHA256}:{lfs['oid']}" if lfs else f"{GIT}:{entry['oid']}"
    return WantedFile(entry["path"], lfs["size"] if lfs else entry["size"], digest)


def _listed(path: str, entry: TreeCacheEntry) -> WantedFile:
    if entry.lfs_sha256 is not None and entry.lfs_size is not None:
        return WantedFile(path, entry.lfs_size, f"{SHA256}:{entry.lfs_sha256}")
    return WantedFile(path, entry.size, f"{GIT}:{entry.blob_id}")


def _client() -> httpx2.Client:
    """The library's HTTP client, set up by the environment. Raises DownloadError if that is impossible."""
    if not constants.is_offline_mode():
        hub_settings.check(os.environ)
    try:
        return get_session()
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
        message = f"the variables that lead to the Hub (proxies, SSL_CERT_FILE, SSL_CERT_DIR) cannot be used: {error}"
        raise DownloadError(message, "invalid_setting") from error


def _headers(more: dict[str, str]) -> dict[str, str]:
    """The headers of a request, with the token. Raises DownloadError if the token cannot be read or sent."""
    path = constants.HF_TOKEN_PATH
    try:
        headers: dict[str, str] = build_hf_headers(library_name="yue-server")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        message = f"the token in {path} cannot be read ({reason}); set HF_HOME to a folder that can be read and written"
        raise DownloadError(message, "invalid_setting") from error
    if not hub_settings.is_token(headers.get("authorization", "").removeprefix("Bearer ")):
        raise DownloadError(f"the token in {path}: {hub_settings.TOKEN_TEXT}", "invalid_setting")
    return headers | more


def _asked_wait_s(response: httpx2.Response) -> float | None:
    """The wait that the Hub asks for."""
    limits = parse_ratelimit_headers(response.headers)
    if limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None


def _is_free(lock: Path) -> bool:
    """True if no process holds that lock of the Hub's library."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
