"""The documents hold together: links lead somewhere, settings are complete, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from serving.settings import OF_OTHERS, Settings, unknown_variables
from tests.support.paths import PROJECT

README, CONTRIBUTING, CONFIGURATION = (
    PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "docs/configuration.md")
)
PAGES = sorted((PROJECT / "docs").glob("*.md"))
DOCUMENTS = [README, CONTRIBUTING, *PAGES]
MOST_WORDS = {README: 900, CONTRIBUTING: 500}  # a first look, and one page
OF_THE_CLIENT = {"YUE_ENDPOINT", "YUE_URL"}  # docs/cli.md has them
OF_LIBRARIES = r"(HF|XDG)_\w+|\w+_PROXY"
SCRIPTS = ("run_local.sh", "run_tests.sh", "entrypoint.sh", "scripts/setup.sh", "Dockerfile")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \|(.*?)(?<!\\)\|(.*)\|$", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def prose(document: Path) -> str:
    """Without code blocks, in which brackets and # mean something else."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings: the second of a name is name-1."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        names = (slug, *(f"{slug}-{n}" for n in range(1, 100)))
        found.add(next(name for name in names if name not in found))
    return found


def links(document: Path) -> list[str]:
    """The targets of all links. A link of another form than [text](target) fails, since nothing would check it."""
    text = re.sub(r"`[^`\n]*`", "`code`", prose(document))
    assert not re.search(r"\]\[|^\[[^\]]+\]: |<https?:|href=", text, re.MULTILINE)
    return LINK.findall(text)


def rows(document: Path) -> dict[str, tuple[str, str]]:
    """For each name in the first column of a table: the default, and all of its row."""
    return {
        name: (default.strip(), f"{default}|{meaning}")
        for names, default, meaning in ROW.findall(document.read_text())
        for name in re.findall(r"`(\w+)`", names)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.name))
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in links(document):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.is_relative_to(PROJECT) and target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{document.name}: {link}"


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Vertex AI's `invoke` route\n```sh\n# no heading\n```\n## a_b, C: D-e!\n## [A](b.md) link\n## A link\n"
    )
    assert anchors(page) == {"vertex-ais-invoke-route", "a_b-c-d-e", "a-link", "a-link-1"}


@pytest.mark.parametrize("document", MOST_WORDS, ids=lambda path: str(path.name))
def test_a_first_look_is_short(document: Path) -> None:
    assert len(document.read_text().split()) <= MOST_WORDS[document]


@pytest.mark.parametrize("page", [CONTRIBUTING, *PAGES], ids=lambda path: str(path.name))
def test_each_page_is_linked_from_the_readme_and_says_whom_it_is_for(page: Path) -> None:
    assert str(page.relative_to(PROJECT)) in {link.partition("#")[0] for link in links(README)}
    title, _, first = page.read_text().partition("\n\n")
    assert re.fullmatch("# .+", title)
    assert first.startswith("This page is for ")


def test_every_setting_is_described_with_its_default_limits_and_choices() -> None:
    described = rows(CONFIGURATION)
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias if isinstance(field.validation_alias, str) else f"YUE_{name.upper()}"
        assert variable in described, f"{variable} is missing in {CONFIGURATION}"
        default, row = described[variable]
        plain = field.get_default(call_default_factory=False)
        expected = f"{plain:g}" if isinstance(plain, float) else str(plain)
        if isinstance(plain, str | int | float) and not isinstance(plain, bool):
            assert default.strip("`") == expected, variable
        if isinstance(plain, bool):
            assert default == f"`{str(plain).lower()}`", variable
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        assert all(f"`{choice}`" in row for choice in choices), variable
        limits = NUMBER.findall(field.description or "") if field.metadata else []
        assert set(limits) <= set(NUMBER.findall(row)), f"{variable}: {field.description}"


def test_every_variable_of_the_scripts_is_described_and_none_that_there_is_not() -> None:
    described = rows(CONFIGURATION)
    arguments = set(re.findall(r"^ARG (\w+)", (PROJECT / "Dockerfile").read_text(), re.MULTILINE))
    read = {
        name
        for script in SCRIPTS
        for name in re.findall(r"\b(?:YUE|AIP|HF|XDG)_[A-Z_]+\b", (PROJECT / script).read_text())
    }
    assert arguments | read | set(OF_OTHERS) - OF_THE_CLIENT <= described.keys()
    others = {name for name in described.keys() - arguments if not re.fullmatch(OF_LIBRARIES, name)}
    assert not unknown_variables(dict.fromkeys(others, ""))
    assert set(re.findall(r"`(\w+)`", (PROJECT / "docs" / "cli.md").read_text())) >= OF_THE_CLIENT


def test_the_readme_has_ten_settings_which_the_page_has_too() -> None:
    few, all_of_them = rows(README), rows(CONFIGURATION)
    assert len(few) == 10
    assert few.keys() <= all_of_them.keys()
