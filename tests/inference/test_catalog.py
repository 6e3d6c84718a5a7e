"""Which repositories a model's name stands for."""

from __future__ import annotations

import re

import pytest

from inference import catalog
from inference.errors import UnknownModel


@pytest.mark.parametrize("name", [name for name in catalog.NAMES if name != catalog.TINY])
def test_short_names_stand_for_yue_s_repositories(name: str) -> None:
    model = catalog.find(name)
    assert model.name == name
    assert model.stage1.name == f"m-a-p/YuE-s1-7B-anneal-{name}"
    assert (model.stage2, model.codec) == (catalog.STAGE_2, catalog.CODEC)


def test_known_revisions_are_whole_commits() -> None:
    known = [catalog.STAGE_2.revision, catalog.CODEC.revision, *catalog.STAGE_1_REVISIONS.values()]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in known if revision is not None)
    assert catalog.find("en-cot").stage1.revision == "454c20e1748888800f8e4b3da45125f55482d967"


def test_a_revision_overrides_the_pinned_one() -> None:
    assert catalog.find("en-cot", "main").stage1.revision == "main"
    assert catalog.find("someone/songs@v1", "v2").stage1.revision == "v2"


@pytest.mark.parametrize(
    ("name", "repository", "revision"),
    [
        ("someone/my.model-1", "someone/my.model-1", None),
        ("someone/songs@refs/pr/1", "someone/songs", "refs/pr/1"),
        ("someone/songs@0123abc", "someone/songs", "0123abc"),
    ],
)
def test_any_repository_can_be_named(name: str, repository: str, revision: str | None) -> None:
    model = catalog.find(name)
    assert (model.stage1.name, model.stage1.revision) == (repository, revision)
    assert model.stage2 == catalog.STAGE_2


@pytest.mark.parametrize(
    "name",
    [
        "",
        "en",
        "EN-COT",
        "a/b/c",
        "a/",
        "/b",
        "a/b@",
        "a b/c",
        "a/b@x y",
        "ü/b",
        "../x",
        "a/..",
        "a/.b",
        "-a/b",
        "a/b..c",
    ],
)
def test_other_names_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog.find(name)
    message = str(caught.value)
    assert repr(name) in message and "en-icl" in message and "owner/name@revision" in message


def test_a_reference_is_for_icl_models_and_the_tiny_one() -> None:
    takers = [name for name in catalog.NAMES if catalog.find(name).takes_reference]
    assert takers == ["tiny", "en-icl", "zh-icl", "jp-kr-icl"]
    assert catalog.find("someone/fine-tuned-icl@main").takes_reference


def test_the_tiny_model_names_no_repository_of_the_hub() -> None:
    model = catalog.find("tiny")
    assert {model.stage1.name, model.stage2.name, model.codec.name} == {"tiny"}


def test_only_the_files_that_are_needed_are_wanted() -> None:
    wants = catalog.STAGE_2.wants
    assert all(map(wants, ["config.json", "tokenizer.model", "model-1.safetensors", "model.safetensors.index.json"]))
    assert not any(map(wants, ["README.md", "pytorch_model.bin", "old/model.safetensors", "old/config.json"]))
    assert catalog.CODEC.wants("decoders/decoder_131000.pth")
    assert not catalog.CODEC.wants("decoder_131000.pth")


def test_files_that_are_needed_are_missed() -> None:
    assert catalog.STAGE_2.lacking(["config.json", "model.safetensors"]) == ["tokenizer.model"]
    assert catalog.STAGE_2.lacking(["config.json", "model.safetensors", "tokenizer.model"]) == []
