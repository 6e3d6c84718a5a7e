"""The studio's page is served to everybody, with its files and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server import close_app
from serving.http import studio_files
from tests.support.fakes import Served, problem


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """It has a key, which nobody sends."""
    served = Served(api_key="0123456789abcdef", host="0.0.0.0")
    yield served
    close_app(served.app)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A studio of this test, with files beside it that are not part of it."""
    folder = tmp_path / "studio"
    (folder / "parts").mkdir(parents=True)
    for name in ("index.html", "app.js", "style.css", "mark.svg", "notes.md", "parts/inner.js", "../secret.js"):
        (folder / name).write_text(name)
    monkeypatch.setattr(studio_files, "FOLDER", folder)
    return folder


def test_the_page_is_at_the_root_and_under_its_own_name(served: Served) -> None:
    page = served.client.get("/")
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    assert page.data == (studio_files.FOLDER / "index.html").read_bytes()
    assert served.client.get("/studio/index.html").data == page.data
    moved = served.client.get("/studio")
    assert (moved.status_code, moved.headers["Location"]) == (302, "./")  # also right behind a path prefix


def test_the_page_may_load_nothing_from_elsewhere_and_be_framed_by_nobody(served: Served) -> None:
    for path in ("/", "/studio/index.html"):
        headers = served.client.get(path).headers
        policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-cache")
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("app.js", "text/javascript"), ("style.css", "text/css"), ("mark.svg", "image/svg+xml")],
)
def test_each_file_has_its_type(served: Served, folder: Path, name: str, media_type: str) -> None:
    response = served.client.get(f"/studio/{name}")
    assert (response.status_code, response.mimetype, response.text) == (200, media_type, name)
    head = served.client.head(f"/studio/{name}")
    assert (head.status_code, head.data, head.content_length) == (200, b"", len(name))


def test_a_file_that_the_browser_has_is_not_sent_again_until_it_changes(served: Served, folder: Path) -> None:
    etag = {"If-None-Match": served.client.get("/studio/app.js").headers["ETag"]}
    same = served.client.get("/studio/app.js", headers=etag)
    assert (same.status_code, same.data) == (304, b"")
    (folder / "app.js").write_text("another")
    assert served.client.get("/studio/app.js", headers=etag).text == "another"


@pytest.mark.parametrize(
    "name",
    [
        *("secret.js", "../secret.js", "..%2fsecret.js", "%2e%2e/secret.js", "//etc/passwd", "", "%00", "app.js%00"),
        *("parts", "parts/inner.js", "parts%2finner.js", "notes.md", "none.js", "APP.JS"),
    ],
)
def test_no_other_file_can_be_reached(served: Served, folder: Path, name: str) -> None:
    key = {"X-API-Key": "0123456789abcdef"}
    problem(served.client.get(f"/studio/{name}", headers=key), 404)


def test_a_page_of_another_site_may_link_to_the_studio_and_not_load_its_files() -> None:
    served = Served()
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert served.client.get("/", headers=link).status_code == 200
    problem(served.client.get("/studio/index.html", headers={**link, "Sec-Fetch-Dest": "script"}), 403)
    close_app(served.app)


def test_a_probe_of_vertex_ai_may_take_the_root() -> None:
    served = Served(aip_mode="PREDICTION", health_route="/", predict_route="/predict")
    assert served.client.get("/").json["status"] == "healthy"
    assert served.client.get("/studio/index.html").status_code == 200
    close_app(served.app)
