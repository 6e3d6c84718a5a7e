"""The engine in a process of its own, and the messages between it and its parent.

It knows nothing of jobs or HTTP. Importing this module imports no torch: only the child does, when it loads.

    parent  EngineProcess ── Load, Sing, Cancel ──────────────────────▶ child  main thread sings,
                          ◀─ Loading, Ready, Advanced, Sung, Failed ──         reader thread listens

The child is started afresh, never forked, and ends when its end of the pipe closes, however its parent died.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from inference.catalog import ModelFiles
from inference.errors import Cancelled, EngineError, YueError
from inference.song import Progress, Song, SongRequest

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent
SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class Load:
    """To the child, first of all: load these files."""

    files: ModelFiles
    device: str
    dtype: str


@dataclass(frozen=True)
class Sing:
    """To the child: sing this song, after those that were sent before."""

    song_id: str
    request: SongRequest


@dataclass(frozen=True)
class Cancel:
    """To the child: stop this song, or do not begin it."""

    song_id: str


@dataclass(frozen=True)
class Loading:
    """From the child: which part is being loaded."""

    part: str


@dataclass(frozen=True)
class Ready:
    """From the child: everything is loaded."""

    info: dict[str, object]


@dataclass(frozen=True)
class Advanced:
    """From the child: a song has come further."""

    song_id: str
    progress: Progress


@dataclass(frozen=True)
class Sung:
    """From the child: a song is finished."""

    song_id: str
    song: Song


@dataclass(frozen=True)
class Failed:
    """From the child: a song could not be sung; without a song, the models could not be loaded."""

    song_id: str | None
    error: YueError


class EngineProcess:
    """The parent's side. Every method may be called from any thread; none but `start` and `close` waits."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        self._process = process
        self._connection = connection
        self._send_lock = threading.Lock()
        self._songs_lock = threading.Lock()
        self._songs: dict[str, tuple[Future[Song], Callable[[Progress], None]]] = {}
        self._info: dict[str, object] = {}
        self._closed = False
        self._listener = threading.Thread(target=self._listen, name="engine-listener", daemon=True)

    @classmethod
    def start(
        cls, files: ModelFiles, device: str, dtype: str, on_loading: Callable[[str], None] = lambda part: None
    ) -> EngineProcess:
        """Start the child and wait until it has loaded `files`; `on_loading` hears which part. Raises YueError."""
        ours, theirs = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "inference.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            cwd=PROJECT,
            # Threads that spin while they wait take the cores from the HTTP process, and from each other.
            env={"OMP_WAIT_POLICY": "passive", **os.environ},
            start_new_session=True,  # Ctrl-C is for the server, which lets songs finish
        )
        theirs.close()
        engine = cls(process, ours)
        try:
            engine._load(Load(files, device, dtype), on_loading)
        except BaseException:
            engine.close()
            raise
        engine._listener.start()
        return engine

    @property
    def alive(self) -> bool:
        """Whether songs can be sent."""
        return not self._closed and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def info(self) -> dict[str, object]:
        """Device, dtype, memory and seconds of loading, as they were when the models were ready."""
        return {**self._info, "pid": self.pid}

    def sing(self, song_id: str, request: SongRequest, on_progress: Callable[[Progress], None]) -> Future[Song]:
        """Have a song sung after those already sent. The future ends in a Song or raises a YueError."""
        future: Future[Song] = Future()
        with self._songs_lock:
            assert song_id not in self._songs, f"song {song_id} is being sung"
            self._songs[song_id] = future, on_progress
        try:
            self._send(Sing(song_id, request))
        except OSError:
            self._fail_songs()
        return future

    def cancel(self, song_id: str) -> None:
        """Stop a song; its future raises Cancelled. Nothing happens to one that is unknown or done."""
        with self._songs_lock:
            known = song_id in self._songs
        if known:
            try:
                self._send(Cancel(song_id))
            except OSError:
                self._fail_songs()

    def close(self) -> None:
        """End the child; songs in it fail with EngineError."""
        self._closed = True
        self._process.terminate()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._listener.ident is not None:
            self._listener.join()  # it ends with the pipe, and fails the songs
        self._connection.close()

    def _load(self, load: Load, on_loading: Callable[[str], None]) -> None:
        try:
            self._send(load)
            while True:
                match self._connection.recv():
                    case Loading(part):
                        on_loading(part)
                    case Ready(info):
                        self._info = info
                        return
                    case Failed(None, error):
                        raise error
        except (EOFError, OSError) as error:
            raise EngineError(f"the engine's process {self._ending()} while it loaded the models") from error

    def _listen(self) -> None:
        try:
            while True:
                self._hear(self._connection.recv())
        except (EOFError, OSError):
            self._fail_songs()

    def _hear(self, message: object) -> None:
        match message:
            case Advanced(song_id, progress):
                with self._songs_lock:
                    known = self._songs.get(song_id)
                if known:
                    known[1](progress)
            case Sung(song_id, song):
                self._take(song_id).set_result(song)
            case Failed(str(song_id), error):
                self._take(song_id).set_exception(error)
            case _:
                raise AssertionError(f"the engine's process sent {message!r}")

    def _take(self, song_id: str) -> Future[Song]:
        with self._songs_lock:
            return self._songs.pop(song_id)[0]

    def _fail_songs(self) -> None:
        with self._songs_lock:
            songs, self._songs = self._songs, {}
        for future, _ in songs.values():
            future.set_exception(EngineError(f"the engine's process {self._ending()} while the song was in it"))

    def _ending(self) -> str:
        try:
            code = self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _send(self, message: object) -> None:
        with self._send_lock:
            self._connection.send(message)


class _Child:
    """The child's side: one thread listens, the main thread loads and sings."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._orders: queue.SimpleQueue[Load | Sing] = queue.SimpleQueue()
        self._cancelled: set[str] = set()

    def run(self) -> None:
        """Load, then sing until the parent is gone."""
        # Listening starts before torch is imported, so that an early end of the parent is noticed.
        threading.Thread(target=self._listen, name="parent-listener", daemon=True).start()
        load = self._orders.get()
        assert isinstance(load, Load)
        try:
            sing = self._loaded(load)
        except Exception as error:
            self._send(Failed(None, _for_parent(error)))
            return
        while True:
            order = self._orders.get()
            assert isinstance(order, Sing)
            self._send(self._sing(sing, order))

    def _loaded(self, load: Load) -> Callable[[SongRequest, Callable[[Progress], None]], Song]:
        self._send(Loading("libraries"))
        from inference.pipeline import Pipeline

        pipeline = Pipeline.load(load.files, load.device, load.dtype, lambda part: self._send(Loading(part)))
        self._send(Ready(pipeline.info()))
        return pipeline.sing

    def _sing(self, sing: Callable[[SongRequest, Callable[[Progress], None]], Song], order: Sing) -> Sung | Failed:
        def observe(progress: Progress) -> None:
            if order.song_id in self._cancelled:
                raise Cancelled("the song was cancelled")
            self._send(Advanced(order.song_id, progress))

        try:
            return Sung(order.song_id, sing(order.request, observe))
        except Exception as error:
            return Failed(order.song_id, _for_parent(error))
        finally:
            self._cancelled.discard(order.song_id)

    def _listen(self) -> None:
        try:
            while True:
                match self._connection.recv():
                    case Cancel(song_id):
                        self._cancelled.add(song_id)
                    case order:
                        self._orders.put(order)
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone, and with it everyone who could want a song

    def _send(self, message: object) -> None:
        try:
            with self._send_lock:
                self._connection.send(message)
        except OSError:
            os._exit(0)


def _for_parent(error: Exception) -> YueError:
    """The error as the parent can take it: ours as they are, others in words, with the traceback in the log."""
    if isinstance(error, YueError):
        return error
    log.error("the engine failed", exc_info=error)
    return EngineError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Run under its real name, so that the messages' classes are the ones the parent knows.
    from inference import worker

    worker._Child(Connection(int(sys.argv[1]))).run()
