"""Follows a job to its end and fetches its tracks: as files, from an address, or piece by piece through /predict.

It is independent of how requests are sent and where songs are written.
"""

from __future__ import annotations

import base64
import binascii
import http.client
from collections.abc import Callable, Mapping
from typing import BinaryIO

from yue_client.errors import ClientError, Failed, Json, Refused, Unauthorized, Unreachable
from yue_client.progress import Progress, job_words, models_words
from yue_client.transport import Read, Server, is_framed

BLOCK_BYTES = 1 << 16
PIECE_BYTES = 1_000_000  # as base64 it fits what the smallest endpoint lets through, 1.5 MB
OPEN = ("queued", "running")
PARTIAL = 206
Get = Callable[[str, Mapping[str, str], Read[bool]], bool]


def look(server: Server, job_id: str) -> tuple[Json, str, float]:
    """A job, what it is doing in a few words, and how much of it is done, 0 … 1."""
    job = server.predict({"job_id": job_id, "operation": "status"})
    waits = job["status"] in OPEN and not (job["status"] == "running" and (job.get("progress") or {}).get("stage"))
    return job, *job_words(job, _models(server) if waits else {})


def _models(server: Server) -> Json:
    """The state of the models; empty where this client may not read it."""
    try:
        return server.predict({"operation": "models/status"})
    except (Refused, Unauthorized):
        return {}


def follow(server: Server, job_id: str, progress: Progress, note: Callable[[Json], None] = lambda job: None) -> Json:
    """Show the job's progress and return it when it has succeeded. Raises Failed where it ends otherwise.

    `note` gets the job at each look.
    """
    try:
        while True:
            job, words, fraction = look(server, job_id)
            if has_progress(job):
                progress.show(words, fraction)
            note(job)
            if job["status"] == "succeeded":
                return job
            if job["status"] not in OPEN:
                raise ended(job)
            server.http.clock.sleep(server.poll_s)
    finally:
        progress.end()


def has_progress(job: Json) -> bool:
    """True for a job that is open or succeeded; of one that ended without a song, a percentage says nothing."""
    return job["status"] in (*OPEN, "succeeded")


def ended(job: Json) -> Failed:
    """The error of a job that ended without success."""
    problem = job.get("error") if isinstance(job.get("error"), dict) else {}
    detail = (problem or {}).get("detail") or (problem or {}).get("title")
    text = f"job {job.get('job_id')} {job['status']}" + (f": {detail}" if detail else "")
    return Failed(text, problem={**(problem or {}), "detail": text, "job_id": job.get("job_id")})


def follow_models(server: Server, model: str | None, progress: Progress) -> Json:
    """Show the progress and return the models' state when the requested one is ready. Raises Failed."""
    try:
        while True:
            models = server.predict({"operation": "models/status"})
            words, fraction = models_words(models.get("next") or models)
            if not words and not models.get("next"):
                break
            progress.show(words or "waiting", fraction)
            server.http.clock.sleep(server.poll_s)
    finally:
        progress.end()
    if models.get("status") == "ready" and model in (None, models.get("model")):
        return models
    trouble = models.get("last_error") or {}
    raise Failed(str(trouble.get("detail") or "the download was cancelled"), problem=trouble)


class Tracks:
    """The tracks of a finished job, each fetched into a file. An interrupted transfer resumes where it stopped."""

    def __init__(self, server: Server, job: Json) -> None:
        self._server, self._job = server, job
        self.names: list[str] = list(job.get("tracks") or ("mix",))
        self._result = (
            server.predict({"job_id": job["job_id"], "operation": "result"}) if server.by_predict_alone else {}
        )

    def fetch(self, track: str, file: BinaryIO) -> None:
        """Write one track. Raises ClientError."""
        if not self._server.by_predict_alone:
            path = f"/jobs/{self._job['job_id']}/audio/{track}.{self._job['format']}"
            return _download(self._server.get, path, file)
        first = track == self.names[0]
        known = {**((self._result.get("tracks") or {}).get(track) or {}), **(self._result if first else {})}
        if known.get("audio"):
            _write(file, _decoded(known["audio"]))
        elif not self._at_address(str(known.get("url") or ""), file):
            self._pieces(track, file)

    def _at_address(self, address: str, file: BinaryIO) -> bool:
        """Fetch the track from there. False where that fails: an address may have expired, or be out of reach."""
        if not address.startswith(("https://", "http://")):
            return False
        try:
            _download(self._server.get_elsewhere, address, file)
        except ClientError:
            file.seek(0)
            file.truncate()
            return False
        return True

    def _pieces(self, track: str, file: BinaryIO) -> None:
        offset: int | None = 0
        asked = {"job_id": self._job["job_id"], "operation": "result", "track": track, "length": PIECE_BYTES}
        while offset is not None:
            piece = self._server.predict({**asked, "offset": offset})
            _write(file, _decoded(piece["audio"]))
            total, offset = piece["bytes"], piece["next_offset"]
            if file.tell() != (total if offset is None else offset):
                raise Failed(f"{track}: got {file.tell()} bytes of {total}, and the next piece is {offset}")


def _download(get: Get, address: str, file: BinaryIO) -> None:
    """Write the file at that address. An interrupted transfer resumes where it stopped."""
    while not get(address, {"Range": f"bytes={file.tell()}-"} if file.tell() else {}, _reads(file)):
        pass  # each answer, even an interrupted one, adds bytes


def _reads(file: BinaryIO) -> Callable[[http.client.HTTPResponse], bool]:
    """A function that writes a response to the file, appending a range, and returns True if it was complete."""

    def read(response: http.client.HTTPResponse) -> bool:
        if response.status != PARTIAL:
            file.seek(0)
            file.truncate()
        begin = file.tell()
        length = response.headers.get("Content-Length")
        try:
            while block := response.read(BLOCK_BYTES):
                _write(file, block)
        except (OSError, http.client.HTTPException):
            if file.tell() == begin:
                raise
        got = file.tell() - begin
        if is_framed(response) and got == int(length or got):
            return True
        if not got:
            raise Unreachable("the answer was cut")
        return False

    return read


def _write(file: BinaryIO, content: bytes) -> None:
    try:
        file.write(content)
    except OSError as error:
        raise Failed(f"the song cannot be written: {error}") from error


def _decoded(audio: str) -> bytes:
    try:
        return base64.b64decode(audio, validate=True)
    except binascii.Error as error:
        raise Failed("the song in the answer is no base64") from error
