"""Reference audio: where it may come from if it is given by its address, and the part of it that is used.

Independent of routes. It fetches only from the places that its settings name.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace

from inference.audio.reading import cut_reference
from inference.errors import InvalidField
from inference.song import Reference
from serving.http.problems import Problem, unavailable
from serving.http.request_models import ReferenceFields
from serving.http.safe_fetch import Fetcher, Refused, Unreachable
from serving.http.song_instances import SongInstance
from serving.jobs.job import Job
from storage import Storage, StorageError

LARGEST_FILE_BYTES = 64 << 20  # a song of six minutes as WAV
LONGEST_FETCH_SECONDS = 30.0  # for one file
MOST_FETCHES = 4  # requests that fetch files at once: the other threads answer meanwhile
MOST_DECODED = 2  # references at once: it takes a core for a second or two, and some ten megabytes
LONGEST_WAIT_SECONDS = 60.0  # in the queue for decoding; a request there holds a thread and its audio
DEFAULT_WAITERS = 16
BUCKET = "gs://"
_OBJECT = re.compile(r"gs://[a-z0-9][a-z0-9._-]+(/[^/\x00-\x1f]+)+")


class References:
    """Reads and decodes reference audio for `most_waiting` requests at once. May be used by several threads at once."""

    def __init__(
        self,
        hosts: Collection[str],
        fetcher: Fetcher | None = None,
        open_bucket: Callable[[str], Storage] = Storage.at,
        most_waiting: int = DEFAULT_WAITERS,
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    ) -> None:
        self._buckets = tuple(place for place in hosts if place.startswith(BUCKET))
        self._hosts = tuple(place for place in hosts if not place.startswith(BUCKET))
        self._fetcher = fetcher or Fetcher(self._hosts, LARGEST_FILE_BYTES, LONGEST_FETCH_SECONDS)
        self._open_bucket = open_bucket
        self._fetching = threading.Semaphore(MOST_FETCHES)
        self._waiting = threading.Semaphore(most_waiting)
        self._longest_wait_seconds = longest_wait_seconds
        # Threads of their own, because what a thread has allocated stays with it: a few keep little.
        self._decoders = ThreadPoolExecutor(MOST_DECODED, "reference-decoder")

    def read(self, wanted: ReferenceFields, trace: Mapping[str, str]) -> Reference:
        """The reference, decoded and cut to its span. Raises InvalidField and Problem."""
        places = wanted.addresses()
        if not places:
            return self._decoded(wanted, {})
        with _slot(self._fetching, f"{MOST_FETCHES} requests read reference audio from addresses already"):
            with ThreadPoolExecutor(len(places)) as readers:
                read = readers.map(lambda field: self._one(f"reference.{field}", places[field], trace), places)
                found = dict(zip(places, read, strict=True))
            return self._decoded(wanted, found)  # as long as that waits, it holds megabytes

    def _decoded(self, wanted: ReferenceFields, found: Mapping[str, bytes]) -> Reference:
        """The reference, cut to its span; `found` is what lay at its addresses."""
        with _slot(self._waiting, "as many requests as may already wait for reference audio to be decoded"):
            decoding = self._decoders.submit(lambda: cut_reference(wanted.as_reference(found)))
            wait([decoding], self._longest_wait_seconds)
            if decoding.cancel():  # else it has begun, and ends soon: its length is bounded
                waited = f"reference audio waited {self._longest_wait_seconds:g} s to be decoded"
                detail = f"{waited}, behind that of other requests, {MOST_DECODED} at once; try again later"
                raise unavailable("reference-unavailable", detail)
            return decoding.result()

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
        content = io.BytesIO()
        try:
            for chunk in self._open_bucket(BUCKET + bucket).stream(path):
                content.write(chunk)
                if content.tell() > LARGEST_FILE_BYTES:
                    raise Refused(f"more than {LARGEST_FILE_BYTES} bytes")
                if time.monotonic() > ends_at:
                    raise Unreachable(f"the bucket took longer than {LONGEST_FETCH_SECONDS:g} s")
        except StorageError as error:
            if error.kind == "unavailable":
                raise Unreachable(f"{BUCKET}{bucket} does not answer") from error
            raise Refused(f"the file is {error.kind}") from error
        return content.getvalue()  # which copies nothing


class SharedReferences:
    """The references of one request's songs: one that several of them have is read once."""

    def __init__(self, references: References, orders: Iterable[SongInstance]) -> None:
        self._references = references
        uses = Counter(order.reference for order in orders if order.reference)
        self._shared = {wanted for wanted, times in uses.items() if times > 1}
        self._read: dict[ReferenceFields, Reference | InvalidField | Problem] = {}

    def completing(self, order: SongInstance) -> Callable[[Job], None]:
        """What gives the order's job the audio that it lacks. It raises InvalidField and Problem."""

        def complete(job: Job) -> None:
            if order.reference:
                job.request = replace(order.request, reference=self._find(order.reference, job.trace))

        return complete

    def _find(self, wanted: ReferenceFields, trace: Mapping[str, str]) -> Reference:
        if wanted not in self._shared:
            return self._references.read(wanted, trace)
        if wanted not in self._read:
            try:
                self._read[wanted] = self._references.read(wanted, trace)
            except (InvalidField, Problem) as error:
                self._read[wanted] = error
        found = self._read[wanted]
        if isinstance(found, Exception):
            raise found
        return found


@contextmanager
def _slot(slots: threading.Semaphore, taken: str) -> Iterator[None]:
    if not slots.acquire(blocking=False):
        raise unavailable("reference-unavailable", f"{taken}; try again later")
    try:
        yield
    finally:
        slots.release()
