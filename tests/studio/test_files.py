"""The studio's files: light, short, and free of what its content security policy forbids."""

from __future__ import annotations

import re

from tests.support.paths import PROJECT

FILES = sorted((PROJECT / "serving" / "studio").iterdir())
MOST_BYTES = 150_000  # of the whole page
MOST_LINES = 250


def test_the_whole_page_is_light() -> None:
    assert sum(path.stat().st_size for path in FILES) <= MOST_BYTES


def test_a_module_can_be_read_in_one_go() -> None:
    lines = {path.name: path.read_text().count("\n") for path in FILES}
    assert {name: n_lines for name, n_lines in lines.items() if n_lines >= MOST_LINES} == {}


def test_every_file_that_is_named_is_there_and_every_file_is_named() -> None:
    texts = {path.name: path.read_text() for path in FILES}
    named = set(re.findall(r'(?:href|src)="studio/([\w.]+)"', texts["index.html"]))
    for text in texts.values():
        named |= set(re.findall(r"from '\./([\w.]+)'", text))
    assert named == texts.keys() - {"index.html"}


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    for path in FILES:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.\w+|\bstyle=|\son\w+=\"|innerHTML|\beval\(|@import", text), path.name
