"""The files of a song's parts in a storage, which are there while the song is generated and after.

    jobs/<id>/parts-<n>/<index>-<track>.flac    as the song was generated under claim n

A song that is started again writes its parts again. Until it has done so, those of the attempt before remain.
"""

from __future__ import annotations

from collections.abc import Iterable

from inference.song import SongPart
from serving.jobs.layout import PART
from storage import Entry, Storage


class PartFiles:
    """The parts of all songs. Every method may be called from any thread, and raises StorageError."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write(self, job_id: str, claim: int, part: SongPart) -> None:
        """Write a part."""
        for track, audio in part.audio.items():
            self._storage.put(_path(job_id, claim, part.index, track), audio)

    def remove(self, job_id: str, claim: int, part: SongPart) -> None:
        """Remove a part."""
        for track in part.audio:
            self._storage.delete(_path(job_id, claim, part.index, track))

    def listed(self, job_id: str, track: str) -> list[Entry]:
        """The files of the track from its start on, up to the first that is missing; of each part the newest."""
        newest: dict[int, tuple[int, Entry]] = {}
        for claim, index, name, entry in self._parsed(job_id):
            if name == track and newest.get(index, (-1, entry))[0] < claim:
                newest[index] = claim, entry
        found: list[Entry] = []
        while len(found) in newest:
            found.append(newest[len(found)][1])
        return found

    def size_bytes(self, job_id: str, claim: int, n_parts: int) -> int:
        """The size of the first `n_parts` parts of that claim, all tracks together."""
        parts = self._parsed(job_id)
        return sum(entry.size_bytes for of, index, _, entry in parts if of == claim and index < n_parts)

    def get(self, path: str) -> bytes:
        """The content of a listed file."""
        return self._storage.get(path)

    def _parsed(self, job_id: str) -> Iterable[tuple[int, int, str, Entry]]:
        """Claim, index and track of each file; foreign files are ignored."""
        prefix = f"jobs/{job_id}/"
        for entry in self._storage.entries(prefix.rstrip("/")):
            if named := PART.fullmatch(entry.path[len(prefix) :]):
                yield int(named[1]), int(named[2]), named[3], entry


def _path(job_id: str, claim: int, index: int, track: str) -> str:
    return f"jobs/{job_id}/parts-{claim}/{index}-{track}.flac"
