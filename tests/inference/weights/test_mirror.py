"""Weights in a bucket or in a local folder instead of on the Hub."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from inference import catalog
from inference.catalog import ModelFiles
from inference.errors import DownloadError
from inference.weights.checksums import WantedFile, looks_verified, mark_verified
from inference.weights.download import PARTS, DownloadProcess, fetch
from inference.weights.mirror import SUMS, MirrorSource, parse_sums
from inference.weights.sync import FetchOptions, LocalCopy, ensure
from inference.weights.transfer import RetryPolicy
from serving.settings import InvalidSettings, Settings, read_settings
from storage import Storage, StorageError

ZH_COT = catalog.find("zh-cot")
NAMES = ("YuE-s1-7B-anneal-zh-cot", "YuE-s2-1B-general", "xcodec_mini_infer")
WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 3711\n" % (b"0a" * 32)
NOBODY = 65534


class Events:
    """Notes what is told."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, **fields: object) -> None:
        self.all.append((event, fields))

    def named(self, event: str) -> list[dict[str, object]]:
        return [fields for name, fields in self.all if name == event]


@pytest.fixture
def weights(tiny_files: ModelFiles, tmp_path: Path) -> Path:
    """A folder that holds the three repositories by their names."""
    for part, name in zip(PARTS, NAMES, strict=True):
        shutil.copytree(getattr(tiny_files, part), tmp_path / "weights" / name)
    return tmp_path / "weights"


def write_sums(folder: Path) -> None:
    """What `sha256sum` would write."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / SUMS).write_text("".join(lines))


def spoil(path: Path) -> None:
    """Change a byte; neither size nor times tell."""
    status = path.stat()
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def refusal(local: Path | str, cache: Path) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        fetch(ZH_COT, cache, local)
    return caught.value


# -- a local folder


def test_local_weights_are_used_where_they_lie(weights: Path, tmp_path: Path) -> None:
    files = DownloadProcess(ZH_COT, tmp_path / "cache", local=weights).run()
    assert files == ModelFiles("zh-cot", "local", *(weights / name for name in NAMES))


def test_a_folder_may_have_its_part_s_name(weights: Path, tmp_path: Path) -> None:
    for part, name in zip(PARTS, NAMES, strict=True):
        (weights / name).rename(weights / part)
    assert fetch(ZH_COT, tmp_path / "cache", weights).stage2 == weights / "stage2"


def test_a_missing_local_folder_is_named(weights: Path, tmp_path: Path) -> None:
    shutil.rmtree(weights / NAMES[1])
    error = refusal(weights, tmp_path / "cache")
    assert error.reason == "no_repository" and "'YuE-s2-1B-general' or 'stage2'" in str(error)


def test_a_missing_local_file_is_named(weights: Path, tmp_path: Path) -> None:
    (weights / NAMES[1] / "tokenizer.model").unlink()
    error = refusal(weights, tmp_path / "cache")
    assert error.reason == "missing_file" and "tokenizer.model" in str(error) and NAMES[1] in str(error)


def test_local_files_are_held_against_their_sums(weights: Path, tmp_path: Path) -> None:
    write_sums(weights / NAMES[1])
    fetch(ZH_COT, tmp_path / "first", weights)
    spoil(weights / NAMES[1] / WEIGHTS)
    error = refusal(weights, tmp_path / "second")
    assert error.reason == "corrupted" and str(weights / NAMES[1] / WEIGHTS) in str(error)
    assert (weights / NAMES[1] / WEIGHTS).exists()  # it is not ours to remove


def test_local_files_are_proven_once_unless_forced(weights: Path, tmp_path: Path) -> None:
    write_sums(weights / NAMES[1])
    fetch(ZH_COT, tmp_path / "cache", weights)
    spoil(weights / NAMES[1] / WEIGHTS)
    events = Events()
    fetch(ZH_COT, tmp_path / "cache", weights, emit=events)
    assert events.all == []
    with pytest.raises(DownloadError, match=WEIGHTS):
        fetch(ZH_COT, tmp_path / "cache", weights, force=True)


def test_files_whose_times_lost_their_fractions_are_not_proven_again(weights: Path, tmp_path: Path) -> None:
    """As they do in the layers of an image."""
    write_sums(weights / NAMES[1])
    for path in weights.rglob("*.*"):
        os.utime(path, ns=(0, 1_234_567_890_987_654_321))
    fetch(ZH_COT, tmp_path / "cache", weights)
    spoil(weights / NAMES[1] / WEIGHTS)  # whoever reads it, refuses it
    for path in weights.rglob("*.*"):
        os.utime(path, ns=(0, 1_234_567_890_000_000_000))
    events = Events()
    fetch(ZH_COT, tmp_path / "cache", weights, emit=events)
    assert events.all == []


# -- what is not there yet, and what changes


@pytest.mark.parametrize("summed", [False, True], ids=["without sums", "with sums of the pointer"])
@pytest.mark.parametrize("prefix", ["", "file://"], ids=["folder", "bucket"])
def test_a_pointer_is_named_until_the_file_is_there(weights: Path, tmp_path: Path, prefix: str, summed: bool) -> None:
    folder = weights / NAMES[1]
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(POINTER)
    if summed:
        write_sums(folder)
    download = partial(DownloadProcess, ZH_COT, tmp_path / "cache", f"{prefix}{weights}")
    for _ in range(2):
        with pytest.raises(DownloadError) as caught:
            download().run()
        message = str(caught.value)
        assert caught.value.reason == "corrupted" and WEIGHTS in message and "git lfs pull" in message
        assert "SHA256SUMS" not in message
    (folder / WEIGHTS).write_bytes(content)
    if summed:
        write_sums(folder)
    files = download().run()
    assert (files.stage2 / WEIGHTS).read_bytes() == content


@pytest.mark.parametrize("path", ["tokenizer.model", "config.json"])
def test_any_file_may_be_a_pointer(weights: Path, tmp_path: Path, path: str) -> None:
    (weights / NAMES[0] / path).write_bytes(POINTER)
    assert str(weights / NAMES[0] / path) in str(refusal(weights, tmp_path / "cache"))


def test_a_pointer_that_was_taken_for_a_file_before_is_not_trusted(weights: Path, tmp_path: Path) -> None:
    path = weights / WEIGHTS
    path.write_bytes(POINTER)
    assert not looks_verified(path, mark_verified(path, WantedFile(WEIGHTS, len(POINTER), None)))


@pytest.mark.parametrize("summed", [False, True])
def test_a_file_that_was_replaced_in_a_folder_is_used(weights: Path, tmp_path: Path, summed: bool) -> None:
    folder = weights / NAMES[1]
    for content in ("{}", '{"longer": true}', "{ }"):
        (folder / "config.json").write_text(content)
        if summed:
            write_sums(folder)
        fetch(ZH_COT, tmp_path / "cache", weights)


def test_new_sums_of_the_same_files_are_held_against_them(weights: Path, tmp_path: Path) -> None:
    folder = weights / NAMES[1]
    fetch(ZH_COT, tmp_path / "cache", weights)
    (folder / SUMS).write_text(f"{'0' * 64}  {WEIGHTS}\n")
    error = refusal(weights, tmp_path / "cache")
    assert error.reason == "corrupted" and str(folder / WEIGHTS) in str(error) and "SHA256SUMS" in str(error)
    write_sums(folder)
    events = Events()
    fetch(ZH_COT, tmp_path / "cache", weights, emit=events)
    assert {"repository": ZH_COT.stage2.name, "file": WEIGHTS} in events.named("verifying")
    (folder / SUMS).unlink()
    fetch(ZH_COT, tmp_path / "cache", weights)


def test_a_file_that_was_added_to_a_folder_is_proven(weights: Path, tmp_path: Path) -> None:
    fetch(ZH_COT, tmp_path / "cache", weights)
    (weights / NAMES[1] / "model-2.safetensors").write_bytes(POINTER)
    assert "model-2.safetensors" in str(refusal(weights, tmp_path / "cache"))


def test_a_copy_that_was_damaged_is_made_of_what_the_bucket_holds_now(weights: Path, tmp_path: Path) -> None:
    first = fetch(ZH_COT, tmp_path / "cache", f"file://{weights}")
    (first.stage1 / "config.json").unlink()
    (weights / NAMES[0] / "config.json").write_text('{"new": true}')
    second = fetch(ZH_COT, tmp_path / "cache", f"file://{weights}")
    assert (second.stage1 / "config.json").read_text() == '{"new": true}'


@pytest.mark.parametrize("closed", ["", NAMES[1], f"{NAMES[1]}/{WEIGHTS}", f"{NAMES[1]}/{SUMS}"])
def test_what_may_not_be_read_is_named(weights: Path, tmp_path: Path, closed: str) -> None:
    if os.geteuid():
        pytest.skip("only root can take another user's place")
    write_sums(weights / NAMES[1])
    for folder in (*tmp_path.parents, tmp_path):
        folder.chmod(folder.stat().st_mode | 0o011)
    (weights / closed).chmod(0)
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    os.seteuid(NOBODY)
    try:
        error = refusal(weights, tmp_path / "cache")
    finally:
        os.seteuid(0)
    assert error.reason == "not_readable"
    assert str(weights / closed) in str(error) and f"user {NOBODY}" in str(error)


def test_sums_that_nobody_can_read_are_refused() -> None:
    assert parse_sums(b"%s *./a b\n" % (b"AB" * 32)) == {"a b": "sha256:" + "ab" * 32}
    with pytest.raises(DownloadError, match="SHA256SUMS, line 2: got 'nonsense'"):
        parse_sums(b"%s  a\nnonsense\n" % (b"ab" * 32))


# -- a mirror


def test_a_mirror_is_copied_once(weights: Path, tmp_path: Path) -> None:
    events = Events()
    files = DownloadProcess(ZH_COT, tmp_path / "cache", f"file://{weights}").run()
    for part, name in zip(PARTS, NAMES, strict=True):
        folder = getattr(files, part)
        assert folder.is_relative_to(tmp_path / "cache")
        wanted = {
            path.relative_to(weights / name): path.read_bytes()
            for path in (weights / name).rglob("*.*")
            if path.is_file()
        }
        assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == wanted
    for name in NAMES:
        shutil.rmtree(weights / name)  # it is not asked again
    assert fetch(ZH_COT, tmp_path / "cache", f"file://{weights}", emit=events) == files
    assert events.all == []


def test_a_file_that_is_not_what_the_mirror_s_sums_say_is_refused(weights: Path, tmp_path: Path) -> None:
    write_sums(weights / NAMES[2])
    spoil(weights / NAMES[2] / "decoders/decoder_131000.pth")
    error = refusal(f"file://{weights}", tmp_path / "cache")
    assert error.reason == "corrupted" and "decoder_131000.pth" in str(error)


def test_a_changed_mirror_is_copied_anew_when_forced(weights: Path, tmp_path: Path) -> None:
    first = fetch(ZH_COT, tmp_path / "cache", f"file://{weights}")
    (weights / NAMES[0] / "config.json").write_text("{}")
    second = fetch(ZH_COT, tmp_path / "cache", f"file://{weights}", force=True)
    assert (second.stage1 / "config.json").read_text() == "{}"
    assert second.revision != first.revision and second.stage2 == first.stage2


def test_a_mirror_larger_than_the_disk_is_refused_before_the_first_byte(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(ZH_COT, tmp_path / "cache", f"file://{weights}", free_bytes=lambda folder: 1_234_567)
    message = str(caught.value)
    assert caught.value.reason == "no_space" and "only 1,234,567 are free" in message
    assert all(repository in message for repository in NAMES)
    total = sum(path.stat().st_size for path in weights.rglob("*") if path.is_file())
    assert f"{total:,} bytes are needed" in message
    assert not (tmp_path / "cache" / "proofs").exists()


class Unsteady(Storage):
    """Breaks off `times` times, each time after so many bytes."""

    def __init__(self, inner: Storage, times: int) -> None:
        super().__init__(inner._store, inner.name)
        self.times = times
        self.offsets: list[int] = []

    def stream(self, path: str, offset: int = 0) -> Iterator[bytes]:
        self.offsets.append(offset)
        chunks = super().stream(path, offset)
        if self.times:
            self.times -= 1
            yield next(chunks)[:1_000]
            raise StorageError("the bucket went away", "unavailable")
        yield from chunks


def test_a_mirror_that_breaks_off_is_read_on(weights: Path, tmp_path: Path) -> None:
    bucket = Unsteady(Storage.at(weights), 3)
    events, waits = Events(), list[float]()
    source = MirrorSource(ZH_COT.stage2, "stage2", bucket, tmp_path)
    terms = FetchOptions(tmp_path / "proofs", events, RetryPolicy(sleep=waits.append))
    copy = LocalCopy(ZH_COT.stage2, source, terms)
    ensure([copy], terms)
    assert (copy.folder / WEIGHTS).read_bytes() == (weights / NAMES[1] / WEIGHTS).read_bytes()
    assert waits == [1.0] * 3 and 1_000 in bucket.offsets
    assert "the bucket went away" in str(events.named("waiting")[0]["reason"])


# -- where the settings say that the weights are


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name in ("YUE_WEIGHTS", "AIP_STORAGE_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return read_settings()


def test_what_vertex_names_counts_unless_the_setting_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(monkeypatch, AIP_STORAGE_URI="gs://vertex/model").weights == "gs://vertex/model"
    both = settings(monkeypatch, AIP_STORAGE_URI="gs://vertex/model", YUE_WEIGHTS="s3://own")
    assert both.weights == "s3://own"
    assert settings(monkeypatch).weights is None


@pytest.mark.parametrize("variable", ["YUE_WEIGHTS", "AIP_STORAGE_URI"])
@pytest.mark.parametrize("place", ["/no/such/folder", "http://host/weights"])
def test_a_place_that_cannot_hold_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, place: str
) -> None:
    with pytest.raises(InvalidSettings, match=f"{variable}: got '{place}'; allowed: a folder .*gs://"):
        settings(monkeypatch, **{variable: place})
