"""Reference audio by its address: where it may come from, and that the job holds what was there."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import PrivateAttr

from inference.audio.reading import read_reference
from inference.song import Reference
from server import close_app
from serving.http import references
from serving.http.problems import Problem
from serving.http.references import References
from serving.http.request_models import ReferenceFields
from serving.http.safe_fetch import Fetcher, Refused, Unreachable
from serving.jobs.records import with_audio
from storage import Storage
from tests.support.fakes import INSTANCE, Served, problem

ADDRESS = "https://audio.test/song.wav"
OBJECT = "gs://music/public/a song.wav"


def tone(seconds: float = 4.0, rate_hz: int = 44_100, gain: float = 0.5) -> bytes:
    """A file of two channels."""
    file = io.BytesIO()
    wave = np.sin(np.arange(int(rate_hz * seconds)) * 0.1) * gain
    soundfile.write(file, np.stack([wave, wave * 0.3], axis=1), rate_hz, format="FLAC")
    return file.getvalue()


class Files(Fetcher):
    """Has files at addresses, and errors at others."""

    def __init__(self) -> None:
        super().__init__(["audio.test"], 1_000, 1.0)
        object.__setattr__(self, "files", {ADDRESS: tone()})
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "traces", [])

    files: dict[str, Any]
    asked: list[str]
    traces: list[Mapping[str, str] | None]

    def fetch(self, address: str, trace: Mapping[str, str] | None = None) -> bytes:
        self.asked.append(address)
        self.traces.append(trace)
        found = self.files[address]
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, bytes)
        return found


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def served(files: Files, tmp_path: Path) -> Iterator[Served]:
    """It takes audio from one host, and from one folder of a bucket, which lies on this disk."""
    served = Served(data=tmp_path / "data", may_fetch=False)

    def bucket(place: str) -> Storage:
        assert place == "gs://music"
        return Storage.at(tmp_path / "bucket")

    public = tmp_path / "bucket" / "public"
    public.mkdir(parents=True)
    (public / "a song.wav").write_bytes(tone())
    (tmp_path / "bucket" / "secret.wav").write_bytes(tone())
    hosts = ("audio.test", "gs://music/public")
    served.app.extensions["yue"].references = References(hosts, files, bucket)
    yield served
    close_app(served.app)


def ask(served: Served, **fields: Any) -> Any:
    reference = {name: fields.pop(name) for name in list(fields) if name.endswith(("_uri", "_seconds", "audio"))}
    return served.predict({**INSTANCE, "wait_seconds": 0, "reference": reference, **fields})


def kept(served: Served, response: Any) -> Reference:
    """The reference of the job that was accepted, as another server would read it."""
    assert response.status_code == 200, response.json
    jobs = served.app.extensions["yue"].jobs
    job = jobs._store.recover(response.json["predictions"][0]["job_id"], lambda replica: True)
    return with_audio(job.request, jobs._store.reference(job.id)).reference


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def as_used(content: bytes, **span: float) -> np.ndarray:
    return read_reference(Reference(mix=content, **span))[0]


@pytest.mark.parametrize("flags", ["00", "01"])
def test_what_is_asked_elsewhere_belongs_to_the_requests_trace(files: Files, served: Served, flags: str) -> None:
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-{flags}"}
    instance = {**INSTANCE, "reference": {"audio_uri": ADDRESS, "end_seconds": 3}, "wait_seconds": 0}
    assert served.predict(instance, headers=trace).status_code == 200
    assert served.predict({**instance, "seed": 1}).status_code == 200
    assert files.traces == [trace, {}]


def test_the_two_tracks_are_read_at_the_same_time(files: Files, served: Served) -> None:
    both = threading.Barrier(2)
    files.files["https://audio.test/other.wav"] = tone()
    fetch = Files.fetch

    def together(self: Files, address: str, trace: Mapping[str, str] | None = None) -> bytes:
        both.wait(10.0)
        return fetch(self, address)

    object.__setattr__(files, "fetch", together.__get__(files))
    addresses = {"vocal_uri": ADDRESS, "instrumental_uri": "https://audio.test/other.wav"}
    answer = served.predict({**INSTANCE, "reference": {**addresses, "end_seconds": 3}, "wait_seconds": 0})
    assert answer.status_code == 200, answer.json


def test_of_an_address_only_the_files_name_is_told(served: Served, files: Files) -> None:
    secret = "https://audio.test/private/a%20song.wav?X-Signature=secret"
    files.files[secret] = tone()
    job_id = ask(served, audio_uri=secret, start_seconds=0.5, end_seconds=3).json["predictions"][0]["job_id"]
    answer = served.client.get(f"/jobs/{job_id}")
    told = answer.json["request"]["reference"]
    assert told["audio"]["name"] == "a song.wav" and told["audio"]["bytes"] > 1_000
    assert (told["start_seconds"], told["end_seconds"]) == (0.5, 3)
    assert "secret" not in answer.text and "private" not in answer.text


@pytest.mark.parametrize("address", [ADDRESS, OBJECT])
def test_the_job_holds_the_part_that_is_generated_to_the_bit(served: Served, address: str) -> None:
    reference = kept(served, ask(served, audio_uri=address, start_seconds=0.5, end_seconds=3))
    assert reference.mix and len(reference.mix) < 2.5 * 16_000 * 4 + 200
    assert np.array_equal(read_reference(reference)[0], as_used(tone(), start_seconds=0.5, end_seconds=3))


def test_of_a_file_that_is_sent_the_job_holds_the_same_part(served: Served) -> None:
    reference = kept(served, ask(served, audio=base64_of(tone()), start_seconds=0.5, end_seconds=3))
    assert reference.mix and len(reference.mix) < 2.5 * 16_000 * 4 + 200
    assert np.array_equal(read_reference(reference)[0], as_used(tone(), start_seconds=0.5, end_seconds=3))


def test_what_only_decoding_shows_is_told_at_once_and_of_its_instance_alone(served: Served) -> None:
    silence = {"audio": base64_of(tone(gain=0.0))}
    answer = problem(ask(served, **silence), 400)
    assert answer["field"] == "reference.audio" and answer["value"] == "silence"
    one, other = served.predict({**INSTANCE, "reference": silence}, INSTANCE, parameters={"wait_seconds": 0}).json[
        "predictions"
    ]
    assert one["error"]["field"] == "reference.audio" and other["status"] == "queued"


def test_what_the_instances_share_is_read_once(served: Served, files: Files) -> None:
    shared = {"wait_seconds": 0, "reference": {"audio_uri": ADDRESS, "end_seconds": 3}}
    assert served.predict(*[INSTANCE] * 8, parameters=shared).status_code == 200
    assert files.asked == [ADDRESS]
    files.files[ADDRESS] = Refused("it answered 404")
    assert problem(served.predict(*[INSTANCE] * 8, parameters=shared), 400)
    assert files.asked == [ADDRESS, ADDRESS]


def test_nothing_is_read_for_a_full_queue(files: Files) -> None:
    served = Served(may_fetch=False, max_queue=1)
    served.app.extensions["yue"].references = References(["audio.test"], files)
    assert served.predict(INSTANCE, parameters={"wait_seconds": 0}).status_code == 200
    assert problem(ask(served, audio_uri=ADDRESS), 429)
    assert not files.asked
    close_app(served.app)


def test_requests_that_may_not_wait_for_the_decoder_are_told_to_come_again() -> None:
    served = Served(may_fetch=False)
    served.app.extensions["yue"].references = References([], most_waiting=0)
    response = ask(served, audio=base64_of(tone()))
    assert problem(response, 503)["type"] == "urn:yue:problem:reference-unavailable"
    assert int(response.headers["Retry-After"]) > 0
    close_app(served.app)


class HeldBack(ReferenceFields):
    """A reference that, once it is held back, takes as long to be decoded as a test says."""

    _held: bool = PrivateAttr(False)
    _begun: threading.Event = PrivateAttr(default_factory=threading.Event)
    _may_end: threading.Event = PrivateAttr(default_factory=threading.Event)

    def as_reference(self, found: Mapping[str, bytes] | None = None) -> Reference:
        if self._held:
            self._begun.set()
            assert self._may_end.wait(60)
        return super().as_reference(found)


def test_what_is_decoded_already_is_not_given_up_and_what_stands_in_line_is_told_why() -> None:
    decoder = References([], longest_wait_seconds=1.0)
    audio = base64_of(tone())
    slow = [HeldBack(audio=audio, end_seconds=3) for _ in range(references.MOST_DECODED)]
    for each in slow:
        each._held = True
    with ThreadPoolExecutor() as requests:
        read = [requests.submit(decoder.read, each, {}) for each in slow]
        try:
            assert all(each._begun.wait(60) for each in slow)
            with pytest.raises(Problem, match="waited 1 s to be decoded, behind that of other requests") as told:
                decoder.read(ReferenceFields(audio=audio, end_seconds=3), {})
        finally:
            for each in slow:
                each._may_end.set()
        assert told.value.status == 503 and int(told.value.headers["Retry-After"]) > 0
        assert all(each.result(60).mix for each in read)  # though they took longer


def test_both_tracks_may_have_addresses(served: Served, files: Files) -> None:
    files.files["https://audio.test/short"] = tone(2.0)
    reference = kept(served, ask(served, vocal_uri=ADDRESS, instrumental_uri="https://audio.test/short"))
    assert [len(track) for track in read_reference(reference)] == [32_000, 32_000]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"audio_uri": "http://audio.test/song.wav"}, "audio_uri"),
        ({"audio_uri": "/etc/passwd"}, "audio_uri"),
        ({"audio_uri": "https://" + "x" * 5_000}, "audio_uri"),
        ({"audio_uri": 3}, "audio_uri"),
        ({"audio_uri": ADDRESS, "audio": "AAAA"}, "audio_uri"),
        ({"audio_uri": ADDRESS, "vocal_uri": ADDRESS}, "audio"),
        ({"vocal_uri": ADDRESS}, "instrumental"),
        ({"audio_uri": ADDRESS, "end_seconds": 500}, "end_seconds"),
    ],
)
def test_what_is_wrong_already_is_told_before_anything_is_fetched(
    served: Served, files: Files, fields: dict[str, object], named: str
) -> None:
    assert problem(ask(served, **fields), 400)["field"] == f"reference.{named}"
    assert not files.asked


@pytest.mark.parametrize(
    "address",
    [
        "gs://music/secret.wav",
        "gs://music/public/../secret.wav",
        "gs://music/public/./a song.wav",
        "gs://music/public//a song.wav",
        "gs://music/publicity/a.wav",
        "gs://music/public",
        "gs://music",
        "gs://other/public/a song.wav",
        "gs://music/public/none.wav",
    ],
)
def test_no_other_object_of_a_bucket_is_read(served: Served, address: str) -> None:
    assert problem(ask(served, audio_uri=address), 400)["field"] == "reference.audio_uri"
    assert served.client.get("/jobs").json["jobs"] == []


def test_a_file_that_is_refused_is_named_with_what_is_allowed(served: Served, files: Files) -> None:
    files.files[ADDRESS] = Refused("it answered 404")
    answer = problem(ask(served, audio_uri=ADDRESS), 400)
    assert answer["field"] == "reference.audio_uri" and answer["value"] == ADDRESS
    assert "audio.test, gs://music/public" in answer["allowed"] and "404" in answer["allowed"]


def test_a_host_that_is_not_there_may_be_asked_again(served: Served, files: Files) -> None:
    files.files[ADDRESS] = Unreachable("audio.test took longer than 30 s")
    response = ask(served, audio_uri=ADDRESS)
    assert problem(response, 503)["type"] == "urn:yue:problem:reference-unavailable"
    assert int(response.headers["Retry-After"]) > 0
    assert served.client.get("/jobs").json["jobs"] == []


def test_what_is_no_audio_is_refused_as_if_it_had_been_sent(served: Served, files: Files) -> None:
    files.files[ADDRESS] = b"<html>"
    assert problem(ask(served, audio_uri=ADDRESS), 400)["field"] == "reference.audio"


def test_without_hosts_an_address_is_refused_and_the_setting_named() -> None:
    served = Served()
    for address in (ADDRESS, OBJECT):
        answer = problem(ask(served, audio_uri=address), 400)
        assert answer["field"] == "reference.audio_uri" and "YUE_REFERENCE_HOSTS is not set" in answer["allowed"]
    close_app(served.app)


def test_the_same_request_id_reads_the_address_once_and_tells_it_from_another(served: Served, files: Files) -> None:
    first = ask(served, audio_uri=ADDRESS, request_id="a").json["predictions"][0]["job_id"]
    files.files[ADDRESS] = Refused("it answered 404")  # a signed address does not live long
    assert ask(served, audio_uri=ADDRESS, request_id="a").json["predictions"][0]["job_id"] == first
    assert files.asked == [ADDRESS]
    assert "job_id" not in problem(ask(served, audio_uri=ADDRESS + "?2", request_id="a"), 409)


def test_only_so_many_requests_read_addresses_at_once(files: Files) -> None:
    reading, may_end = threading.Semaphore(0), threading.Event()

    class Slow(Files):
        def fetch(self, address: str, trace: Mapping[str, str] | None = None) -> bytes:
            reading.release()
            assert may_end.wait(10)
            return tone()

    served = Served(may_fetch=False)
    served.app.extensions["yue"].references = References(["audio.test"], Slow())
    codes: list[int] = []
    asking = [
        threading.Thread(target=lambda: codes.append(ask(served, audio_uri=ADDRESS).status_code))
        for _ in range(references.MOST_FETCHES)
    ]
    for thread in asking:
        thread.start()
    assert all(reading.acquire(timeout=10) for _ in asking)
    refused = problem(ask(served, audio_uri=ADDRESS), 503)
    may_end.set()
    for thread in asking:
        thread.join()
    assert refused["type"] == "urn:yue:problem:reference-unavailable"
    assert codes == [200] * references.MOST_FETCHES
    close_app(served.app)


def test_a_large_object_is_given_up(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "LARGEST_FILE_BYTES", 100)
    assert "more than 100 bytes" in problem(ask(served, audio_uri=OBJECT), 400)["allowed"]
