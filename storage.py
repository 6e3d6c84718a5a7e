"""Files in one folder or bucket: a local path, or `gs://`, `s3://`, `az://`, `file://`, all used alike.

Nothing is retried here: the caller decides what is worth a retry.
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
# A file of gigabytes is one request, which obstore's default of 30 s would cut. Only a stalled read is given up.
CLIENT_OPTIONS: ClientConfig = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "12h"}
HALF_WRITTEN = re.compile(r"#\d+$")  # the end of obstore's temporary file names
HALF_WRITTEN_SECONDS = 3_600.0
OWN_RETRIES = 0  # obstore's retries would wait without a word in the log


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_A_FILE = (errno.EISDIR, errno.ELOOP, errno.ENOTDIR)


PERMANENT_KINDS = ("denied", "missing", "invalid")  # errors of these kinds stay until somebody acts


class StorageError(Exception):
    """An operation on a folder or bucket failed.

    `kind` is "missing", "exists", "denied", "full", "invalid" (the address, or no file there)
    or "unavailable" (worth a retry).
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind)
        self.message, self.kind = message, kind

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Entry:
    """One file in a storage. Its `version` changes with every write; entries of equal path and size compare equal."""

    path: str
    size_bytes: int
    version: str = field(default="", compare=False)
    modified_at: datetime | None = field(default=None, compare=False)  # by the storage's clock


def is_address(place: str) -> bool:
    """Return True if `place` is an address, not a path on this machine."""
    scheme, separator, rest = place.partition("://")
    return bool(separator) and scheme in SCHEMES and bool(rest.strip("/"))


def is_bucket(place: str | Path) -> bool:
    """Return True if `place` is a bucket, which other machines can read."""
    return is_address(str(place)) and str(place).partition("://")[0] in BUCKET_SCHEMES


class Storage:
    """Files under one root, named by paths with `/`. Every method may raise StorageError."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self.name = name

    @classmethod
    def at(cls, place: str | Path) -> Storage:
        """Open the storage at a path or address. A missing folder is created."""
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
        """Return the content of a file."""
        with _translated(self._title(path)):
            return bytes(obstore.get(self._store, path).bytes())

    def stream(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """Yield the file in pieces, from `offset` on, which lies inside the file."""
        with _translated(self._title(path)):
            rest = {"range": {"offset": offset}} if offset else None  # an empty file has no ranges
            answer = obstore.get(self._store, path, options=rest)  # type: ignore[arg-type]
            for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading and seeking. Reading it may raise OSError."""
        with _translated(self._title(path)):
            return io.BufferedReader(_Reader(obstore.open_reader(self._store, path)), CHUNK_BYTES)

    def exists(self, path: str) -> bool:
        """Return True if the file exists."""
        try:
            with _translated(self._title(path)):
                obstore.head(self._store, path)
        except StorageError as error:
            if error.kind == "missing":
                return False
            raise
        return True

    def entries(self, prefix: str = "", limit: int | None = None) -> list[Entry]:
        """Return the files below the folder `prefix`, sorted by path: all, or the first `limit`."""
        entries: list[Entry] = []
        with _translated(self._title(prefix)):
            for page in obstore.list(self._store, prefix=prefix or None):
                entries += map(_entry, page)
                if limit is not None and len(entries) >= limit and not isinstance(self._store, LocalStore):
                    break  # a bucket lists in order, a folder does not
        return sorted(entries, key=lambda entry: entry.path)[:limit]

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write a file, whole or not at all. With `create`, fail if it exists already."""
        with _translated(self._title(path)):
            # In one request: an upload in parts would leave parts behind if the process is killed.
            obstore.put(self._store, path, content, mode="create" if create else "overwrite", use_multipart=False)

    def delete(self, path: str) -> None:
        """Remove a file. A missing file is no error."""
        with _translated(self._title(path)):
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                return

    def tidy(self, prefix: str) -> None:
        """Remove files below the folder `prefix` that killed processes left half written at least an hour ago.

        Does nothing in a bucket, which has whole files only.
        """
        if not isinstance(self._store, LocalStore):
            return
        with _translated(self._title(prefix)):
            for file in Path(str(self._store.prefix), prefix).rglob("*"):
                with suppress(FileNotFoundError):  # its writer has just finished
                    if HALF_WRITTEN.search(file.name) and file.is_file() and _age_seconds(file) > HALF_WRITTEN_SECONDS:
                        file.unlink()

    @property
    def is_bucket(self) -> bool:
        """True for a bucket, which other machines can read."""
        return is_bucket(self.name)

    def uri(self, path: str) -> str | None:
        """Return the file's address in a bucket; None in a folder."""
        return self._title(path) if self.is_bucket else None

    def sign(self, path: str, seconds: int) -> str | None:
        """Return an address that lets anyone read the file for `seconds`; None if the credentials cannot sign one."""
        if not isinstance(self._store, SIGNING_STORES):
            return None
        try:
            with _translated(self._title(path)):
                return obstore.sign(self._store, "GET", path, timedelta(seconds=seconds))
        except StorageError as error:
            log.warning("cannot sign an address: %s", error)
            return None

    def _title(self, path: str) -> str:
        return f"{self.name.rstrip('/')}/{path}"


class _Reader(io.RawIOBase):
    """An obstore file with the interface of a Python file."""

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
    """Return the seconds since the last write, by the system's clock."""
    return time.time() - file.stat().st_mtime


def _entry(item: ObjectMeta) -> Entry:
    return Entry(item["path"], item["size"], item["e_tag"] or "", item["last_modified"])


@contextmanager
def _translated(title: str) -> Iterator[None]:
    """Raise obstore's errors as StorageError."""
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
    """Return the StorageError kind. obstore puts the OS error number, or a listing's HTTP status, into the message."""
    if answered := re.search(r"status code: (401|403|404)\b", cause):
        return "missing" if answered[1] == "404" else "denied"
    number = re.search(r"\(os error (\d+)\)", cause)
    code = int(number[1]) if number else None
    if code in NO_ROOM:
        return "full"
    if code in NOT_A_FILE:
        return "invalid"
    return "denied" if code in (errno.EROFS, errno.EACCES, errno.EPERM) else "unavailable"
