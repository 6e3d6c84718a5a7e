"""Imports between folders go one way, as the code's own import statements have it, and no file is long."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import PROJECT

PROGRAMS = [
    *PROJECT.glob("*.py"),
    *(path for top in ("serving", "inference") for path in (PROJECT / top).rglob("*.py")),
]
ALL_FILES = [
    *PROGRAMS,
    *(path for top in ("yue_client", "benchmarks", "scripts", "tests") for path in (PROJECT / top).rglob("*.py")),
]
MODULES = {".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__") for path in PROGRAMS}
MOST_LINES = 400


def imported(path: Path) -> Iterator[str]:
    """The project's modules that a file imports anywhere, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{name}" for name in names)]
        yield from (name for name in names if name in MODULES)


def arrows(folder: str) -> dict[str, set[str]]:
    """Which of the parts of `folder`, or of the whole project where it is "", import which others."""
    found = defaultdict(set)
    for path in PROGRAMS:
        source = part_of(".".join(path.relative_to(PROJECT).with_suffix("").parts), folder)
        for module in imported(path):
            target = part_of(module, folder)
            if source and target and source != target:
                found[source].add(target)
    return found


def part_of(module: str, folder: str) -> str:
    """The part of `folder` that a module belongs to; its own files are one part."""
    top, _, rest = module.partition(".")
    if not folder:
        return top
    part = rest.partition(".")[0]
    return (part if (PROJECT / folder / part).is_dir() else "its own files") if top == folder and rest else ""


@pytest.mark.parametrize(("folder", "most_arrows"), [("", 16), ("inference", 25), ("serving", 12)])
def test_imports_go_one_way(folder: str, most_arrows: int) -> None:
    found = arrows(folder)
    TopologicalSorter(found).prepare()  # raises CycleError
    assert 0 < sum(map(len, found.values())) <= most_arrows
    assert len(found.keys() | set().union(*found.values())) <= (8 if folder == "serving" else 10)


def test_a_file_can_be_read_in_one_go() -> None:
    lines = {str(path.relative_to(PROJECT)): path.read_text().count("\n") for path in ALL_FILES}
    assert {path: n_lines for path, n_lines in lines.items() if n_lines > MOST_LINES} == {}
