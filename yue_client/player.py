"""Plays a song while it is generated: pipes its stream to the first player that is installed.

The song does not depend on it. Whatever fails here is told, and the song is written all the same.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from yue_client.errors import ClientError, Json, Refused, Unreachable
from yue_client.progress import Progress
from yue_client.transport import Http, Server

PLAYERS = (
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-"),
    ("mpv", "--no-video", "--really-quiet", "-"),
    ("cvlc", "--quiet", "--play-and-exit", "-"),
)
NO_PLAYER = "warning: --play: no player is installed, so the song is not played; install ffmpeg (ffplay), mpv or VLC"
BLOCK_BYTES = 1 << 14
SHORTEST_PAUSE_S = 0.5  # between two tries to go on with a stream
PARTIAL, BEHIND_THE_END = 206, 416
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@contextlib.contextmanager
def playing(server: Server, wanted: bool, progress: Progress) -> Iterator[Player]:
    """A player for one song, which ends with the block."""
    command = next((each for each in PLAYERS if shutil.which(each[0])), None) if wanted else None
    if wanted and not command:
        progress.say(NO_PLAYER)
    with tempfile.TemporaryFile() if command else io.BytesIO() as errors:
        player = Player(server, command, errors, progress)
        try:
            yield player
        finally:
            player.stop()


class Player:
    """Plays the song whose job it is shown; nothing without a command. What the command says goes into `errors`."""

    def __init__(self, server: Server, command: Sequence[str] | None, errors: IO[bytes], progress: Progress) -> None:
        self._server = copy.copy(server)
        self._server.http = Http(server.http.clock, server.http.retry_s, lambda error, seconds: None)
        self._command, self._errors, self._progress = command, errors, progress
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._song_is_done = self._stopped = False

    def note(self, job: Json) -> None:
        """Look at the job, and start when its song can be streamed."""
        address = job.get("stream_url")
        if address and job["status"] != "queued" and not self._server.by_predict_alone:
            self._start(lambda: self._pipe_stream(str(address)))

    def finish(self, song: Path | None) -> None:
        """Wait for the end of the music. A song without a stream is played from its file. Ctrl-C ends the music."""
        self._song_is_done = True
        if song:
            self._start(lambda: self._pipe_file(song))
        if not self._thread or not self._process:
            return
        try:
            if song and self._process.poll() is None:
                self._progress.say(f"{song} is written; the music goes on, and Ctrl-C ends it")
            self._thread.join()
            self._process.wait()
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """End the player."""
        self._stopped = True
        if self._process and self._process.poll() is None:
            os.killpg(
                self._process.pid, signal.SIGKILL
            )  # with what it has started: some players are wrapped in scripts
            self._process.wait()

    def _start(self, pipe: Callable[[], None]) -> None:
        """Start the player, once, and a thread that pipes a song to it."""
        if not self._command or self._thread:
            return
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for the client, which ends the player
            )
        except OSError as error:
            self._progress.say(f"warning: --play: {self._command[0]} cannot be started: {error.strerror}")
            self._command = None
            return
        self._thread = threading.Thread(target=self._run, args=(pipe,), daemon=True)
        self._thread.start()

    def _run(self, pipe: Callable[[], None]) -> None:
        assert self._process and self._process.stdin
        try:
            pipe()
        except _PlayerEnded:
            if not self._stopped:
                self._progress.say(f"warning: --play: {self._ended()}; the song is written all the same")
        except (ClientError, OSError) as error:
            if not self._stopped:
                self._progress.say(f"warning: --play: the song cannot be played on: {error}")
        finally:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _ended(self) -> str:
        """How the player ended."""
        assert self._process and self._command
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{self._command[0]} ended with exit code {code}" + (f": {said[-1]}" if said else "")

    def _pipe_file(self, song: Path) -> None:
        with song.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                self._write(block)

    def _pipe_stream(self, address: str) -> None:
        """Pipe the whole stream, which goes on from where it was cut. Raises ClientError."""
        position, is_complete = 0, False
        while not is_complete and not self._stopped:
            stream = _Stream(position, self._write)
            try:
                headers = {"Range": f"bytes={position}-"} if position else {}
                is_complete = self._server.get(address, headers, stream.read)
            except Refused as error:
                if not position or error.problem.get("status") != BEHIND_THE_END:
                    raise
                is_complete = True
            except Unreachable:  # the first part of a song may take longer than any answer
                if self._song_is_done:
                    raise
                self._server.http.clock.sleep(SHORTEST_PAUSE_S)
            position = stream.position

    def _write(self, block: bytes) -> None:
        assert self._process and self._process.stdin
        try:
            self._process.stdin.write(block)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise _PlayerEnded("the player has ended") from None


class _PlayerEnded(ClientError):
    """Nobody listens any more."""


class _Stream:
    """Reads answers that begin at a position of the stream, or at its start."""

    def __init__(self, position: int, write: Callable[[bytes], None]) -> None:
        self.position, self._write = position, write

    def read(self, response: http.client.HTTPResponse) -> bool:
        """Write what is new of the answer, as it comes. Return True if that was the end of the stream."""
        content_range = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        is_part = response.status == PARTIAL and content_range is not None
        at = int(content_range[1]) if is_part and content_range else 0
        if at > self.position:
            raise Unreachable(f"the stream goes on at byte {at} instead of {self.position}", temporary=False)
        begin, is_whole = self.position, False
        try:
            while block := response.read1(BLOCK_BYTES):
                new = block[max(0, self.position - at) :]
                at += len(block)
                self._write(new)
                self.position += len(new)
            is_whole = True
        except (OSError, http.client.HTTPException):
            pass  # it was cut
        if is_part and content_range:
            is_whole = content_range[3] == str(self.position)
        elif (length := response.headers.get("Content-Length")) is not None:
            is_whole = at == int(length)
        if not is_whole and self.position == begin:
            raise Unreachable("the stream was cut")
        return is_whole
