"""What the tests of several folders share: recorded numbers, the real tokenizer, models, and who deploys.

Independent of what is tested with them.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.catalog import ModelFiles
from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Scheduler
from inference.options import EngineOptions
from inference.tiny import model_files
from model_manager import ModelManager
from tests.deploy.cloud.person import Person
from tests.support.fakes import FakeModels

TESTS = Path(__file__).parent
BESIDE_CHECKOUT = TESTS.parent.parent / "shared"
LONGEST_FIRST = ("container", "slow")  # the markers, by how long their files take


def pytest_configure() -> None:
    """Let the programs that tests start be ended by signals, also where the tests themselves run in the background.

    A shell starts a background command with some signals ignored, and whatever that starts ignores them too.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: a worker that began one of them last would be waited for."""
    ranks: dict[Path, int] = {}
    for item in items:
        marked = [LONGEST_FIRST.index(mark.name) for mark in item.iter_markers() if mark.name in LONGEST_FIRST]
        ranks[item.path] = min([*marked, ranks.get(item.path, len(LONGEST_FIRST))])
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The folder of YuE's recorded numbers."""
    if given := os.environ.get("YUE_PARITY_DIR"):
        return Path(given)
    beside = BESIDE_CHECKOUT / "parity"
    return beside if beside.exists() else TESTS / "data" / "parity"


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    """YuE's own `tokenizer.model`."""
    if given := os.environ.get("YUE_TOKENIZER"):
        return Path(given)
    beside = BESIDE_CHECKOUT / "yue" / "tokenizer.model"
    if not beside.exists():
        pytest.skip("the real tokenizer.model is not shipped; set YUE_TOKENIZER")
    return beside


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for XDG_CACHE_HOME in which a server finds the tiny model, written once for the whole run."""
    cache = tmp_path_factory.mktemp("cache")
    model_files.ensure(cache / "yue-server")
    return cache


@pytest.fixture(scope="session")
def tiny_files(tiny_cache: Path) -> ModelFiles:
    """The tiny model's files."""
    return model_files.ensure(tiny_cache / "yue-server")


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_files: ModelFiles) -> Pipeline:
    """The tiny model, loaded."""
    return Pipeline.load(tiny_files, EngineOptions("cpu", "float32"))


@pytest.fixture(scope="session")
def tiny_engine(tiny_pipeline: Pipeline) -> Scheduler:
    """The tiny model, loaded."""
    return Scheduler(tiny_pipeline)


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def manager(models: FakeModels) -> Iterator[ModelManager]:
    manager = models.manager()
    yield manager
    manager.close()


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


@pytest.fixture(scope="session")
def deployed_cloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cloud in which the server is deployed already."""
    first = Person(tmp_path_factory.mktemp("deployed"))
    first.deploy()
    return first.state_file


@pytest.fixture
def deployed(person: Person, deployed_cloud: Path) -> Person:
    """Someone who deployed before."""
    shutil.copy(deployed_cloud, person.state_file)
    return person
