"""Lists the models: the repositories of each, their files, and the folders of a local copy.

Plain data: it fetches nothing and opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from inference.errors import UnknownModel

TINY = "tiny"


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub. `revision` None is its default branch, resolved once and recorded."""

    name: str
    revision: str | None
    files: tuple[str, ...]  # patterns of the required files

    @property
    def folder_name(self) -> str:
        """The folder of a local copy, named as `git clone` names it."""
        return self.name.split("/")[-1]

    def wants(self, path: str) -> bool:
        """True if the file is required. A pattern does not match in subfolders."""
        return any(path.count("/") == pattern.count("/") and fnmatchcase(path, pattern) for pattern in self.files)

    def lacking(self, paths: Iterable[str]) -> list[str]:
        """The patterns of required files that no path matches."""
        given = list(paths)
        needed = [pattern for pattern in self.files if pattern not in OPTIONAL_FILES]
        return [pattern for pattern in needed if not any(fnmatchcase(path, pattern) for path in given)]


@dataclass(frozen=True)
class Model:
    """The three repositories that make up a model."""

    name: str
    stage1: Repository
    stage2: Repository
    codec: Repository

    @property
    def takes_reference(self) -> bool:
        """True if stage 1 was trained to continue reference audio (the `-icl` checkpoints)."""
        return self.name == TINY or self.stage1.name.endswith("-icl")


@dataclass(frozen=True)
class ModelFiles:
    """The local folders of a model, laid out like its repositories."""

    model: str
    revision: str
    stage1: Path
    stage2: Path
    codec: Path


OPTIONAL_FILES = ("generation_config.json", "*.safetensors.index.json")
LANGUAGE_MODEL_FILES = ("config.json", "tokenizer.model", "*.safetensors", *OPTIONAL_FILES)
CODEC_FILES = (
    "final_ckpt/ckpt_00360000.pth",
    "decoders/decoder_131000.pth",
    "decoders/decoder_151000.pth",
    "semantic_ckpts/hf_1_325000/config.json",
)
STAGE_2 = Repository("m-a-p/YuE-s2-1B-general", "9dfa90b7013f6b5e7eb5eb2991620dca33058a0e", LANGUAGE_MODEL_FILES)
CODEC = Repository("m-a-p/xcodec_mini_infer", "fe781a67815ab47b4a3a5fce1e8d0a692da7e4e5", CODEC_FILES)
STAGE_1_REVISIONS: dict[str, str | None] = {
    "en-cot": "454c20e1748888800f8e4b3da45125f55482d967",
    "en-icl": "024ea105533fdd99f8a67ee75abce61c7b813938",
    "zh-cot": None,
    "zh-icl": None,
    "jp-kr-cot": None,
    "jp-kr-icl": None,
}
NAMES = (TINY, *STAGE_1_REVISIONS)
ALLOWED_NAMES = f"{', '.join(NAMES)}, or owner/name@revision"

_PART = r"(?![.-])(?:(?!\.\.)[\w.-])+"  # owner or name on the Hub
_HUB_NAME = re.compile(rf"(?P<name>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def find(name: str, revision: str | None = None) -> Model:
    """The model with that short name or `owner/name@revision`. `revision` overrides the pinned one of stage 1.

    Raises UnknownModel.
    """
    if name == TINY:
        local = Repository(TINY, None, ())
        return Model(TINY, local, local, local)
    if name in STAGE_1_REVISIONS:
        stage1 = f"m-a-p/YuE-s1-7B-anneal-{name}"
        return _model(name, stage1, revision or STAGE_1_REVISIONS[name])
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise UnknownModel(name, ALLOWED_NAMES)
    return _model(match["name"], match["name"], revision or match["revision"])


def _model(name: str, stage1: str, revision: str | None) -> Model:
    return Model(name, Repository(stage1, revision, LANGUAGE_MODEL_FILES), STAGE_2, CODEC)
