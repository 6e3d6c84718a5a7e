"""A song's file whole or in ranges, as RFC 9110 has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.song import SongRequest
from server import close_app
from tests.support.fakes import LYRICS, Served, audio_of, problem

WHOLE = audio_of(SongRequest("pop", LYRICS, 1), "mix")
SIZE = len(WHOLE)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    return f"/jobs/{served.one(seed=1)['job_id']}/audio/mix.mp3"


@pytest.mark.parametrize(
    ("asked", "first", "after"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=4-5", 4, 6),
        ("bytes=4-4", 4, 5),
        ("bytes=4-99", 4, SIZE),
        (f"bytes=0-{SIZE - 1}", 0, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=-{SIZE}", 0, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
        ("bytes=-26000", 0, SIZE),
        ("bytes=-" + "9" * 5_000, 0, SIZE),
        ("bytes=4-" + "9" * 5_000, 4, SIZE),
        ("bytes=0004-0005", 4, 6),
        ("BYTES=4-5", 4, 6),
        ("bytes = 4-5", 4, 6),
        ("bytes=,4-5 ,", 4, 6),
    ],
)
def test_a_range_is_that_part_of_the_file(served: Served, url: str, asked: str, first: int, after: int) -> None:
    response = served.client.get(url, headers={"Range": asked})
    assert (response.status_code, response.data) == (206, WHOLE[first:after])
    assert response.headers["Content-Range"] == f"bytes {first}-{after - 1}/{SIZE}"
    assert response.content_length == after - first


@pytest.mark.parametrize(
    "asked", [f"bytes={SIZE}-", "bytes=99-", "bytes=99-100", "bytes=-0", "bytes=" + "9" * 5_000 + "-"]
)
def test_a_range_outside_the_file_is_refused_with_its_size(served: Served, url: str, asked: str) -> None:
    response = served.client.get(url, headers={"Range": asked})
    problem(response, 416)
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked",
    [
        "items=0-5",
        "seconds=0-5",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=abc",
        "bytes=5-2",
        "bytes=--5",
        "bytes=0-5x",
        "bytes=1.5-3",
        "bytes=²-3",
        "bytes=0-1,4-5",
        "bytes=0-1, 99-",
        "0-5",
        "",
    ],
)
def test_what_is_no_range_or_more_than_one_is_ignored(served: Served, url: str, asked: str) -> None:
    response = served.client.get(url, headers={"Range": asked})
    assert (response.status_code, response.data) == (200, WHOLE)
    assert "Content-Range" not in response.headers and response.headers["Accept-Ranges"] == "bytes"


def test_a_range_on_a_condition_is_given_where_the_file_is_the_same(served: Served, url: str) -> None:
    etag = served.client.head(url).headers["ETag"]
    for condition, status in (
        (etag, 206),
        (f"W/{etag}", 200),
        ('"another"', 200),
        (etag.strip('"'), 200),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 200),
        ("", 200),
    ):
        response = served.client.get(url, headers={"Range": "bytes=4-5", "If-Range": condition})
        assert (response.status_code, response.data) == (status, WHOLE[4:6] if status == 206 else WHOLE), condition


def test_what_the_client_has_counts_before_the_range(served: Served, url: str) -> None:
    etag = served.client.head(url).headers["ETag"]
    part = {"Range": "bytes=4-5"}
    assert served.client.get(url, headers={**part, "If-None-Match": etag}).status_code == 304
    assert served.client.get(url, headers={**part, "If-None-Match": '"another"'}).status_code == 206
    assert served.client.get(url, headers={**part, "If-Match": etag}).status_code == 206
    problem(served.client.get(url, headers={**part, "If-Match": '"another"'}), 412)


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_only_get_knows_ranges(served: Served, url: str, method: str) -> None:
    response = served.client.open(url, method=method, headers={"Range": "bytes=4-5"})
    assert (response.status_code, response.content_length) == (200, SIZE)


def test_head_says_of_every_route_what_get_says_without_the_rest(served: Served, url: str) -> None:
    job_url = url.removesuffix("/audio/mix.mp3")
    paths = {rule.rule for rule in served.app.url_map.iter_rules() if "GET" in (rule.methods or ())}
    known = {
        "/jobs/<job_id>": job_url,
        "/jobs/<job_id>/events": f"{job_url}/events",
        "/jobs/<job_id>/audio/<track>.<audio_format>": url,
    }
    free = served.app.extensions["yue"].wait_slots.free
    for path in (known.get(each, each) for each in paths):
        with served.client.get(path) as whole, served.client.head(path) as head:
            assert head.status_code == whole.status_code and head.data == b"", path
            assert head.mimetype == whole.mimetype, path
    assert served.client.head("/jobs/none").status_code == 404
    assert served.app.extensions["yue"].wait_slots.free == free


@pytest.mark.parametrize("size_bytes", [0, 3, 10_000])
def test_a_file_of_another_size_than_was_written_is_an_error_that_names_it(size_bytes: int) -> None:
    first = Served()
    song = first.one(seed=1, request_id="key")
    (path,) = Path(str(first.app.extensions["yue"].settings.data)).glob(f"jobs/{song['job_id']}/audio-*/mix.mp3")
    path.write_bytes(WHOLE.ljust(size_bytes, b"x")[:size_bytes])
    served = Served(data=first.app.extensions["yue"].settings.data)
    detail = problem(served.client.get(song["tracks"]["mix"]["url"]), 500)["detail"]
    assert f"mix.mp3 has {size_bytes} bytes, but {SIZE} were written" in detail
    assert problem(served.predict({"job_id": song["job_id"], "operation": "result"}), 500)["detail"] == detail
    piece = {"job_id": song["job_id"], "operation": "result", "track": "mix", "offset": 0}
    assert problem(served.predict(piece), 500)["detail"] == detail
    for each in (first, served):
        close_app(each.app)
