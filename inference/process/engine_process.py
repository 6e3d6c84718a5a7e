"""Runs the engine in a child process: both sides of the pipe between the child and its parent.

Independent of jobs and HTTP. Importing this module imports no torch; the child does, when it loads the model.

    parent  EngineProcess ──▶ child  the main thread generates, another listens
                          ◀──

The child is spawned, never forked. It ends when the parent's end of the pipe closes, however the parent ended.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, ClassVar

from inference import log_relay
from inference.catalog import ModelFiles
from inference.errors import EngineError, RecordingFailed, YueError
from inference.options import EngineOptions
from inference.process.messages import (
    Advanced,
    Broken,
    Cancel,
    Decoded,
    Failed,
    Generate,
    Generated,
    Listen,
    Load,
    Loading,
    Ready,
    Recorded,
)
from inference.process.pipe_writer import PipeWriter
from inference.song import Progress, Song, SongPart, SongRequest
from paths import PROJECT, cache_folder

if TYPE_CHECKING:
    from inference.engine.scheduler import Scheduler

log = logging.getLogger(__name__)

SECONDS_TO_END = 5.0
COMPILED_STEPS = "TORCHINDUCTOR_CACHE_DIR"  # the folder in which torch keeps compiled code for the next start
# No progress for this long means that the engine hangs. The longest step, decoding on a slow CPU, takes seconds, and a
# song may wait a minute for a step to be compiled.
STALL_SECONDS = 300.0
PART_SECONDS = 1_800.0  # the time limit for loading one part of a model, also from a slow disk


class EngineProcess:
    """The parent's side. Every method may be called from any thread. Only `start` and `close` block."""

    # The child's module, and the arguments before the pipe's.
    program: ClassVar[tuple[str, ...]] = ("inference.process.engine_process",)

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection, stall_seconds: float) -> None:
        self._process = process
        self._connection = connection
        self._writer = PipeWriter(connection, "engine-writer")
        self._songs_lock = threading.Lock()
        self._songs: dict[str, _SongInChild] = {}
        self._info: dict[str, object] = {}
        self._stall_seconds = stall_seconds
        self._advanced_at = time.monotonic()  # the time of the last progress, or of the arrival of the first song
        self._reason = ""  # why the child ended, if that is known
        self.recording_failed = False  # True if a failed CUDA graph capture ended the child
        self._closed = False
        self._lost = False  # the pipe is closed, so the child sends nothing more
        self._listener = threading.Thread(target=self._listen, name="engine-listener", daemon=True)
        assert process.stdout is not None, "the child's output is logged"
        self._relay = log_relay.relay(process.stdout, __name__)

    @classmethod
    def start(
        cls,
        files: ModelFiles,
        options: EngineOptions,
        on_loading: Callable[[str], None] = lambda part: None,
        stall_seconds: float = STALL_SECONDS,
        part_seconds: float = PART_SECONDS,
    ) -> EngineProcess:
        """Start the child and wait until it has loaded `files`. Raises YueError.

        `on_loading` is called with the name of each part. The child is killed if one part takes more than
        `part_seconds` to load, or if it has songs and none makes progress for `stall_seconds`.
        """
        ours, theirs = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", *cls.program, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            cwd=PROJECT,
            # Threads that spin while they wait would take CPU time from the HTTP process and from each other.
            env={"OMP_WAIT_POLICY": "passive", COMPILED_STEPS: str(cache_folder() / "compiled"), **os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to the server, which lets songs finish
        )
        theirs.close()
        engine = cls(process, ours, stall_seconds)
        try:
            engine._load(Load(files, options), on_loading, part_seconds)
        except BaseException:
            engine.close()
            raise
        engine._listener.start()
        return engine

    @property
    def alive(self) -> bool:
        """True while the child accepts songs."""
        return not self._closed and not self._lost and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def info(self) -> dict[str, object]:
        """Device, dtype, quantization, memory and loading time, as measured when the models were ready."""
        return {**self._info, "pid": self.pid}

    def generate(
        self,
        song_id: str,
        request: SongRequest,
        on_progress: Callable[[Progress], None],
        on_part: Callable[[SongPart], None] = lambda part: None,
    ) -> Future[Song]:
        """Generate a song. The future returns a Song or raises a YueError. The callbacks must not block."""
        future: Future[Song] = Future()
        with self._songs_lock:
            assert song_id not in self._songs, f"song {song_id} is being generated"
            if not self._songs:  # otherwise new songs would hide that none makes progress
                self._advanced_at = time.monotonic()
            self._songs[song_id] = _SongInChild(future, on_progress, on_part)
            self._writer.put(Generate(song_id, request))  # before any cancel request for it
        if self._lost:  # the listener may have failed the songs before this one was added
            self._fail_songs()
        return future

    def listen(self, song_id: str) -> None:
        """Hurry a song, because somebody listens to it. Does nothing if the song is unknown or done."""
        self._writer.put(Listen(song_id))

    def cancel(self, song_id: str) -> None:
        """Cancel a song; its future raises Cancelled. Does nothing if the song is unknown or done."""
        with self._songs_lock:
            song = self._songs.get(song_id)
            if song is None or song.cancelled:
                return
            song.cancelled = True
        self._writer.put(Cancel(song_id))

    def close(self) -> None:
        """End the child. Its songs fail with an EngineError."""
        self._closed = True
        if not self._lost:
            self._process.terminate()
            try:
                self._process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._kill()
        self._writer.close()  # wakes both threads, even if the child could not be ended
        if self._listener.ident is not None:
            self._listener.join()  # it fails the songs before it ends
        self._relay.join(1.0)  # for the last output; a grandchild may keep the pipe open longer
        self._connection.close()

    def _load(self, load: Load, on_loading: Callable[[str], None], part_seconds: float) -> None:
        try:
            self._writer.put(load)
            while self._connection.poll(part_seconds):
                match self._connection.recv():
                    case Loading(part):
                        on_loading(part)
                    case Ready(info):
                        self._info = info
                        return
                    case Failed(None, error):
                        raise error
        except (EOFError, OSError) as error:
            raise EngineError(f"the engine's process {self.ending} while it loaded the models") from error
        raise EngineError(f"the engine's process took more than {part_seconds:g} s to load a part of the models")

    def _listen(self) -> None:
        try:
            while True:
                if self._connection.poll(self._stall_seconds / 4):
                    self._receive(self._connection.recv())
                if self._stalled:
                    self._reason = f"made no progress with any song for {self._stall_seconds:g} s"
                    self._kill()
        except (EOFError, OSError):
            self._reason = self._wait_for_end()
            self._lost = True  # last, so that the reason is set before it
            self._fail_songs()

    def _receive(self, message: object) -> None:
        match message:
            case Advanced(song_id, progress):
                with self._songs_lock:
                    known = self._songs.get(song_id)
                    if known and known.note(progress):
                        self._advanced_at = time.monotonic()
                if known:
                    known.on_progress(progress)
            case Decoded(song_id, part):
                with self._songs_lock:
                    known = self._songs.get(song_id)
                if known:
                    known.on_part(part)
            case Generated(song_id, song):
                self._take(song_id).set_result(song)
            case Failed(str(song_id), error):
                self._take(song_id).set_exception(error)
            case Recorded(recordings):
                self._info = {**self._info, "recordings": recordings}
            case Broken(error):
                self._reason = f"failed ({error})"
                self.recording_failed = isinstance(error, RecordingFailed)
                self._kill()  # after a device failure the process may not end by itself
            case _:
                raise AssertionError(f"the engine's process sent {message!r}")

    def _take(self, song_id: str) -> Future[Song]:
        with self._songs_lock:
            self._advanced_at = time.monotonic()
            return self._songs.pop(song_id).future

    def _fail_songs(self) -> None:
        with self._songs_lock:
            songs, self._songs = self._songs, {}
        for song in songs.values():
            song.future.set_exception(EngineError(f"the engine's process {self.ending} while it generated the song"))

    @property
    def _stalled(self) -> bool:
        with self._songs_lock:
            return bool(self._songs) and time.monotonic() - self._advanced_at > self._stall_seconds

    def _kill(self) -> None:
        """Kill the child. A child that does not end is left running."""
        self._process.kill()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            log.error("the engine's process %d does not end", self.pid)

    @property
    def ending(self) -> str:
        """How a child that is not alive ended, as the rest of a sentence: "was ended by SIGKILL"."""
        return self._reason if self._lost else self._wait_for_end()

    def _wait_for_end(self) -> str:
        """Wait some seconds for the child to end, then kill it. Returns how it ended."""
        try:
            code = self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._kill()  # otherwise it would keep the GPU memory
            return self._reason or "closed its pipe"
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return self._reason or ended


@dataclass(eq=False)
class _SongInChild:
    """A song that was sent to the child."""

    future: Future[Song]
    on_progress: Callable[[Progress], None]
    on_part: Callable[[SongPart], None]
    progress: Progress | None = None
    cancelled: bool = False  # a cancel request was sent

    def note(self, progress: Progress) -> bool:
        """True if the song made progress. `seconds_left` does not count, as it also changes without progress."""
        before, self.progress = self.progress, replace(progress, seconds_left=None)
        return self.progress != before


class _Child:
    """The child's side: one thread listens, the main thread loads and generates."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._commands: queue.SimpleQueue[Load | Generate | Listen | Cancel] = queue.SimpleQueue()

    def run(self) -> None:
        """Load the model, then generate songs until the parent ends or the engine fails."""
        # Listening starts before torch is imported, so that an early end of the parent is noticed.
        threading.Thread(target=self._listen, name="parent-listener", daemon=True).start()
        load = self._commands.get()
        assert isinstance(load, Load)
        try:
            engine = self._loaded(load)
        except Exception as error:
            self._send(Failed(None, _for_parent(error)))
            return
        try:
            self._generate(engine)
        except Exception as error:  # the engine's state is unknown: only a new process helps
            self._send(Broken(_for_parent(error)))

    def _loaded(self, load: Load) -> Scheduler:
        self._send(Loading("libraries"))
        from inference.engine.pipeline import Pipeline
        from inference.engine.scheduler import make_engine

        pipeline = Pipeline.load(load.files, load.options, lambda part: self._send(Loading(part)))
        engine = make_engine(pipeline, load.options)
        while load.options.prepare and (left := engine.missing_steps):
            self._send(Loading(f"compiled steps, {left} left"))
            engine.prepare_next()
        limits = {"max_songs": engine.limits.songs, "max_rows": engine.limits.rows}
        self._send(Ready({**pipeline.info(), **limits, "recordings": engine.recordings()}))
        return engine

    def _generate(self, engine: Scheduler) -> None:
        while True:
            self._take_commands(engine)
            for outcome in engine.step():
                match outcome.result:
                    case Song() as song:
                        self._send(Generated(outcome.song_id, song))
                    case error:
                        self._send(Failed(outcome.song_id, error))

    def _take_commands(self, engine: Scheduler) -> None:
        """Execute the parent's commands. While the engine is idle, record steps, then wait for commands."""
        while engine.idle or not self._commands.empty():
            if self._commands.empty() and engine.prepare_next():
                self._send(Recorded(engine.recordings()))
                continue
            match self._commands.get():
                case Generate(song_id, request):
                    engine.add(song_id, request, self._observer(song_id), self._part_observer(song_id))
                case Listen(song_id):
                    engine.listen(song_id)
                case Cancel(song_id):
                    engine.cancel(song_id)

    def _observer(self, song_id: str) -> Callable[[Progress], None]:
        return lambda progress: self._send(Advanced(song_id, progress))

    def _part_observer(self, song_id: str) -> Callable[[SongPart], None]:
        return lambda part: self._send(Decoded(song_id, part))

    def _listen(self) -> None:
        try:
            while True:
                self._commands.put(self._connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent has ended, so nobody receives songs

    def _send(self, message: object) -> None:
        try:
            with self._send_lock:
                self._connection.send(message)
        except OSError:
            os._exit(0)


def _for_parent(error: Exception) -> YueError:
    """The error as a YueError, which the parent can unpickle. The traceback of any other error is logged."""
    if isinstance(error, YueError):
        return error
    log.error("the engine failed", exc_info=error)
    return EngineError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    log_relay.write_lines()
    # Imported under its real name, so that the messages' classes are those of the parent.
    from inference.process import engine_process

    engine_process._Child(Connection(int(sys.argv[1]))).run()
