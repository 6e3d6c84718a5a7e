"""Reference audio that is given by its address: where it may come from, and the part of it that is used.

It knows nothing of routes or jobs, and reads nothing that its settings do not name.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from inference.audio import cut_reference
from inference.errors import InvalidField, StorageError
from inference.song import Reference
from serving.fetch import Fetcher, Refused, Unreachable
from serving.job import Job
from serving.orders import Order
from serving.problems import unavailable
from serving.schemas import ReferenceFields
from storage import Storage

LARGEST_FILE_BYTES = 64 << 20  # a song of six minutes as WAV
LONGEST_FETCH_SECONDS = 30.0  # for one file
MOST_FETCHES = 4  # requests that read files at once: the other threads answer meanwhile
BUCKET = "gs://"
_OBJECT = re.compile(r"gs://[a-z0-9][a-z0-9._-]+(/[^/\x00-\x1f]+)+")


class References:
    """Reads the addresses of reference audio. May be used by several threads at once."""

    def __init__(
        self,
        hosts: Collection[str],
        fetcher: Fetcher | None = None,
        open_bucket: Callable[[str], Storage] = Storage.at,
    ) -> None:
        self._buckets = tuple(place for place in hosts if place.startswith(BUCKET))
        self._hosts = tuple(place for place in hosts if not place.startswith(BUCKET))
        self._fetcher = fetcher or Fetcher(self._hosts, LARGEST_FILE_BYTES, LONGEST_FETCH_SECONDS)
        self._open_bucket = open_bucket
        self._seats = threading.Semaphore(MOST_FETCHES)

    def completing(self, order: Order) -> Callable[[Job], None]:
        """What gives the order's job the audio that it lacks. It raises InvalidField and Problem."""

        def complete(job: Job) -> None:
            if order.to_fetch:
                job.request = replace(order.request, reference=self.read(order.to_fetch, job.trace))

        return complete

    def read(self, wanted: ReferenceFields, trace: Mapping[str, str]) -> Reference:
        """The reference with what lies at its addresses, cut to its span. Raises InvalidField and Problem."""
        with self._seat():
            places = wanted.addresses()
            with ThreadPoolExecutor(len(places)) as readers:
                read = readers.map(lambda field: self._one(f"reference.{field}", places[field], trace), places)
                found = dict(zip(places, read, strict=True))
        return cut_reference(wanted.as_reference(found))

    def _one(self, field: str, place: str, trace: Mapping[str, str]) -> bytes:
        if not (self._hosts or self._buckets):
            raise InvalidField(field, place, "no address, as YUE_REFERENCE_HOSTS is not set; send the file as base64")
        try:
            return self._from_bucket(place) if place.startswith(BUCKET) else self._fetcher.fetch(place, trace)
        except Refused as error:
            allowed = f"an address of {', '.join((*self._hosts, *self._buckets))} where a file lies ({error})"
            raise InvalidField(field, place, allowed) from error
        except Unreachable as error:
            raise unavailable("reference-unavailable", f"{field}: {error}; try again, or send it as base64") from error

    def _from_bucket(self, place: str) -> bytes:
        """The file in a bucket. Raises Refused and Unreachable."""
        if not _OBJECT.fullmatch(place) or {".", ".."} & set(place.split("/")):
            raise Refused("no gs://bucket/path")
        if not any(place.startswith(f"{allowed}/") for allowed in self._buckets):
            raise Refused("it is not in a bucket or folder of YUE_REFERENCE_HOSTS")
        bucket, _, path = place.removeprefix(BUCKET).partition("/")
        ends_at = time.monotonic() + LONGEST_FETCH_SECONDS
        content = bytearray()
        try:
            for chunk in self._open_bucket(BUCKET + bucket).stream(path):
                content += chunk
                if len(content) > LARGEST_FILE_BYTES:
                    raise Refused(f"more than {LARGEST_FILE_BYTES} bytes")
                if time.monotonic() > ends_at:
                    raise Unreachable(f"the bucket took longer than {LONGEST_FETCH_SECONDS:g} s")
        except StorageError as error:
            if error.kind == "unavailable":
                raise Unreachable(f"{BUCKET}{bucket} does not answer") from error
            raise Refused(f"the file is {error.kind}") from error
        return bytes(content)

    @contextmanager
    def _seat(self) -> Iterator[None]:
        if not self._seats.acquire(blocking=False):
            detail = f"{MOST_FETCHES} requests read reference audio from addresses already; try again later"
            raise unavailable("reference-unavailable", detail)
        try:
            yield
        finally:
            self._seats.release()
