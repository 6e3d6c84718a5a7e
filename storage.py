"""One folder or bucket: a local path, or `gs://`, `s3://`, `az://`, `file://`, all used alike.

It does not know what is kept in it, and tries nothing twice: whoever asks decides what is worth another try.
"""

from __future__ import annotations

import errno
import io
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from obstore import ObjectMeta, ReadableFile
    from obstore.store import ClientConfig
    from typing_extensions import Buffer

BUCKET_SCHEMES = ("gs", "s3", "az")
SCHEMES = (*BUCKET_SCHEMES, "file")
SIGNING_STORES = (S3Store, GCSStore, AzureStore)
ALLOWED = "a folder, or an address that starts with gs://, s3://, az:// or file://"
CHUNK_BYTES = 4 << 20
# A file of gigabytes is one request, which obstore's own 30 s would cut; only a read that stalls is given up.
CLIENT_OPTIONS: ClientConfig = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "12h"}
HALF_WRITTEN = re.compile(r"#\d+$")  # ends the name that obstore gives a file until all of it is there
HALF_WRITTEN_SECONDS = 3_600.0
OWN_RETRIES = 0  # obstore's own would wait in silence


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(Exception):
    """A folder or bucket did not do what it was asked for.

    `kind` is "missing", "exists", "denied", "full", "invalid" (the address) or "unavailable" (worth another try).
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind)
        self.message, self.kind = message, kind

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Entry:
    """One file in a storage. Its `version` is another after every writing; two of the same size and name are equal."""

    path: str
    size_bytes: int
    version: str = field(default="", compare=False)
    modified_at: datetime | None = field(default=None, compare=False)  # by the storage's clock


def is_address(place: str) -> bool:
    """Whether `place` is one of the addresses, and not a path on this machine."""
    scheme, separator, rest = place.partition("://")
    return bool(separator) and scheme in SCHEMES and bool(rest.strip("/"))


def is_bucket(place: str | Path) -> bool:
    """Whether what is at `place` can be read from other machines."""
    return is_address(str(place)) and str(place).partition("://")[0] in BUCKET_SCHEMES


class Storage:
    """Files under one root, named by paths with `/`. Every method raises StorageError."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self.name = name

    @classmethod
    def at(cls, place: str | Path) -> Storage:
        """The storage at a path or address; a path's folder is made where it is missing."""
        name = str(place)
        if "://" in name and not is_address(name):
            raise StorageError(f"{name} is no place for files; allowed: {ALLOWED}", "invalid")
        with _translated(name):
            if is_address(name):
                return cls(
                    from_url(name, client_options=CLIENT_OPTIONS, retry_config={"max_retries": OWN_RETRIES}), name
                )
            return cls(LocalStore(Path(name).absolute(), mkdir=True, automatic_cleanup=True), name)

    def get(self, path: str) -> bytes:
        """The whole file."""
        with _translated(self._title(path)):
            return bytes(obstore.get(self._store, path).bytes())

    def stream(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """The file in pieces, from `offset` on, which lies inside it."""
        with _translated(self._title(path)):
            rest = {"range": {"offset": offset}} if offset else None  # an empty file has no range
            answer = obstore.get(self._store, path, options=rest)  # type: ignore[arg-type]
            for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    def open(self, path: str) -> IO[bytes]:
        """The file, to be read piece by piece and from any point; reading it raises OSError."""
        with _translated(self._title(path)):
            return io.BufferedReader(_Reader(obstore.open_reader(self._store, path)), CHUNK_BYTES)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        try:
            with _translated(self._title(path)):
                obstore.head(self._store, path)
        except StorageError as error:
            if error.kind == "missing":
                return False
            raise
        return True

    def entries(self, prefix: str = "", limit: int | None = None) -> list[Entry]:
        """The files under the folder `prefix`, in any depth, sorted by path: all, or the first of them."""
        entries: list[Entry] = []
        with _translated(self._title(prefix)):
            for page in obstore.list(self._store, prefix=prefix or None):
                entries += map(_entry, page)
                if limit is not None and len(entries) >= limit and not isinstance(self._store, LocalStore):
                    break  # a bucket lists in order, a folder as it likes
        return sorted(entries, key=lambda entry: entry.path)[:limit]

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write the file, whole or not at all; with `create` only where there is none yet."""
        with _translated(self._title(path)):
            # In one request: of an upload in parts, what was sent would stay when the writer is killed.
            obstore.put(self._store, path, content, mode="create" if create else "overwrite", use_multipart=False)

    def delete(self, path: str) -> None:
        """Remove the file; that it is gone already is no error."""
        with _translated(self._title(path)):
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                return

    def tidy(self, prefix: str) -> None:
        """Remove what killed writers left half written in the folder `prefix`, an hour ago or longer.

        A bucket has whole files only.
        """
        if not isinstance(self._store, LocalStore):
            return
        with _translated(self._title(prefix)):
            for file in Path(str(self._store.prefix), prefix).rglob("*"):
                with suppress(FileNotFoundError):  # it is whole meanwhile
                    if HALF_WRITTEN.search(file.name) and file.is_file() and _age_seconds(file) > HALF_WRITTEN_SECONDS:
                        file.unlink()

    @property
    def is_bucket(self) -> bool:
        """Whether others can read it from elsewhere."""
        return is_bucket(self.name)

    def uri(self, path: str) -> str | None:
        """The file's address in a bucket; None in a folder."""
        return self._title(path) if self.is_bucket else None

    def sign(self, path: str, seconds: int) -> str | None:
        """An address that lets anyone read the file for so long; None where these credentials cannot make one."""
        if not isinstance(self._store, SIGNING_STORES):
            return None
        try:
            with _translated(self._title(path)):
                return obstore.sign(self._store, "GET", path, timedelta(seconds=seconds))
        except StorageError as error:
            log.warning("no address is signed: %s", error)
            return None

    def _title(self, path: str) -> str:
        return f"{self.name.rstrip('/')}/{path}"


class _Reader(io.RawIOBase):
    """obstore's open file as Python has files."""

    def __init__(self, file: ReadableFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        chunk = bytes(self._file.read(len(view)))
        view[: len(chunk)] = chunk
        return len(chunk)


def _age_seconds(file: Path) -> float:
    """Since it was last written to, by the system's clock."""
    return time.time() - file.stat().st_mtime


def _entry(item: ObjectMeta) -> Entry:
    return Entry(item["path"], item["size"], item["e_tag"] or "", item["last_modified"])


@contextmanager
def _translated(title: str) -> Iterator[None]:
    """obstore's errors as ours."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise StorageError(f"{title} does not exist", "missing") from error
    except AlreadyExistsError as error:
        raise StorageError(f"{title} exists already", "exists") from error
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        raise StorageError(f"{title} may not be used with these credentials", "denied") from error
    except (BaseError, OSError, ValueError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(f"{title}: {cause}", _kind(cause)) from error


def _kind(cause: str) -> str:
    """obstore tells an error of the operating system by its number, in words; of a listing's answer, its status too."""
    if answered := re.search(r"status code: (401|403|404)\b", cause):
        return "missing" if answered[1] == "404" else "denied"
    number = re.search(r"\(os error (\d+)\)", cause)
    code = int(number[1]) if number else None
    if code in NO_ROOM:
        return "full"
    return "denied" if code in (errno.EROFS, errno.EACCES, errno.EPERM) else "unavailable"
