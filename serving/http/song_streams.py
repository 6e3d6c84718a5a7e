"""One track of a song as a continuous stream of bytes, sent while the song is generated.

The parts of the track are read from the storage as they come and encoded for each listener alone, so the bytes are the
same for every listener, on every server that shares the storage. Independent of routes.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import soundfile

from inference.audio.encoding import song_tags
from inference.audio.stream_encoding import StreamEncoder
from inference.vocabulary import VOCODER_RATE_HZ
from serving.http.problems import not_found, problem_of
from serving.http.wait_slots import PEEK_SECONDS
from serving.jobs.errors import Stopping
from serving.jobs.job import Job, about
from serving.jobs.service import Jobs
from storage import Entry, StorageError

log = logging.getLogger(__name__)


class SongStream:
    """The stream of one listener. Close it."""

    def __init__(self, jobs: Jobs, job: Job, track: str, audio_format: str, is_gone: Callable[[], bool]) -> None:
        self._jobs, self._job, self._track, self._is_gone = jobs, job, track, is_gone
        tags = song_tags(job.model, job.request.seed)
        self._encoder = StreamEncoder(audio_format, VOCODER_RATE_HZ, tags, number=int(job.id, 16))
        self._files: Sequence[Entry] = ()  # of the parts from the start on
        self._playable: float | None = None  # what the job said when they were listed
        self._n_parts = 0  # that are encoded
        self._head = b""  # encoded, and not sent yet
        self.n_bytes = 0  # that are encoded; once the stream has ended, its size
        self.ended = False  # all of the song is encoded

    def begin(self, end: float = math.inf) -> bool:
        """Wait for the first bytes, until `end` at the latest. Return True if they are there.

        Raises Problem if they will not come.
        """
        while not self._head:
            left = end - time.monotonic()
            self._head = self._next_or_wait(max(0.0, left))
            if left <= 0:
                break
        return bool(self._head)

    def from_offset(self, offset: int, n_bytes: int) -> bytes:
        """Up to `n_bytes` from `offset` on that are there by now, at least one; none if the stream ends before.

        Raises Problem if the job ends without the rest of the stream, or if the listener is gone.
        """
        found: list[bytes] = []
        while not self.ended and self.n_bytes <= offset:
            self._check_listener()
            content = self._next_or_wait()
            found = [content[max(0, offset - self.n_bytes + len(content)) :]]
        while not self.ended and self.n_bytes < offset + n_bytes:
            self._check_listener()
            if (rest := self._next()) is None:
                break
            found.append(rest)
        return b"".join(found)[:n_bytes]

    def __iter__(self) -> Iterator[bytes]:
        """The bytes from the start to the end. Raises ConnectionResetError if the rest is missing."""
        yield self._head
        try:
            while not self.ended:
                if content := self._next_or_wait():
                    yield content
        except Exception as error:
            if not self._is_gone():
                with about(self._job):
                    log.warning("job %s: its stream is cut: %s", self._job.id, error)
            raise ConnectionResetError(errno.ECONNRESET, "the stream is cut") from error

    def close(self) -> None:
        """Free the encoder."""
        self._encoder.close()

    def _next_or_wait(self, seconds: float = math.inf) -> bytes:
        """The bytes that `_next` returns; none after a wait until the job changes, but not for long.

        Raises Problem if the listener is gone or the server stops.
        """
        content = self._next()
        if content is None:
            self._check_listener()
            self._jobs.wait_for_change(self._job, min(seconds, PEEK_SECONDS))
        return content or b""

    def _check_listener(self) -> None:
        """Raise Problem if the server stops, or if the listener is gone, who will not read it."""
        if self._jobs.is_left(self._job) or self._is_gone():
            raise problem_of(Stopping())

    def _next(self) -> bytes | None:
        """The bytes of the next part, or the last ones; None if they are not there yet.

        Raises Problem and StorageError if they will not come.
        """
        finished = self._job.finished  # read first: then all parts are there
        if file := self._next_file():
            content = self._encoder.encode(_samples(file.path, self._jobs.part(file.path)))
            self._n_parts += 1
        elif not finished:
            return None
        else:
            self._check_end()
            content, self.ended = self._encoder.finish(), True
        self.n_bytes += len(content)
        return content

    def _check_end(self) -> None:
        """Raise Problem unless the song is done and all its parts are encoded."""
        if self._job.error:
            raise problem_of(self._job.error).having(job_id=self._job.id)
        if not self._n_parts or self._n_parts != (self._job.song.parts if self._job.song else 0):
            raise no_stream(self._job)

    def _next_file(self) -> Entry | None:
        """The file of the next part. The files are listed again only when there may be more of them."""
        job = self._job
        playable = job.progress.playable_seconds if job.progress else 0.0
        if len(self._files) <= self._n_parts and (job.finished or playable != self._playable):
            self._playable = playable
            self._files = self._jobs.parts(job, self._track)
        return self._files[self._n_parts] if self._n_parts < len(self._files) else None


def no_stream(job: Job) -> Exception:
    """The problem of a finished job without a stream."""
    detail = f"job {job.id} has no stream: not all parts of its song were stored; fetch its audio instead"
    return not_found(detail, job_id=job.id)


def _samples(path: str, part: bytes) -> np.ndarray:
    """The samples (n,) of a part. Raises StorageError if it is damaged."""
    try:
        samples, rate_hz = soundfile.read(io.BytesIO(part), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise StorageError(f"{path} cannot be read: {error.error_string}", "invalid") from error
    if samples.ndim != 1 or rate_hz != VOCODER_RATE_HZ or not np.isfinite(samples).all():
        raise StorageError(f"{path} is no part of a song", "invalid")
    return np.asarray(samples)
