"""A folder, or an address of one, as a storage."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from storage import Entry, Storage, StorageError, is_address
from tests.support.real_server import PROJECT, until


@pytest.fixture(params=["path", "address"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.at(tmp_path if request.param == "path" else f"file://{tmp_path}")


def kind(error: pytest.ExceptionInfo[StorageError]) -> str:
    return error.value.kind


def test_what_is_put_is_got_and_listed(storage: Storage) -> None:
    storage.put("a/b/two", b"22")
    storage.put("a/one", b"1")
    storage.put("c", b"")
    assert storage.get("a/b/two") == b"22"
    assert storage.entries("a") == [Entry("a/b/two", 2), Entry("a/one", 1)]
    assert storage.entries() == [Entry("a/b/two", 2), Entry("a/one", 1), Entry("c", 0)]
    assert storage.entries("nothing") == []


def test_a_file_is_streamed_from_any_point(storage: Storage) -> None:
    content = bytes(range(256)) * 50_000  # several pieces
    storage.put("song", content)
    assert b"".join(storage.stream("song")) == content
    assert b"".join(storage.stream("song", 7_000_001)) == content[7_000_001:]


def test_only_one_creates_a_file(storage: Storage) -> None:
    storage.put("claim", b"first", create=True)
    with pytest.raises(StorageError, match="claim exists already") as caught:
        storage.put("claim", b"second", create=True)
    assert kind(caught) == "exists" and storage.get("claim") == b"first"
    storage.put("claim", b"third")
    assert storage.get("claim") == b"third"


def test_what_is_deleted_is_gone_and_may_be_deleted_again(storage: Storage) -> None:
    storage.put("old", b"x")
    storage.delete("old")
    storage.delete("old")
    assert storage.entries() == []


def test_a_missing_file_is_named(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"/nothing/here does not exist$") as caught:
        storage.get("nothing/here")
    assert kind(caught) == "missing"
    with pytest.raises(StorageError):
        list(storage.stream("nothing/here"))


@pytest.mark.parametrize("place", ["ftp://host/x", "gs://", "s3:///", "http://host/x"])
def test_other_addresses_are_refused_with_what_is_allowed(place: str) -> None:
    assert not is_address(place)
    with pytest.raises(StorageError, match="gs://, s3://, az://") as caught:
        Storage.at(place)
    assert kind(caught) == "invalid" and place in str(caught.value)


def test_paths_are_no_addresses() -> None:
    assert not is_address("/models") and not is_address("gs/models")
    assert is_address("gs://bucket") and is_address("s3://bucket/models")


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageError("x does not exist", "missing")))
    assert (str(error), error.kind) == ("x does not exist", "missing")


WRITER = """
import sys
from storage import Storage
while True:
    Storage.at(sys.argv[1]).put("jobs/1/mix.mp3", bytes(50_000_000))
"""


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=PROJECT) as writer:
        until(lambda: any("#" in file.name for file in tmp_path.rglob("*")))
        writer.kill()
    storage.put("jobs/1/mix.mp3", b"whole")
    left = [file for file in tmp_path.rglob("*") if "#" in file.name] or [tmp_path / "jobs" / "1" / "mix.mp3#1"]
    left[0].touch()  # it may just have been finished
    storage.tidy("jobs")
    assert left[0].exists(), "somebody may be writing it"
    mine = tmp_path / "Song #1.mp3", tmp_path / "jobs" / "Song #1.mp3", tmp_path / "Song#1"
    for file in (left[0], *mine):
        file.touch()
        os.utime(file, (0, 0))
    storage.tidy("jobs")
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == {tmp_path / "jobs" / "1" / "mix.mp3", *mine}


def test_every_writing_is_another_version(storage: Storage) -> None:
    versions = set()
    for content in (b"1", b"2", b"1"):
        storage.put("sign", content)
        (entry,) = storage.entries("sign") or storage.entries()
        versions.add(entry.version)
    assert len(versions) == 3


def test_whether_a_file_is_there(storage: Storage) -> None:
    assert not storage.exists("a/b")
    storage.put("a/b", b"x")
    assert storage.exists("a/b")
