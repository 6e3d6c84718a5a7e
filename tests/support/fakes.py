"""Small real stand-ins for the engine and the download, steered by events, and servers over them.

Independent of what is tested with them.
"""

from __future__ import annotations

import atexit
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from inference import catalog
from inference.catalog import Model, ModelFiles
from inference.errors import Cancelled, DownloadError, EngineError, YueError
from inference.song import TRACK_NAMES, Progress, SectionSpan, Song, SongPart, SongRequest
from inference.vocabulary import VOCODER_RATE_HZ
from model_manager import ModelManager
from server import create_app
from serving.settings import Settings
from tests.support.waveforms import tone, wav

SECONDS = 10.0  # the longest that a test waits for something that happens at once
LYRICS = "[verse]\nla la la\n\n[chorus]\nla"
INSTANCE = {"genres": "pop", "lyrics": LYRICS}


def audio_of(request: SongRequest, track: str) -> bytes:
    """The fake engine's audio: it shows which song and track it is."""
    return f"{track} of {request.genres} {request.seed}".encode()


def part_of(request: SongRequest, track: str, index: int) -> bytes:
    """A second of the fake engine's music: a tone whose pitch shows which part of which song and track it is."""
    hz = 200 + 20 * index + 5 * (request.seed % 7) + 3 * TRACK_NAMES.index(track)
    return wav(tone(1.0, VOCODER_RATE_HZ, hz), VOCODER_RATE_HZ, "FLAC", "PCM_24")


class FakeEngine:
    """Generates one song after the other in a thread of its own, each as soon as `may_generate` is set."""

    max_songs = 1  # that it says it takes max_songs

    def __init__(self, may_generate: bool = True, memory_bytes: int | None = None) -> None:
        self.memory_bytes = memory_bytes
        self.may_generate = threading.Event()
        self.closed = threading.Event()
        self.generated: list[str] = []  # the ids of the songs that were started, in order
        self.cancelled: list[str] = []
        self.requests: list[SongRequest] = []  # all that it was asked for
        self.error: YueError | None = None  # what the next songs end in
        self.audio = b""  # of each track of the next songs, in place of words that show which it is
        self.listened: list[str] = []  # the ids of the songs that somebody listens to
        self.n_parts: Counter[str] = Counter()  # that were decoded, by song
        self._songs: dict[str, tuple[SongRequest, Callable[[SongPart], None]]] = {}
        self._began = threading.Condition()
        self._wake = threading.Condition()
        self._orders: queue.Queue[tuple[str, SongRequest, Callable[[Progress], None], Future[Song]] | None]
        self._orders = queue.Queue()
        self._dead = False
        if may_generate:
            self.may_generate.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def generate(
        self,
        song_id: str,
        request: SongRequest,
        on_progress: Callable[[Progress], None],
        on_part: Callable[[SongPart], None] = lambda part: None,
    ) -> Future[Song]:
        future: Future[Song] = Future()
        self._songs[song_id] = request, on_part
        self.n_parts[song_id] = 0
        with self._wake:
            if self._dead:
                future.set_exception(EngineError("the engine's process has ended"))
            else:
                self.requests.append(request)
                self._orders.put((song_id, request, on_progress, future))
        return future

    def listen(self, song_id: str) -> None:
        if song_id not in self.listened:
            self.listened.append(song_id)

    def send_part(self, song_id: str) -> None:
        """Decode another second of the song, in the caller's thread."""
        request, on_part = self._songs[song_id]
        index = self.n_parts[song_id]
        self.n_parts[song_id] += 1
        audio = {track: part_of(request, track, index) for track in request.tracks}
        on_part(SongPart(index, index + 1.0, audio, (SectionSpan("verse", 0.0, index + 1.0),)))

    def cancel(self, song_id: str) -> None:
        with self._wake:
            self.cancelled.append(song_id)
            self._wake.notify_all()

    def info(self) -> dict[str, object]:
        return {"device": "fake", "memory_bytes": self.memory_bytes, "max_songs": self.max_songs}

    @property
    def alive(self) -> bool:
        return not self._dead

    @property
    def ending(self) -> str:
        return "was ended by SIGKILL"

    def close(self) -> None:
        self.die()
        self._orders.put(None)
        self._thread.join(SECONDS)
        self.closed.set()

    def die(self) -> None:
        """End as a killed process does."""
        with self._wake:
            self._dead = True
            self._wake.notify_all()

    def release(self) -> None:
        """Let every song through from here on."""
        with self._wake:
            self.may_generate.set()
            self._wake.notify_all()

    def wait_until_begun(self, songs: int) -> None:
        """Until that many songs were begun."""
        with self._began:
            assert self._began.wait_for(lambda: len(self.generated) >= songs, SECONDS), (
                f"only {self.generated} were started"
            )

    def _run(self) -> None:
        while order := self._orders.get():
            song_id, request, on_progress, future = order
            on_progress(Progress("stage1", section=1, sections=2, fraction=0.25))
            with self._began:
                self.generated.append(song_id)
                self._began.notify_all()
            with self._wake:
                self._wake.wait_for(
                    lambda: self._dead or self.may_generate.is_set() or self.generated[-1] in self.cancelled
                )
            self._end(song_id, request, future)

    def _end(self, song_id: str, request: SongRequest, future: Future[Song]) -> None:
        if self._dead:
            future.set_exception(EngineError("the engine's process was ended by SIGKILL"))
        elif song_id in self.cancelled:
            future.set_exception(Cancelled("the song was cancelled"))
        elif self.error:
            future.set_exception(self.error)
        else:
            audio = {track: self.audio or audio_of(request, track) for track in request.tracks}
            spans = (SectionSpan("verse", 0.0, 1.5),)
            parts = self.n_parts[song_id]
            song = Song(audio, request.format, 44_100, parts or 1.5, request.seed, spans, {"stage1": 0.1}, parts=parts)
            future.set_result(song)


class FakeFetch:
    """One download, which ends when `may_end` is set: in the model's files, or in `error`."""

    def __init__(self, model: Model, may_end: threading.Event, error: YueError | None) -> None:
        self._model, self._may_end, self._error = model, may_end, error
        self.cancelled = False
        self.began = threading.Event()

    def run(self, on_progress: Callable[[Mapping[str, object]], None]) -> ModelFiles:
        on_progress({"repository": "a/b", "bytes_done": 1, "bytes_total": 2})
        self.began.set()
        assert self._may_end.wait(SECONDS)
        if self.cancelled:
            raise DownloadError("the download was cancelled")
        if self._error:
            raise self._error
        here = Path(self._model.name)
        return ModelFiles(self._model.name, "commit-" + self._model.name, here, here, here)

    def cancel(self) -> None:
        self.cancelled = True
        self._may_end.set()


class FakeClock:
    """A clock that stands still until it is told, or until somebody sleeps by it."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self._now_s

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._now_s += seconds

    def advance(self, seconds: float) -> None:
        self._now_s += seconds


class FakeModels:
    """Makes fetches and engines for a ModelManager, and remembers them."""

    def __init__(self, may_fetch: bool = True, may_generate: bool = True) -> None:
        self.clock = FakeClock()
        self.may_fetch = threading.Event()
        self.errors: list[YueError] = []  # each ends one fetch
        self.start_errors: list[YueError] = []  # each ends one start
        self.fetches: list[FakeFetch] = []
        self.forced: list[bool] = []  # of each fetch, whether it had to prove everything anew
        self.engines: list[FakeEngine] = []
        self.may_generate = may_generate  # of engines to come
        self.on_a_gpu = False  # the engines to come
        self.starting = threading.Event()  # set: an engine is in its loading
        self.may_start = threading.Event()  # unset: engines stay in their loading
        self.may_start.set()
        if may_fetch:
            self.may_fetch.set()

    @property
    def engine(self) -> FakeEngine:
        """The newest engine."""
        return self.engines[-1]

    def fetch(self, model: Model, force: bool = False) -> FakeFetch:
        fetch = FakeFetch(model, self.may_fetch, self.errors.pop(0) if self.errors else None)
        self.fetches.append(fetch)
        self.forced.append(force)
        return fetch

    def start_engine(self, files: ModelFiles, on_loading: Callable[[str], None]) -> FakeEngine:
        on_loading("stage1")
        self.starting.set()
        assert self.may_start.wait(SECONDS)
        on_loading("stage2")
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.engines.append(FakeEngine(self.may_generate, 1_000 if self.on_a_gpu else None))
        return self.engine

    def manager(self, model: str = "tiny") -> ModelManager:
        self._manager = ModelManager(catalog.find(model), self.fetch, self.start_engine, self.clock)
        return self._manager

    def notice_the_end(self) -> None:
        """Let the manager see that its engine is dead: its pauses count from there."""
        self._manager.status()

    def crash(self, engines: int) -> None:
        """So many engines end by themselves, one after the other, each as soon as a person had it started."""
        for _ in range(engines):
            self._manager.load().result(SECONDS)
            self.engine.die()
            self.notice_the_end()


def generate_song(manager: ModelManager) -> Song:
    with manager.borrowed() as loaded:
        song = SongRequest("pop", LYRICS, 1)
        return loaded.engine.generate("1", song, lambda progress: None, lambda part: None).result(SECONDS)


class Served:
    """An app over fakes, and a client for it."""

    def __init__(self, may_fetch: bool = True, may_generate: bool = True, **settings: Any) -> None:
        self.models = FakeModels(may_fetch, may_generate)
        self.manager = self.models.manager()
        self.app: Flask = create_app(Settings(**{"aip_mode": None, "data": new_folder(), **settings}), self.manager)
        self.client: FlaskClient = self.app.test_client()

    def predict(self, *instances: object, headers: dict[str, str] | None = None, **body: object) -> TestResponse:
        return self.client.post("/predict", json={"instances": list(instances), **body}, headers=headers)

    def one(self, **fields: object) -> Any:
        """The prediction of one instance whose song is finished."""
        response = self.predict({**INSTANCE, **fields})
        body: Any = response.json
        assert response.status_code == 200, body
        return body["predictions"][0]

    @property
    def waiters(self) -> int:
        """How many requests wait for a song or for the models."""
        services = self.app.extensions["yue"]
        return services.settings.max_waiters - services.wait_slots.free

    def wait_for(self, job_id: str) -> None:
        jobs = self.app.extensions["yue"].jobs
        assert jobs.wait(jobs.get(job_id), SECONDS)


def new_folder() -> str:
    """An empty folder, which is removed when the tests end."""
    folder = tempfile.mkdtemp(prefix="yue-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class ChildEngine(FakeEngine):
    """A fake engine with a process of its own, as the real one has."""

    def __init__(self, may_generate: bool = True) -> None:
        super().__init__(may_generate)
        self._child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def info(self) -> dict[str, object]:
        return {"pid": self._child.pid}

    def close(self) -> None:
        super().close()
        self._child.kill()
        self._child.communicate()


def fake_app(may_fetch: bool = True, may_generate: bool = True) -> Flask:
    """A whole server but for its models, for gunicorn to run; its settings come from the environment.

    More routes are for the test: /release lets every song through, /part decodes a second of the running song, /waiters
    tells how many requests wait.
    """
    models = FakeModels(may_fetch)
    engines: list[ChildEngine] = []

    def start_engine(files: ModelFiles, on_loading: Callable[[str], None]) -> ChildEngine:
        engines.append(ChildEngine(may_generate))
        return engines[-1]

    app = create_app(manager=ModelManager(catalog.find("tiny"), models.fetch, start_engine))
    services = app.extensions["yue"]

    def release() -> Response:
        for engine in engines:
            engine.release()
        return jsonify(engines=len(engines))

    def part() -> Response:
        engines[-1].send_part(engines[-1].generated[-1])
        return jsonify(parts=engines[-1].n_parts[engines[-1].generated[-1]])

    app.add_url_rule("/release", "release", release, methods=["POST"])
    app.add_url_rule("/part", "part", part, methods=["POST"])
    app.add_url_rule("/waiters", "waiters", lambda: jsonify(services.settings.max_waiters - services.wait_slots.free))
    return app


def app_that_gets_stuck() -> Flask:
    """The same, with a route /stuck that is never answered, and says on stdout that it was asked."""

    def be_stuck() -> Response:
        print("stuck", flush=True)
        threading.Event().wait()
        raise AssertionError("it waits for ever")

    app = fake_app()
    app.add_url_rule("/stuck", "stuck", be_stuck)
    return app


def app_that_stops_its_server() -> Flask:
    """The same, with a SIGTERM before it is made, for gunicorn and its worker."""
    for pid in (os.getppid(), os.getpid()):
        os.kill(pid, signal.SIGTERM)
    return fake_app()


def problem(response: TestResponse, status: int) -> Any:
    """The problem that a response is, in its one form."""
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == "application/problem+json"
    assert response.json is not None
    assert response.json["type"].startswith("urn:yue:problem:")
    assert response.json["status"] == status
    assert response.json["title"] and response.json["detail"] and response.json["instance"]
    return response.json
