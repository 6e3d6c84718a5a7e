"""Jobs in a storage: every word that a folder or bucket holds about them, and what it means.

It starts no threads, decides nothing by a clock, and knows nothing of HTTP, queues or engines.

    jobs/<id>/job.json              what was asked for, and the replica that took it: claim 0; created, never changed
    jobs/<id>/reference-<part>      the reference audio, until the end
    jobs/<id>/claim-<n>             created: from now on the job belongs to the replica named in it
    jobs/<id>/start-<n>-<k>         the k-th time that the song was begun, under claim n
    jobs/<id>/leaving-<n>           the replica of claim n was told to stop; the start does not count
    jobs/<id>/handed-<n>            claim n is given up
    jobs/<id>/progress.json         how far it is, for other replicas
    jobs/<id>/audio-<n>/<track>.<format>
    jobs/<id>/end.json              created: its one end, written after its audio
    keys/<sha256>.json              created: the job that a request id belongs to
    ended/<moment>-<id>-<bytes>     finished jobs, the newest first
    live/replicas/<replica>         written anew again and again
    live/open/<replica>/<id>        jobs that have no end yet, by the replica that looks after them
    live/cancel/<id>                somebody wants it cancelled

"Created" files are written only where there is none; so of several replicas one succeeds, and that decides.
Every method raises StorageError. A crash between any two writes leaves what `recover` understands.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from inference.errors import StorageError
from inference.song import MIME_TYPES, TRACK_NAMES
from serving import job_record
from serving.job import Job
from serving.job_files import ID, NOBODY, Ended, Folder, Key, StoredAudio, Surroundings
from serving.job_record import End, Json, Malformed, well_formed
from serving.replica import own_process
from storage import Storage

log = logging.getLogger(__name__)

FOLDERS = ("jobs", "keys", "ended", "live")


class JobStore:
    """One replica's view of the storage. Any method may be called from any thread."""

    def __init__(self, storage: Storage, replica: str | None = None) -> None:
        self.storage = storage
        self.replica = replica or uuid.uuid4().hex
        self._beats = 0

    # Taking a job

    def create(self, job: Job) -> bool:
        """Accept the job as this replica's; False where its request id belongs to another job by now.

        The marker comes first, so that nothing is ever left that nobody finds; the key last, so that it never names
        a job that is not there.
        """
        if not self._beats:
            self.beat()  # or the others would take the job from one who does not seem to live
        self.storage.put(self._marker(job.id), b"")
        for part, audio in job_record.reference_parts(job.request).items():
            self.storage.put(_in(job.id, f"reference-{part}"), audio)
        order = {**job_record.ordered(job), "replica": self.replica}
        if not self._created(_in(job.id, "job.json"), job_record.packed(order)):
            raise StorageError(f"{self.storage.name}: writing the job took so long that it was given up", "unavailable")
        if not self._keeps_key(job):
            self.withdraw(job.id)
            return False
        return True

    def find(self, request_id: str) -> Key | None:
        """The job that the request id belongs to."""
        record = self._read(_key(request_id))
        with well_formed("whose the request id is"):
            return Key(record["job_id"], record["fingerprint"]) if record else None

    def release_key(self, request_id: str, key: Key) -> None:
        """Let go of a request id whose job is no more."""
        if self.find(request_id) == key:
            self.storage.delete(_key(request_id))

    def withdraw(self, job_id: str) -> None:
        """Undo a job that was never accepted."""
        self._clear(job_id, keep=())
        self._close(job_id)

    # Looking at jobs

    def read(self, job_id: str) -> Job | None:
        """The job as far as it is known here, without its reference audio; None where there is none.

        Raises Malformed where nobody can read it; once it has ended, its end is all that has to be read.
        """
        if not ID.fullmatch(job_id):  # it would be a path to somewhere else
            return None
        order = self._order(job_id)
        if order is None or order.get("abandoned"):
            return None
        end = self._read(_in(job_id, "end.json"))
        try:
            job = job_record.read_ordered(order)
        except Malformed:
            if not end:
                raise
            job = job_record.illegible(job_id, end)
        if end:
            job_record.read_ended(job, end, self._audio(job, end))
            return job
        self._read_progress(job)
        job.cancel_requested = self.storage.exists(f"live/cancel/{job_id}")
        return job

    def ended(self, limit: int | None = None) -> list[Ended]:
        """The finished jobs, the newest first."""
        return [each for entry in self.storage.entries("ended", limit) if (each := Ended.of(entry))]

    def surroundings(self) -> Surroundings:
        """All that is going on, in one listing."""
        return Surroundings.of(self.storage.entries("live"))

    # What a replica says of itself

    def beat(self) -> None:
        """Give a sign of life; it is another every time."""
        self._beats += 1
        self.storage.put(f"live/replicas/{self.replica}", job_record.packed({**own_process(), "beats": self._beats}))

    def lives(self, replica: str) -> bool:
        """Whether that replica says that it lives. What it says may be old."""
        return self.storage.exists(f"live/replicas/{replica}")

    def process(self, replica: str) -> Json:
        """Which process that replica is; nothing if it is not there."""
        try:
            return self._read(f"live/replicas/{replica}") or {}
        except Malformed:  # it is there, and may write it anew
            return {"replica": replica}

    def bury(self, replica: str) -> None:
        """Remove a replica that is no more, its own also."""
        self.storage.delete(f"live/replicas/{replica}")

    # What the owner of a job says of it

    def start(self, job: Job) -> bool:
        """The song is begun, for the `attempts`-th time; False where another replica has taken the job meanwhile."""
        if not self.still_owned(job):
            return False
        self.storage.put(_in(job.id, f"start-{job.claim}-{job.attempts}"), b"")
        self.note(job)
        return True

    def reference(self, job_id: str) -> dict[str, bytes]:
        """The files of its reference audio, by their names. Raises Problem where they are lost."""
        parts = self.folder(job_id).reference_parts
        if not parts:
            raise job_record.reference_lost()
        return {part: self.storage.get(_in(job_id, f"reference-{part}")) for part in parts}

    def note(self, job: Job) -> None:
        """How far it is."""
        self.storage.put(_in(job.id, "progress.json"), job_record.packed(job_record.progressed(job)))

    def still_owned(self, job: Job) -> bool:
        """Whether nobody has taken the job from this replica, and it is open."""
        folder = self.folder(job.id)
        return folder.ordered and not folder.ended and folder.claim == job.claim

    def leaving(self, job: Job) -> None:
        """This replica was told to stop while it sings the job."""
        self.storage.put(_in(job.id, f"leaving-{job.claim}"), b"")

    def hand_over(self, job: Job) -> None:
        """Give the job up, for any replica to take."""
        self.note(job)
        self.storage.put(_in(job.id, f"handed-{job.claim}"), b"")
        self.storage.put(f"live/open/{NOBODY}/{job.id}", b"")
        self.storage.delete(self._marker(job.id))

    def wish_cancelled(self, job_id: str) -> None:
        """Tell whoever owns the job."""
        self.storage.put(f"live/cancel/{job_id}", b"")

    def drop_wish(self, job_id: str) -> None:
        """That job is over."""
        self.storage.delete(f"live/cancel/{job_id}")

    def end(self, job: Job, end: End) -> bool:
        """Write the job's end; False where it has another already, which stands.

        May be called again, with the same end, after a StorageError.
        """
        folder = f"audio-{job.claim}"
        if end.song:
            for track, audio in end.song.audio.items():
                self.storage.put(_in(job.id, f"{folder}/{track}.{end.song.format}"), audio)
        size_bytes = sum(map(len, end.song.audio.values())) if end.song else 0
        who = {"replica": self.replica, "claim": job.claim}
        record = {**job_record.ended(job, end), **who, "bytes": size_bytes}
        if not self._created(_in(job.id, "end.json"), job_record.packed(record)):
            stands = self._read(_in(job.id, "end.json")) or {}
            if (stands.get("replica"), stands.get("claim")) != (self.replica, job.claim):  # else it is this very one
                self._clear(job.id, keep=(), only=f"{folder}/")
                return False
            record = stands
        try:
            self._settle(job.id, record)
        except StorageError as error:  # the marker is there still: some keeper does it later
            log.warning("job %s: its end is written, and what is left of it is not cleared away yet: %s", job.id, error)
        return True

    # What becomes of jobs that nobody looks after

    def folder(self, job_id: str) -> Folder:
        """What is in the job's folder."""
        start = len(_in(job_id, ""))
        return Folder(frozenset(entry.path[start:] for entry in self.storage.entries(f"jobs/{job_id}")))

    def recover(self, job_id: str, is_lost: Callable[[str], bool]) -> Job | None:
        """The job, claimed for this replica, if its owner is lost and it is to be sung; else None.

        An ended job is cleared away, and one that was never accepted is undone. This replica's own jobs count as
        lost: it asks only for those that it does not know of. One that cannot be sung any more has its `error`.
        """
        folder = self.folder(job_id)
        if folder.ended:
            end = self._read(_in(job_id, "end.json"))
            if end:  # else it is being forgotten right now
                self._settle(job_id, end)
            return None
        order = self._order(job_id) if folder.ordered else None
        if order is None or not (folder.handed or self._is_free(job_id, folder, order, is_lost)):
            return None
        if order.get("abandoned"):
            self._clear_abandoned(job_id)
            return None
        job = self._ordered(job_id, order)
        self._read_progress(job, job_record.read_deadline)
        if not self._keeps_key(job):
            self.withdraw(job_id)
            return None
        return job if self._claimed(job, folder) else None

    def abandon(self, job_id: str) -> None:
        """Give up a job that is not all written; whoever writes it still will find that it is too late."""
        if self._created(_in(job_id, "job.json"), job_record.packed({"abandoned": True, "replica": self.replica})):
            self._clear_abandoned(job_id)

    def forget(self, ended: Ended) -> None:
        """Remove a finished job: the key first, then what makes it a job, and last what tells that it is here."""
        order = self._order(ended.job_id) or {}
        if order.get("request_id"):  # else a key that it has is released when somebody asks for it
            self.release_key(order["request_id"], Key(ended.job_id, order.get("fingerprint", "")))
        self._clear(ended.job_id, keep=("end.json",))
        self.storage.delete(_in(ended.job_id, "end.json"))
        self.storage.delete(ended.path)

    def tidy(self) -> None:
        """Remove what no listing shows."""
        for folder in FOLDERS:
            self.storage.tidy(folder)

    def _is_free(self, job_id: str, folder: Folder, order: Json, is_lost: Callable[[str], bool]) -> bool:
        if folder.claim:
            owner = self.storage.get(_in(job_id, f"claim-{folder.claim}")).decode(errors="replace")
        else:
            owner = order.get("replica", "")
        owners = [owner] if owner else [replica for replica, opened in self.surroundings().opened if opened == job_id]
        return all(each in (NOBODY, self.replica) or is_lost(each) for each in owners)

    def _order(self, job_id: str) -> Json | None:
        """What was asked for; nothing of it where that is malformed."""
        try:
            return self._read(_in(job_id, "job.json"))
        except Malformed as error:
            log.warning("job %s: %s", job_id, error)
            return {}

    def _ordered(self, job_id: str, order: Json) -> Job:
        """The job that is to be sung; with an `error` where that cannot be any more."""
        try:
            job = job_record.read_ordered(order)
        except Malformed:
            return job_record.illegible(job_id)
        if job.request.reference and not self.folder(job_id).reference_parts:
            job.error = job_record.reference_lost()
        return job

    def _read_progress(self, job: Job, read: Callable[[Job, Json], None] = job_record.read_progressed) -> None:
        try:
            progress = self._read(_in(job.id, "progress.json"))
            if progress:
                read(job, progress)
        except Malformed as error:  # it is written anew as the song goes on
            log.warning("job %s: %s", job.id, error)

    def _claimed(self, job: Job, folder: Folder) -> bool:
        job.claim, job.attempts = folder.claim + 1, folder.attempts
        if not self._created(_in(job.id, f"claim-{job.claim}"), self.replica.encode()):
            return False
        if self.storage.exists(_in(job.id, "end.json")):  # its owner was only slow
            return False
        self.storage.put(self._marker(job.id), b"")
        self._close(job.id, keep=self._marker(job.id))
        self.note(job)
        return True

    def _keeps_key(self, job: Job) -> bool:
        """Give the job its request id, if it has one and that is free; whether it has it now."""
        if not job.request_id:
            return True
        record = {"job_id": job.id, "fingerprint": job.fingerprint}
        if self._created(_key(job.request_id), job_record.packed(record)):
            return True
        key = self.find(job.request_id)
        return key is not None and key.job_id == job.id

    def _clear_abandoned(self, job_id: str) -> None:
        """Leave nothing but the word that it is too late, until that is as old as a job gets."""
        self._clear(job_id, keep=("job.json",))
        self._list_ended(job_id, datetime.now(UTC), 0)
        self._close(job_id)

    @well_formed("how it ended")
    def _settle(self, job_id: str, end: Json) -> None:
        """Clear away what an ended job does not need; its marker last."""
        kept = f"audio-{end['claim']}/"
        for name in self.folder(job_id).names:
            if name.startswith(("reference-", "audio-")) and not name.startswith(kept):
                self.storage.delete(_in(job_id, name))
        self._list_ended(job_id, datetime.fromisoformat(end["finished_at"]), end["bytes"])
        self.drop_wish(job_id)
        self._close(job_id)

    def _list_ended(self, job_id: str, finished_at: datetime, size_bytes: int) -> None:
        self.storage.put(Ended.path_of(job_id, finished_at, size_bytes), b"")

    def _clear(self, job_id: str, keep: tuple[str, ...], only: str = "") -> None:
        """Delete the files in a job's folder, what makes it a job first."""
        names = {name for name in self.folder(job_id).names if name.startswith(only)} - set(keep)
        for name in sorted(names, key=lambda name: (name != "job.json", name)):
            self.storage.delete(_in(job_id, name))

    def _close(self, job_id: str, keep: str = "") -> None:
        """Remove the job's markers, whoever has put them."""
        for replica, opened in self.surroundings().opened:
            marker = f"live/open/{replica}/{job_id}"
            if opened == job_id and marker != keep:
                self.storage.delete(marker)

    @well_formed("its audio")
    def _audio(self, job: Job, end: Json) -> StoredAudio:
        song = end["song"] or {"sizes_bytes": {}, "format": job.request.format}
        paths = {track: _in(job.id, f"audio-{end['claim']}/{track}.{song['format']}") for track in song["sizes_bytes"]}
        assert set(paths) <= set(TRACK_NAMES) and song["format"] in MIME_TYPES, f"{job.id}: no such audio"
        return StoredAudio(self.storage, paths, song["sizes_bytes"])

    def _marker(self, job_id: str) -> str:
        return f"live/open/{self.replica}/{job_id}"

    def _created(self, path: str, content: bytes) -> bool:
        """Whether the file was not there before, and is now."""
        try:
            self.storage.put(path, content, create=True)
        except StorageError as error:
            if error.kind == "exists":
                return False
            raise
        return True

    def _read(self, path: str) -> Json | None:
        """The JSON in the file; None where there is no such file."""
        try:
            content = self.storage.get(path)
        except StorageError as error:
            if error.kind == "missing":
                return None
            raise
        try:
            record = json.loads(content)
        except ValueError as error:
            raise Malformed(f"{self.storage.name}/{path} holds no JSON", "unavailable") from error
        if not isinstance(record, dict):
            raise Malformed(f"{self.storage.name}/{path} holds no object", "unavailable")
        return record


def _in(job_id: str, name: str) -> str:
    assert ID.fullmatch(job_id), f"no id: {job_id!r}"
    return f"jobs/{job_id}/{name}"


def _key(request_id: str) -> str:
    return f"keys/{hashlib.sha256(request_id.encode()).hexdigest()}.json"
