"""A song is heard while it is generated: the same bytes for everybody, from any byte on, on every server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from inference.errors import EngineError
from server import close_app
from serving.jobs.layout import PART
from serving.settings import RESERVED_THREADS
from storage import Storage
from tests.support.fakes import SECONDS, Served, new_folder, problem
from tests.support.real_server import until
from tests.support.waveforms import decoded

DIFFERENCE = 0.1  # that a lossy format makes to a tone


@pytest.fixture
def two() -> Iterator[tuple[Served, Served]]:
    """Two servers that share a storage; the first has the songs."""
    data = new_folder()
    served = Served(may_generate=False, data=data), Served(may_generate=False, data=data)
    served[0].client.post("/download-models")
    yield served
    for each in served:
        close_app(each.app)


def begun(served: Served, n_parts: int = 0, **fields: object) -> str:
    """A running song, of which so many parts are stored."""
    n_songs = len(served.models.engine.generated)
    job_id: str = served.one(wait_seconds=0, **fields)["job_id"]
    served.models.engine.wait_until_begun(n_songs + 1)
    send(served, job_id, n_parts)
    return job_id


def send(served: Served, job_id: str, n_parts: int = 1) -> None:
    """Let so many more parts be decoded and stored."""
    before = playable(served, job_id)
    for _ in range(n_parts):
        served.models.engine.send_part(job_id)
    until(lambda: playable(served, job_id) == before + n_parts, SECONDS)


def playable(served: Served, job_id: str) -> float:
    progress = served.client.get(f"/jobs/{job_id}").get_json()["progress"]
    return float(progress["playable_seconds"]) if progress else 0.0


def finish(served: Served, job_id: str) -> None:
    served.models.engine.release()
    served.wait_for(job_id)


def opened(served: Served, job_id: str, name: str = "mix.mp3", **headers: str) -> TestResponse:
    return served.client.get(f"/jobs/{job_id}/stream/{name}", buffered=False, headers=headers)


def whole(served: Served, job_id: str, name: str = "mix.mp3") -> bytes:
    response = at_once(served, job_id, name)
    assert response.status_code == 200
    return response.get_data()


def at_once(served: Served, job_id: str, name: str = "mix.mp3", **headers: str) -> TestResponse:
    """The whole response, closed."""
    return served.client.get(f"/jobs/{job_id}/stream/{name}", buffered=True, headers=headers)


def test_a_song_is_heard_while_it_is_generated(held: Served) -> None:
    job_id = begun(held, 1)
    response = opened(held, job_id)
    heard = response.iter_encoded()
    first = next(heard)
    assert first and held.client.get(f"/jobs/{job_id}").get_json()["status"] == "running"
    send(held, job_id)
    second = next(heard)
    finish(held, job_id)
    rest = b"".join(heard)
    response.close()
    assert first + second + rest == whole(held, job_id)
    assert response.mimetype == "audio/mpeg"
    assert response.headers["X-Accel-Buffering"] == "no" and response.headers["Cache-Control"] == "no-store"
    assert response.headers["Accept-Ranges"] == "bytes" and "Content-Length" not in response.headers
    assert held.waiters == 0


@pytest.mark.parametrize(("name", "difference"), [("mix.wav", 1e-4), ("mix.ogg", DIFFERENCE), ("vocal.wav", 1e-4)])
def test_the_stream_is_the_parts_one_after_the_other(held: Served, name: str, difference: float) -> None:
    job_id = begun(held, 3, tracks=["mix", "vocal"])
    finish(held, job_id)
    stream = decoded(whole(held, job_id, name))
    parts = [decoded(file) for path, file in sorted(stored(held).items()) if f"-{name.partition('.')[0]}.flac" in path]
    assert len(parts) == 3
    np.testing.assert_allclose(stream, np.concatenate(parts), rtol=0, atol=difference)


def stored(served: Served) -> dict[str, bytes]:
    """The files of parts, by path."""
    storage = Storage.at(served.app.extensions["yue"].settings.data)
    paths = [entry.path for entry in storage.entries("jobs") if PART.fullmatch(entry.path.split("/", 2)[2])]
    return {path: storage.get(path) for path in paths}


@given(cuts=st.lists(st.integers(0, 110_000), max_size=4).map(sorted), servers=st.lists(st.booleans(), min_size=5))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["mix.mp3", "mix.ogg", "mix.wav"])
def test_a_stream_that_is_cut_anywhere_goes_on_anywhere(
    finished: tuple[tuple[Served, Served], str], name: str, cuts: list[int], servers: list[bool]
) -> None:
    two, job_id = finished
    expected = whole(two[0], job_id, name)
    heard = b""
    for cut, at in zip([*cuts, None], servers, strict=False):
        response = at_once(two[at], job_id, name, Range=f"bytes={len(heard)}-")
        if response.status_code == 416:
            assert len(heard) == len(expected)
            assert response.headers["Content-Range"] == f"bytes */{len(expected)}"
            break
        assert response.status_code == (206 if heard else 200)
        heard += response.get_data()[: None if cut is None else max(0, cut - len(heard))]
    assert expected.startswith(heard)
    assert len(heard) == len(expected)


@pytest.fixture(scope="module")
def finished() -> Iterator[tuple[tuple[Served, Served], str]]:
    """Two servers that share a storage, and a song that the first has finished."""
    data = new_folder()
    two = Served(may_generate=False, data=data), Served(may_generate=False, data=data)
    two[0].client.post("/download-models")
    job_id = begun(two[0], 3)
    finish(two[0], job_id)
    yield two, job_id
    for each in two:
        close_app(each.app)


def test_a_range_of_a_running_song_is_what_there_is_by_now(held: Served) -> None:
    job_id = begun(held, 2)
    response = at_once(held, job_id, Range="bytes=1000-")
    early = response.get_data()
    assert response.status_code == 206
    assert response.headers["Content-Range"] == f"bytes 1000-{999 + len(early)}/*"
    few = at_once(held, job_id, Range="bytes=1000-1009")
    assert (few.get_data(), few.headers["Content-Range"]) == (early[:10], "bytes 1000-1009/*")
    finish(held, job_id)
    all_of_it = whole(held, job_id)
    assert all_of_it[1000:].startswith(early)
    last = at_once(held, job_id, Range="bytes=1000-")
    assert last.headers["Content-Range"] == f"bytes 1000-{len(all_of_it) - 1}/{len(all_of_it)}"
    assert held.waiters == 0


def test_a_range_behind_what_there_is_waits_for_its_first_byte(held: Served) -> None:
    job_id = begun(held, 1)
    so_far = len(at_once(held, job_id, Range="bytes=1-").get_data()) + 1
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(at_once, held, job_id, Range=f"bytes={so_far + 10}-")
        until(lambda: held.waiters == 1, SECONDS)
        assert not waiting.done()
        send(held, job_id)
        response = waiting.result(SECONDS)
    assert response.headers["Content-Range"].startswith(f"bytes {so_far + 10}-")
    finish(held, job_id)
    assert whole(held, job_id)[so_far + 10 :].startswith(response.get_data())


def test_a_range_that_is_conditional_on_another_stream_is_the_whole_stream(held: Served) -> None:
    job_id = begun(held, 1)
    finish(held, job_id)
    etag = at_once(held, job_id).headers["ETag"]
    assert etag == f'"{job_id}-mix-mp3-stream"'
    answers = {"If-Range: another": '"another"', "the same": etag}
    statuses = [at_once(held, job_id, Range="bytes=9-", **{"If-Range": each}).status_code for each in answers.values()]
    assert statuses == [200, 206]


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-500", "bytes=1-2,4-5", "items=3-4", "bytes=5-3"])
def test_ranges_that_are_the_whole_stream(held: Served, header: str) -> None:
    job_id = begun(held, 1)
    finish(held, job_id)
    assert at_once(held, job_id, Range=header).status_code == 200


def test_another_server_streams_the_song_that_this_one_generates(two: tuple[Served, Served]) -> None:
    job_id = begun(two[0], 1)
    response = opened(two[1], job_id)
    heard = response.iter_encoded()
    first = next(heard)
    assert two[0].models.engine.listened == []
    two[0].app.extensions["yue"].jobs.maintenance.run_round()
    assert two[0].models.engine.listened == [job_id], "the server that has the song is told of the listener"
    send(two[0], job_id)
    finish(two[0], job_id)
    assert first + b"".join(heard) == whole(two[0], job_id)
    response.close()


def test_only_a_song_with_a_listener_is_hurried(held: Served) -> None:
    job_id = begun(held, 1)
    assert held.models.engine.listened == []
    opened(held, job_id).close()
    assert held.models.engine.listened == [job_id]


def test_a_listener_of_a_waiting_song_hurries_it_once_it_starts(held: Served) -> None:
    first = begun(held)
    waiting: str = held.one(wait_seconds=0)["job_id"]
    held.app.extensions["yue"].jobs.get(waiting).listen()
    held.models.engine.release()
    held.wait_for(waiting)
    assert held.models.engine.listened == [waiting] and first != waiting


def test_a_song_that_fails_before_its_first_part_is_its_problem(held: Served) -> None:
    job_id = begun(held)
    held.models.engine.error = EngineError("out of luck")
    finish(held, job_id)
    assert problem(at_once(held, job_id), 503)["job_id"] == job_id
    assert held.waiters == 0


def test_a_song_that_fails_in_the_middle_cuts_its_stream(held: Served) -> None:
    job_id = begun(held, 1)
    heard = opened(held, job_id).iter_encoded()
    assert next(heard)
    held.models.engine.error = EngineError("out of luck")
    finish(held, job_id)
    with pytest.raises(ConnectionResetError):
        b"".join(heard)
    assert not stored(held), "a failed song leaves no parts"


@pytest.mark.parametrize(("samples", "subtype"), [(np.full(900, np.nan), "FLOAT"), (np.zeros((900, 2)), "PCM_16")])
@pytest.mark.parametrize("name", ["mix.mp3", "mix.wav"])
def test_a_part_that_is_none_is_a_problem_that_names_it(
    held: Served, samples: np.ndarray, subtype: str, name: str
) -> None:
    job_id = begun(held, 1)
    file = io.BytesIO()
    soundfile.write(file, samples, 44_100, format="WAV", subtype=subtype)
    (path,) = stored(held)
    Storage.at(held.app.extensions["yue"].settings.data).put(path, file.getvalue())
    finish(held, job_id)
    assert path in problem(opened(held, job_id, name), 503)["detail"]


def test_a_song_that_is_deleted_cuts_its_streams(held: Served) -> None:
    job_id = begun(held, 3)
    heard = opened(held, job_id).iter_encoded()
    assert next(heard)
    finish(held, job_id)
    assert held.client.delete(f"/jobs/{job_id}").get_json()["deleted"]
    with pytest.raises(ConnectionResetError):
        b"".join(heard)
    assert not stored(held)


def test_tracks_and_formats_that_are_not_there_are_named(held: Served) -> None:
    job_id = begun(held, 1)
    told = problem(at_once(held, job_id, "vocal.flac"), 404)
    assert told["allowed"] == ["mix.mp3", "mix.ogg", "mix.wav"]


def test_a_song_without_parts_has_no_stream(held: Served) -> None:
    job_id = begun(held)
    finish(held, job_id)
    assert "fetch its audio" in problem(at_once(held, job_id), 404)["detail"]
    assert "stream_url" not in held.client.get(f"/jobs/{job_id}").get_json()


def test_a_job_says_where_its_stream_is(held: Served) -> None:
    job_id = begun(held, 1, format="flac", tracks=["vocal", "mix"])
    for _ in range(2):
        assert held.client.get(f"/jobs/{job_id}").get_json()["stream_url"] == f"/jobs/{job_id}/stream/vocal.mp3"
        finish(held, job_id)
    assert playable(held, job_id) == 1.0


def test_a_listener_holds_a_wait_slot_and_gives_it_back(held: Served) -> None:
    served = Served(may_generate=False, threads=RESERVED_THREADS + 1)
    served.client.post("/download-models")
    job_id = begun(served, 1)
    listener = opened(served, job_id)
    assert served.waiters == 1
    assert problem(at_once(served, job_id), 503)["type"].endswith("too-many-waiters")
    listener.close()
    assert served.waiters == 0
    close_app(served.app)


def test_a_question_for_the_headers_waits_for_nothing(held: Served) -> None:
    job_id = begun(held)
    response = held.client.head(f"/jobs/{job_id}/stream/mix.ogg")
    assert (response.status_code, response.mimetype, held.waiters) == (200, "audio/ogg", 0)
