"""An engine's process that says it is ready and then reads nothing, as one does that was stopped; and a server over it.

Independent of which songs are sent to it. Run as a program with the pipe's descriptor.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import ClassVar

from flask import Flask

from inference import catalog
from inference.catalog import ModelFiles
from inference.options import EngineOptions
from inference.process.engine_process import EngineProcess
from inference.process.messages import Loading, Ready
from model_manager import ModelManager
from server import create_app
from tests.support.fakes import FakeModels

SONGS = 3  # that it takes max_songs


class DeafEngine(EngineProcess):
    """The parent's side is the real one."""

    program: ClassVar[tuple[str, ...]] = ("tests.support.deaf_worker",)


def deaf_app() -> Flask:
    """A whole server; its settings come from the environment."""

    def start_engine(files: ModelFiles, on_loading: Callable[[str], None]) -> EngineProcess:
        return DeafEngine.start(files, EngineOptions("cpu", "float32"), on_loading)

    return create_app(manager=ModelManager(catalog.find("tiny"), FakeModels().fetch, start_engine))


if __name__ == "__main__":
    connection = Connection(int(sys.argv[1]))
    connection.send(Loading("nothing"))
    connection.send(Ready({"device": "cpu", "memory_bytes": None, "max_songs": SONGS}))
    hung_up = select.poll()
    hung_up.register(connection.fileno(), 0)
    hung_up.poll()  # until the parent is gone
