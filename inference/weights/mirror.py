"""Reads weights that are not on the Hub: copies them from a bucket, or uses a local folder in place.

In both, a repository is a folder named after the repository or its part of the model: `stage1`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from inference.catalog import Repository
from inference.errors import DownloadError
from inference.weights.checksums import SHA256, WantedFile
from inference.weights.transfer import PARTIAL, TemporaryError, unreadable
from storage import Storage, StorageError

SUMS = "SHA256SUMS"  # the output of `sha256sum`; optional in a repository's folder
LOCAL = "local"
_SUM = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", re.IGNORECASE)
_SHORT = 12  # characters of a digest that distinguish mirrors, and versions of one


class MirrorSource:
    """One repository's folder in a bucket, copied under `cache`."""

    removable = True
    keeps_revisions = False

    def __init__(self, repository: Repository, part: str, storage: Storage, cache: Path) -> None:
        self.title = f"the copy of {repository.name} in {storage.name}"
        name = hashlib.sha256(storage.name.encode()).hexdigest()[:_SHORT]
        self.key = quote(f"mirror/{name}/{repository.name}", safe="")
        self._repository, self._storage = repository, storage
        self._names = (repository.folder_name, part)
        self._copy = cache / "mirrors" / name / repository.folder_name
        self._found: tuple[str, list[WantedFile]] | None = None

    def resolve(self) -> str:
        """A name for the content, derived from the list of files."""
        lines = [f"{file.path}\t{file.size_bytes}\t{file.digest}" for file in self.listing("") if self.wants(file.path)]
        return f"mirror-{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:_SHORT]}"

    def listing(self, revision: str) -> list[WantedFile]:
        """All files, with digests if the mirror has a SHA256SUMS."""
        return self._look()[1]

    def unchanged(self, files: tuple[WantedFile, ...]) -> bool:
        """Always true: the bucket is not listed again."""
        return True

    def wants(self, path: str) -> bool:
        """True if a model needs the file."""
        return self._repository.wants(path)

    def folder(self, revision: str) -> Path:
        """The folder of the copy."""
        return self._copy / revision

    def store(self, revision: str, file: WantedFile) -> Path:
        """The file in the copy."""
        return self.folder(revision) / file.path

    def link(self, revision: str, file: WantedFile) -> None:
        """Nothing to do: the file is in its folder already."""

    def read(self, revision: str, file: WantedFile, offset: int) -> Generator[bytes, None, None]:
        """The file's bytes from `offset` on."""
        with self._translated():
            yield from self._storage.stream(f"{self._look()[0]}/{file.path}", offset)

    def lock(self) -> Path:
        """A file beside the copies."""
        return self._copy.with_name(f".{self._copy.name}.lock")

    def clean(self, revision: str, files: tuple[WantedFile, ...]) -> None:
        """Remove partial files that will not be resumed."""
        kept = {self.store(revision, file).name + PARTIAL for file in files}
        for path in self._copy.rglob(f"*{PARTIAL}"):
            if path.name not in kept or not path.is_relative_to(self.folder(revision)):
                path.unlink()

    def _look(self) -> tuple[str, list[WantedFile]]:
        """The folder that holds the repository, and its files."""
        if self._found is None:
            with self._translated():
                self._found = self._searched()
        return self._found

    def _searched(self) -> tuple[str, list[WantedFile]]:
        for name in self._names:
            entries = self._storage.entries(name)
            if entries:
                sizes = {entry.path.removeprefix(f"{name}/"): entry.size_bytes for entry in entries}
                sums = parse_sums(self._storage.get(f"{name}/{SUMS}")) if SUMS in sizes else {}
                return name, [WantedFile(path, size, sums.get(path)) for path, size in sizes.items()]
        raise no_folder(self._storage.name, self._names)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            if error.kind == "unavailable":
                raise TemporaryError(str(error)) from error
            reason = "missing_file" if error.kind == "missing" else "gated"
            raise DownloadError(f"{error}: check YUE_WEIGHTS, and what this machine may read", reason) from error


class LocalSource:
    """One repository's folder on this machine. Nothing is fetched, and nothing in it is changed."""

    removable = False
    keeps_revisions = False

    def __init__(self, repository: Repository, part: str, root: Path) -> None:
        names = (repository.folder_name, part)
        try:
            found = next((root / name for name in names if (root / name).is_dir()), None)
        except OSError as error:
            raise unreadable(error) from error
        if found is None:
            raise no_folder(str(root), names)
        self.title = f"the folder {found}"
        self.key = quote(f"{LOCAL}/{found.absolute()}", safe="")[-200:]
        self._repository, self._found = repository, found

    def resolve(self) -> str:
        """A constant: no commit is known."""
        return LOCAL

    def listing(self, revision: str) -> list[WantedFile]:
        """All files, with digests if there is a SHA256SUMS."""
        try:
            sums_file = self._found / SUMS
            sums = parse_sums(sums_file.read_bytes()) if sums_file.is_file() else {}
            paths = [(path, path.relative_to(self._found).as_posix()) for path in sorted(self._found.rglob("*"))]
            return [WantedFile(name, path.stat().st_size, sums.get(name)) for path, name in paths if path.is_file()]
        except OSError as error:
            raise unreadable(error) from error

    def unchanged(self, files: tuple[WantedFile, ...]) -> bool:
        """True if the folder still holds exactly these files, with the same digests in its SHA256SUMS."""
        return tuple(file for file in self.listing(LOCAL) if self.wants(file.path)) == files

    def wants(self, path: str) -> bool:
        """True if a model needs the file."""
        return self._repository.wants(path)

    def folder(self, revision: str) -> Path:
        """The folder itself."""
        return self._found

    def store(self, revision: str, file: WantedFile) -> Path:
        """The file itself."""
        return self._found / file.path

    def link(self, revision: str, file: WantedFile) -> None:
        """Nothing to do: the file is in its folder already."""

    def read(self, revision: str, file: WantedFile, offset: int) -> Generator[bytes, None, None]:
        """Never called: local files are not fetched."""
        raise AssertionError("a local folder is used in place")

    def lock(self) -> Path:
        """Never called: nothing is changed."""
        raise AssertionError("a local folder is not changed")

    def clean(self, revision: str, files: tuple[WantedFile, ...]) -> None:
        """Nothing to do: a local folder holds no partial files."""


def parse_sums(content: bytes) -> dict[str, str]:
    """Path -> digest, from the output of `sha256sum`. Raises DownloadError."""
    digests = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        match = _SUM.fullmatch(line)
        if match:
            digests[match[2]] = f"{SHA256}:{match[1].lower()}"
        elif line.strip():
            message = f"{SUMS}, line {number}: got {line[:80]!r}; allowed: the output of sha256sum"
            raise DownloadError(message, "corrupted")
    return digests


def no_folder(root: str, names: tuple[str, str]) -> DownloadError:
    """The error if neither folder of the repository exists."""
    message = f"{root} holds no folder {names[0]!r} or {names[1]!r}; put the repository's files there"
    return DownloadError(message, "no_repository")
