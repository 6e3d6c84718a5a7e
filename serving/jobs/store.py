"""Jobs in a storage: every file that a folder or bucket holds about them, and its meaning.

It starts no threads and makes no decision by a clock. Independent of HTTP, queues and engines.

    jobs/<id>/job.json              the request, and the replica that took it: claim 0; created, never changed
    jobs/<id>/reference-<part>      the reference audio, until the end
    jobs/<id>/claim-<n>             created: from now on the job belongs to the replica named in it
    jobs/<id>/start-<n>-<k>         the k-th start of the song, under claim n
    jobs/<id>/leaving-<n>           the replica of claim n was stopped; the start does not count
    jobs/<id>/handed-<n>            claim n is given up
    jobs/<id>/progress.json         its progress, for other replicas
    jobs/<id>/audio-<n>/<track>.<format>
    jobs/<id>/parts-<n>/            `serving/jobs/part_files.py`
    jobs/<id>/end.json              created: its one end, written after its audio
    keys/                           `serving/jobs/request_keys.py`
    ended/<moment>-<id>-<bytes>     finished jobs, the newest first
    live/replicas/<replica>         its heartbeat, rewritten regularly
    live/open/<replica>/<id>        jobs that have no end yet, by the replica that owns them
    live/cancel/<id>                a cancel request
    live/listen/<id>                somebody listens to the song while it is generated

"Created" files are created exclusively: of several replicas one succeeds, and that decides.
Every method raises StorageError. A crash between any two writes leaves a state that `recover` can handle.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import datetime

from serving.jobs import records
from serving.jobs.errors import ReferenceLost
from serving.jobs.job import Job, now
from serving.jobs.layout import ID, NOBODY, Ended, Folder, LiveState, StoredAudio, is_leftover
from serving.jobs.liveness import own_process
from serving.jobs.part_files import PartFiles
from serving.jobs.record_files import RecordFiles
from serving.jobs.records import End
from serving.jobs.request_keys import Key, RequestKeys
from serving.jobs.schema import Json, Malformed, StoredEnd
from storage import Storage, StorageError

log = logging.getLogger(__name__)

FOLDERS = ("jobs", "keys", "ended", "live")


class JobStore:
    """One replica's view of the storage. Every method may be called from any thread."""

    def __init__(self, storage: Storage, replica: str | None = None) -> None:
        self.storage = storage
        self.replica = replica or uuid.uuid4().hex
        self._beats = 0
        self._files = RecordFiles(storage)
        self.keys, self.parts = RequestKeys(self._files), PartFiles(storage)

    # Taking a job

    def create(self, job: Job) -> bool:
        """Write the job as this replica's; return False if its request id belongs to another job by now.

        The marker is written first, so that recovery finds whatever is left; the key last, so that it never names a job
        that does not exist.
        """
        if not self._beats:
            self.beat()  # otherwise other replicas would take the job, as this one would seem to be gone
        self.storage.put(self._marker(job.id), b"")
        for part, audio in records.reference_parts(job.request).items():
            self.storage.put(_in(job.id, f"reference-{part}"), audio)
        order = {**records.ordered(job), "replica": self.replica}
        if not self._files.created(_in(job.id, "job.json"), records.packed(order)):
            raise StorageError(f"{self.storage.name}: the job was abandoned while it was written", "unavailable")
        if not self._keeps_key(job):
            self.withdraw(job.id)
            return False
        return True

    def withdraw(self, job_id: str) -> None:
        """Undo a job that was never accepted."""
        self._clear(job_id, keep=())
        self._close(job_id)

    # Reading jobs

    def read(self, job_id: str) -> Job | None:
        """The job as it is stored, without its reference audio; None if it does not exist.

        Raises Malformed if its record cannot be read and it has not ended. A job whose song is invalid has its `error`.
        """
        if not ID.fullmatch(job_id):  # otherwise it would be another path
            return None
        order, unreadable = self._order(job_id)
        if order is None or order.get("abandoned"):
            return None
        end = self._end(job_id)
        try:
            if unreadable:
                raise unreadable
            job = records.read_ordered(job_id, order)
        except Malformed as error:
            if not end:
                self._files.report(f"job {job_id}: {error}")
                raise
            job = records.unreadable_job(job_id, error)
        if end:
            records.apply_to(job, end, self._audio(job, end))
            return job
        self._read_progress(job)
        job.cancel_requested = self.storage.exists(f"live/cancel/{job_id}")
        return job

    def ended(self, limit: int | None = None) -> list[Ended]:
        """The finished jobs, the newest first."""
        return [each for entry in self.storage.entries("ended", limit) if (each := Ended.of(entry))]

    def live_state(self) -> LiveState:
        """The state of all unfinished jobs and replicas, in one listing."""
        return LiveState.of(self.storage.entries("live"))

    # Replicas

    def beat(self) -> None:
        """Write a heartbeat; its content changes every time."""
        self._beats += 1
        self.storage.put(f"live/replicas/{self.replica}", records.packed({**own_process(), "beats": self._beats}))

    def lives(self, replica: str) -> bool:
        """True if the replica has a heartbeat, which may be old."""
        return self.storage.exists(f"live/replicas/{replica}")

    def process(self, replica: str) -> Json:
        """The process of the replica; empty if it does not exist."""
        try:
            record = self._files.read(f"live/replicas/{replica}")
        except Malformed:  # it exists, and may rewrite it
            record = {}
        return {} if record is None else {"replica": replica, **record}

    def remove_replica(self, replica: str) -> None:
        """Remove the heartbeat of a replica that has ended."""
        self.storage.delete(f"live/replicas/{replica}")

    # Jobs of this replica

    def start(self, job: Job) -> bool:
        """Write the start number `attempts` of the song; return False if another replica has taken the job."""
        if not self.still_owned(job):
            return False
        self.storage.put(_in(job.id, f"start-{job.claim}-{job.attempts}"), b"")
        self.note(job)
        return True

    def reference(self, job_id: str) -> dict[str, bytes]:
        """The files of the reference audio, by their names. Raises ReferenceLost."""
        parts = self.folder(job_id).reference_parts
        if not parts:
            raise ReferenceLost()
        return {part: self.storage.get(_in(job_id, f"reference-{part}")) for part in parts}

    def note(self, job: Job) -> None:
        """Write the job's progress."""
        self.storage.put(_in(job.id, "progress.json"), records.packed(records.progressed(job)))

    def still_owned(self, job: Job) -> bool:
        """True if the job is unfinished and no other replica has taken it."""
        folder = self.folder(job.id)
        return folder.ordered and not folder.ended and folder.claim == job.claim

    def leaving(self, job: Job) -> None:
        """Write that this replica was stopped while it runs the job."""
        self.storage.put(_in(job.id, f"leaving-{job.claim}"), b"")

    def hand_over(self, job: Job) -> None:
        """Give up the job, so that any replica can take it."""
        self.note(job)
        self.storage.put(_in(job.id, f"handed-{job.claim}"), b"")
        self.storage.put(f"live/open/{NOBODY}/{job.id}", b"")
        self.storage.delete(self._marker(job.id))

    def request_cancel(self, job_id: str) -> None:
        """Ask the owner of the job to cancel it."""
        self.storage.put(f"live/cancel/{job_id}", b"")

    def request_listening(self, job_id: str) -> None:
        """Tell the owner of the job that somebody listens to it."""
        self.storage.put(f"live/listen/{job_id}", b"")

    def drop_requests(self, job_id: str) -> None:
        """Remove the requests for a job that has ended."""
        for request in ("cancel", "listen"):
            self.storage.delete(f"live/{request}/{job_id}")

    def end(self, job: Job, end: End) -> bool:
        """Write the job's end; return False if it has another end already, which stays.

        After a StorageError it may be called again with the same end.
        """
        folder = f"audio-{job.claim}"
        if end.song and not end.song.parts:
            # Nobody hears them, and a storage that is nearly full has no room for both.
            self._clear(job.id, keep=(), only="parts-")
        if end.song:
            for track, audio in end.song.audio.items():
                self.storage.put(_in(job.id, f"{folder}/{track}.{end.song.format}"), audio)
        size_bytes = sum(map(len, end.song.audio.values())) if end.song else 0
        if end.song and end.song.parts:
            size_bytes += self.parts.size_bytes(job.id, job.claim, end.song.parts)
        who = {"replica": self.replica, "claim": job.claim}
        record = {**records.ended(job, end), **who, "bytes": size_bytes}
        if not self._files.created(_in(job.id, "end.json"), records.packed(record)):
            stands = self._end(job.id)
            if not stands or (stands.replica, stands.claim) != (self.replica, job.claim):  # otherwise it is this one
                self._clear(job.id, keep=(), only=(f"{folder}/", f"parts-{job.claim}/"))
                return False
        try:
            self._settle(job.id, records.read_end(record))
        except StorageError as error:  # the marker is still there, so maintenance does it later
            log.warning("job %s: its end is written, but its other files are not removed yet: %s", job.id, error)
        return True

    # Recovery and retention

    def folder(self, job_id: str) -> Folder:
        """The names in the job's folder."""
        start = len(_in(job_id, ""))
        return Folder(frozenset(entry.path[start:] for entry in self.storage.entries(f"jobs/{job_id}")))

    def recover(self, job_id: str, is_lost: Callable[[str], bool]) -> Job | None:
        """Claim the job for this replica if its owner is lost and it has not ended; otherwise return None.

        What is left of an ended job is removed, and a job that was never accepted is withdrawn. This replica's own jobs
        count as lost: it asks only for those that are not in its memory. A job that cannot run has its `error`.
        """
        folder = self.folder(job_id)
        if folder.ended:
            end = self._end(job_id)
            if end:  # otherwise it is being deleted right now
                self._settle(job_id, end)
            return None
        order, unreadable = self._order(job_id) if folder.ordered else (None, None)
        if order is None or not (folder.handed or self._is_free(job_id, folder, order, is_lost)):
            return None
        if order.get("abandoned"):
            self._clear_abandoned(job_id)
            return None
        job = self._ordered(job_id, order, unreadable)
        self._read_progress(job, records.read_deadline)
        if not self._keeps_key(job):
            self.withdraw(job_id)
            return None
        return job if self._claimed(job, folder) else None

    def abandon(self, job_id: str) -> None:
        """Abandon an incomplete job. A replica that is still writing it will fail to create its record."""
        word = records.packed({"abandoned": True, "replica": self.replica})
        if self._files.created(_in(job_id, "job.json"), word):
            self._clear_abandoned(job_id)

    def forget(self, ended: Ended) -> None:
        """Delete a finished job: first the key, then its record and files, last its entry in the list."""
        self._remove(ended.job_id)
        self.storage.delete(ended.path)

    def delete(self, job_id: str) -> None:
        """Delete a finished job at once. Other replicas may do the same meanwhile."""
        listed = [each.path for each in self.ended() if each.job_id == job_id]
        self._remove(job_id)
        self._close(job_id)  # it may have ended just now
        self.drop_requests(job_id)
        for path in listed:
            self.storage.delete(path)

    def tidy(self) -> None:
        """Remove files that no listing shows."""
        for folder in FOLDERS:
            self.storage.tidy(folder)

    def _remove(self, job_id: str) -> None:
        """Remove a job's key and its files."""
        order = self._order(job_id)[0] or {}
        request_id = order.get("request_id")
        if isinstance(request_id, str):  # otherwise its key is released with the next request that has it
            self.keys.release(request_id, Key(job_id, str(order.get("fingerprint"))))
        self._clear(job_id, keep=("end.json",))
        self.storage.delete(_in(job_id, "end.json"))

    def _is_free(self, job_id: str, folder: Folder, order: Json, is_lost: Callable[[str], bool]) -> bool:
        if folder.claim:
            owner = self.storage.get(_in(job_id, f"claim-{folder.claim}")).decode(errors="replace")
        else:
            owner = str(order.get("replica"))
        owners = [owner]
        if not ID.fullmatch(owner):  # the markers tell it too
            owners = [replica for replica, opened in self.live_state().opened if opened == job_id]
        return all(each in (NOBODY, self.replica) or is_lost(each) for each in owners)

    def _order(self, job_id: str) -> tuple[Json | None, Malformed | None]:
        """The record of the request; empty, with the reason, if it is malformed."""
        try:
            return self._files.read(_in(job_id, "job.json")), None
        except Malformed as error:
            self._files.report(f"job {job_id}: {error}")
            return {}, error

    def _end(self, job_id: str) -> StoredEnd | None:
        """The end of the job; a record that cannot be read is an end too."""
        try:
            record = self._files.read(_in(job_id, "end.json"))
            return None if record is None else records.read_end(record)
        except Malformed as error:
            self._files.report(f"job {job_id}: {error}")
            return records.broken_end(error)

    def _ordered(self, job_id: str, order: Json, unreadable: Malformed | None) -> Job:
        """The job to be run, with an `error` if it cannot run any more."""
        try:
            if unreadable:
                raise unreadable
            job = records.read_ordered(job_id, order)
        except Malformed as error:
            return records.unreadable_job(job_id, error)
        if job.request.reference and not self.folder(job_id).reference_parts:
            job.error = ReferenceLost()
        return job

    def _read_progress(self, job: Job, read: Callable[[Job, Json], None] = records.read_progressed) -> None:
        try:
            progress = self._files.read(_in(job.id, "progress.json"))
            if progress:
                read(job, progress)
        except Malformed as error:  # it is rewritten as the song goes on
            self._files.report(f"job {job.id}: {error}")

    def _claimed(self, job: Job, folder: Folder) -> bool:
        job.claim, job.attempts = folder.claim + 1, folder.attempts
        while not self._files.created(_in(job.id, f"claim-{job.claim}"), self.replica.encode()):
            now_there = self.folder(job.id)
            if now_there.claim >= job.claim or not now_there.ordered:
                return False
            job.claim += 1  # there is a folder of that name
        if self.storage.exists(_in(job.id, "end.json")):  # its owner was only slow, not gone
            return False
        self.storage.put(self._marker(job.id), b"")
        self._close(job.id, keep=self._marker(job.id))
        self.note(job)
        return True

    def _keeps_key(self, job: Job) -> bool:
        """Give the job its request id, if it has one and it is free; return false if another job has it."""
        return not job.request_id or self.keys.take(job.request_id, Key(job.id, job.fingerprint))

    def _clear_abandoned(self, job_id: str) -> None:
        """Remove everything but the record that the job is abandoned, which retention deletes later."""
        self._clear(job_id, keep=("job.json",))
        self._list_ended(job_id, now(), 0)
        self._close(job_id)

    def _settle(self, job_id: str, end: StoredEnd) -> None:
        """Remove what an ended job does not need; its marker last."""
        n_parts = end.song.parts if end.song else 0
        for name in self.folder(job_id).names:
            if is_leftover(name, end.claim, n_parts):
                self.storage.delete(_in(job_id, name))
        self._list_ended(job_id, end.finished_at or now(), end.bytes)
        self.drop_requests(job_id)
        self._close(job_id)

    def _list_ended(self, job_id: str, finished_at: datetime, size_bytes: int) -> None:
        self.storage.put(Ended.path_of(job_id, finished_at, size_bytes), b"")

    def _clear(self, job_id: str, keep: tuple[str, ...], only: str | tuple[str, ...] = "") -> None:
        """Delete the files in a job's folder, its record first."""
        names = {name for name in self.folder(job_id).names if name.startswith(only)} - set(keep)
        for name in sorted(names, key=lambda name: (name != "job.json", name)):
            self.storage.delete(_in(job_id, name))

    def _close(self, job_id: str, keep: str = "") -> None:
        """Remove the markers of the job, of all replicas."""
        for replica, opened in self.live_state().opened:
            marker = f"live/open/{replica}/{job_id}"
            if opened == job_id and marker != keep:
                self.storage.delete(marker)

    def _audio(self, job: Job, end: StoredEnd) -> StoredAudio:
        sizes_bytes = dict(end.song.sizes_bytes) if end.song else {}
        kind = end.song.format if end.song else ""
        paths = {track: _in(job.id, f"audio-{end.claim}/{track}.{kind}") for track in sizes_bytes}
        return StoredAudio(self.storage, paths, {**sizes_bytes})

    def _marker(self, job_id: str) -> str:
        return f"live/open/{self.replica}/{job_id}"


def _in(job_id: str, name: str) -> str:
    assert ID.fullmatch(job_id), f"not an id: {job_id!r}"
    return f"jobs/{job_id}/{name}"
