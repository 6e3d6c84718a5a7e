"""The command line: generate a song on a YuE server, here or behind Vertex AI; look at its job, fetch it, cancel it.

It needs nothing but Python. It runs as `yue` where the package is installed, and as `client.py` in a checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from yue_client import __version__, checked, files, options, player, question, songs, values, vertex
from yue_client.address import DEFAULT_SERVER, server_address
from yue_client.errors import INTERRUPTED, ClientError, Failed, Forgotten, Json, Misused
from yue_client.progress import Progress, models_words
from yue_client.transport import Clock, Http, Server

BROKEN_PIPE = 141  # the exit code of shells for a reader that has gone, as in | head -1
RETRY_S = 600.0  # for songs and downloads, which take minutes; other requests are sent once
CANCEL_RETRY_S = 10.0  # somebody has pressed Ctrl-C and waits
MOST_REQUESTS = 3  # for one song, where its server restarts without its jobs
REQUEST_FIELDS = (
    *("genres", "lyrics", "segments", "seed", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"),
    *("guidance_scale", "format", "tracks", "model", "wait_seconds", "request_id", "deadline_seconds"),
)
WHAT = "Generate songs on a YuE server, here or behind Vertex AI; look at their jobs, fetch and cancel them."
EXAMPLES = """\
examples:
  {program} sing --genres 'folk calm female' --lyrics $'[verse]\\nThe kettle hums'
  {program} sing --genres 'metal male' --lyrics-file examples/lyrics.txt --out song.flac
  {program} status JOB_ID --url http://127.0.0.1:8080

all options of a command: {program} COMMAND --help
exit codes: 0 done, 1 failed, 2 wrong usage, 3 server not reached or busy, 4 refused, 5 no right, 130 Ctrl-C
"""
EXIT_CODES = """\
exit codes:
  0    done
  1    the song or the models failed, the song cannot be written, or checked lyrics are wrong
  2    wrong usage
  3    the server was not reached, or was too busy for all of --retry-seconds: try again later
  4    the server refused the request: change it
  5    no right to use the server: --api-key, or Google's login
  130  Ctrl-C; sing cancels its song first
  141  nobody reads the output any more

environment: YUE_URL, YUE_ENDPOINT, PROJECT_ID, REGION and YUE_API_KEY stand for options that are not given
"""


def run(program: str = "yue") -> int:
    """Run the command line and return its exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # half-written files are removed
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # for characters that the terminal's encoding lacks
    return main(program=program)


def main(argv: Sequence[str] | None = None, clock: Clock = time, program: str = "client.py") -> int:
    """Run one command and return its exit code. `program` is its name in help and errors."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json, progress = "--json" in words, Progress(sys.stderr, "--quiet" in words)
    try:
        try:
            arguments = _arguments(words, program)
            answer, text = arguments.command(_server(arguments, clock, progress), arguments, progress)
            if getattr(arguments, "out", None) == files.STANDARD_OUTPUT:
                progress.say(text)
            elif as_json or not arguments.quiet:
                _print(json.dumps(answer) if as_json else text)
            return int(answer.get("ok") is False)  # only a check has it
        except ClientError as error:
            progress.end()
            hint = f"\nhint: {error.hint}" if error.hint else ""
            print(f"{program}: {error}{hint}", file=sys.stderr)
            if as_json:
                _print(json.dumps({"error": error.as_dict()}))
            return error.exit_code
        except KeyboardInterrupt:
            progress.end()
            if as_json:
                _print(json.dumps({"error": {"detail": "interrupted", "exit_code": INTERRUPTED}}))
            return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE


def _print(text: str) -> None:
    """Write a line to the standard output. Raises BrokenPipeError, and Failed where it cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        raise Failed(f"the output cannot be written: {error.strerror}") from error


def _drop_output() -> None:
    """Discard the rest of the output, which Python would else try to write when it ends."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


Answer = tuple[Json, str]  # for scripts, for people


def sing(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """generate a song and write it to a file; Ctrl-C cancels it"""
    song = _song(arguments)
    _check_out(arguments, song.get("tracks") or ["mix"])
    job_id = ""
    try:
        with player.playing(server, arguments.play, progress) as music:
            for tries_left in reversed(range(MOST_REQUESTS)):
                job_id = server.predict(song)["job_id"]
                try:
                    return _followed(server, job_id, arguments, progress, music)
                except Forgotten as error:  # the server restarted without its jobs
                    if not tries_left:
                        raise
                    progress.pause(error, 0)
    except KeyboardInterrupt:
        progress.end()
        progress.say(_cancelled(server, job_id, song))
        raise
    raise AssertionError("tries never end without an answer")


def result(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """wait for a job that was started before, and write its song"""
    _check_out(arguments, ["mix"])
    try:
        with player.playing(server, arguments.play, progress) as music:
            return _fetched(server, arguments.job_id, arguments, progress, music)
    except KeyboardInterrupt:
        progress.end()
        progress.say(
            f"the job continues; fetch its song with: {arguments.program} result {arguments.job_id}{_where(arguments)}"
        )
        raise


def check(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """check lyrics: their sections, how long they will be, and what is wrong or doubtful"""
    fields = ("lyrics", "genres", "segments", "max_new_tokens")
    given = {name: value for name in fields if (value := getattr(arguments, name)) is not None}
    answer = server.predict({"operation": "check", **given})
    answer = answer if "genres" in given else checked.without_genres(answer)
    return answer, checked.words(answer)


def status(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """show the state of a job"""
    job, words, fraction = songs.look(server, arguments.job_id)
    problem = job.get("error") or {}
    why = f": {problem['detail']}" if problem.get("detail") else ""
    percentage = f"{fraction:.0%}, " if songs.has_progress(job) else ""
    return job, f"job {arguments.job_id}: {percentage}{words}{why}"


def cancel(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """cancel a queued or running job"""
    job = server.predict({"job_id": arguments.job_id, "operation": "cancel"})
    if job["status"] in songs.OPEN:
        more = ", being cancelled" if job.get("cancel_requested") else ""
    else:
        more = "" if job["status"] == "cancelled" else " already; there is nothing to cancel"
    return job, f"job {arguments.job_id}: {job['status']}{more}"


def delete(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """delete a finished job and its song; a job that is not finished is cancelled"""
    job = server.predict({"job_id": arguments.job_id, "operation": "delete"})
    done = (
        "deleted"
        if job.get("deleted")
        else f"{job['status']}; it was not finished, so it is cancelled: delete it again"
    )
    return job, f"job {arguments.job_id}: {done}"


def models(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """show the state of the server's models"""
    state = server.predict({"operation": "models/status"})
    return state, json.dumps(state, indent=2)


def download(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """have the server download and load models; after Ctrl-C it continues alone"""
    if arguments.cancel:
        answer = server.predict({"operation": "cancel-download"})
        return answer, str(answer["message"])
    options_given = {"model": arguments.model, "revision": arguments.revision, "force": arguments.force or None}
    asked = {name: value for name, value in options_given.items() if value is not None}
    question.confirm_download(server, arguments.model, arguments.yes, progress)
    answer = server.predict({"operation": "download-models", "wait": False, **asked})
    if answer.get("status") == "success" or arguments.no_wait:
        state = answer["models"]
    else:
        state = songs.follow_models(server, arguments.model, progress)
    words = models_words(state)[0] or state.get("status")
    return state, f"{state.get('model')} ({state.get('revision')}): {words}"


def _followed(
    server: Server, job_id: str, arguments: argparse.Namespace, progress: Progress, music: player.Player
) -> Answer:
    """Wait for a job that was just submitted, and write its song; if that fails, say how to fetch it later."""
    try:
        return _fetched(server, job_id, arguments, progress, music)
    except Forgotten:
        raise
    except ClientError as error:
        if "job_id" not in error.problem and not isinstance(error, Misused):  # the song did not fail
            fetch = f"the song is not lost; fetch it with: {arguments.program} result {job_id}{_where(arguments)}"
            error.hint = "; ".join(filter(None, (error.hint, fetch)))
        raise


def _where(arguments: argparse.Namespace) -> str:
    """The options that name the same server."""
    given = {name: getattr(arguments, name) for name in ("url", "endpoint", "project", "region")}
    return "".join(f" --{name} {value}" for name, value in given.items() if value)


def _fetched(
    server: Server, job_id: str, arguments: argparse.Namespace, progress: Progress, music: player.Player
) -> Answer:
    """Wait for a job, write its tracks, and let its music end."""
    job = songs.follow(server, job_id, progress, music.note)
    out = arguments.out or Path(f"song.{job['format']}")
    files.check_ending(out, job["format"], f"the song of job {job['job_id']} is")
    tracks = songs.Tracks(server, job)
    written = {}
    for index, track in enumerate(tracks.names):
        if out == files.STANDARD_OUTPUT:
            written[track] = _to_standard_output(tracks)
            break
        path = files.track_path(out, index, track)
        with files.written(path) as file:
            tracks.fetch(track, file)
            written[track] = files.placed(file, path, arguments.force)
        if written[track] != path and arguments.out:
            progress.say(f"warning: {path} exists already; the song is in {written[track]}")
    for warning in job.get("warnings", ()):
        progress.say(f"warning: {warning}")
    first = written[tracks.names[0]]
    music.finish(None if first == files.STANDARD_OUTPUT else first)
    what = f"{job['duration_seconds']:.1f} s, seed {job['seed']}, job {job['job_id']}"
    answer = {**job, "files": {track: str(path) for track, path in written.items()}}
    return answer, f"{', '.join(answer['files'].values())}: {what}"


def _to_standard_output(tracks: songs.Tracks) -> Path:
    """Write the only track there, whole. Raises Misused where there are several."""
    if len(tracks.names) > 1:
        raise Misused(f"--out: got -, but the song has the tracks {', '.join(tracks.names)}; allowed: a file")
    with tempfile.TemporaryFile() as file:
        tracks.fetch(tracks.names[0], file)
        files.to_standard_output(file)
    return files.STANDARD_OUTPUT


def _cancelled(server: Server, job_id: str, song: Json) -> str:
    """Cancel a song. Where its job is not known yet, the same request again names it."""
    server.http.retry_s = CANCEL_RETRY_S
    try:
        job_id = job_id or server.predict({**song, "wait_seconds": 0})["job_id"]
        job = server.predict({"job_id": job_id, "operation": "cancel"})
        soon = ", being cancelled" if job["status"] in songs.OPEN else ""
        return f"job {job_id}: {job['status']}{soon}"
    except ClientError as error:
        return f"the song could not be cancelled: {error}"


def _song(arguments: argparse.Namespace) -> Json:
    """The instance to send. A field that is not given is left to the server."""
    song = {name: value for name in REQUEST_FIELDS if (value := getattr(arguments, name)) is not None}
    song["genres"] = song["genres"].strip()
    song.setdefault("request_id", str(uuid.uuid4()))
    if arguments.out and files.ending(arguments.out):
        song.setdefault("format", files.ending(arguments.out))
        files.check_ending(arguments.out, song["format"], "--format is")
    parts = ("audio", "vocal", "instrumental", "start_seconds", "end_seconds")
    given = {part: value for part in parts if (value := getattr(arguments, f"reference_{part}")) is not None}
    reference = {f"{part}_uri" if values.is_address(value) else part: value for part, value in given.items()}
    return {**song, "reference": reference} if reference else song


def _check_out(arguments: argparse.Namespace, tracks: Sequence[str]) -> None:
    """Check, as far as possible before the song exists, that it can be written. Raises Misused."""
    if arguments.out != files.STANDARD_OUTPUT:
        files.check_place(arguments.out or Path("song.mp3"))
        if arguments.out and not arguments.force:
            files.check_free(arguments.out, tracks)
    elif arguments.json or len(tracks) > 1:
        other = "--json" if arguments.json else f"the tracks {', '.join(tracks)}"
        raise Misused(f"--out: got - together with {other}; allowed: a file")


def _server(arguments: argparse.Namespace, clock: Clock, progress: Progress) -> Server:
    http = Http(clock, arguments.retry_seconds, progress.pause)
    environment = {
        name: os.environ.get(name, "").strip() for name in ("YUE_URL", "YUE_ENDPOINT", "PROJECT_ID", "REGION")
    }
    api_key = arguments.api_key or values.api_key(os.environ.get("YUE_API_KEY", ""), "YUE_API_KEY") or None
    url = arguments.url
    if not url and not arguments.endpoint and environment["YUE_URL"]:
        url = server_address(environment["YUE_URL"], "YUE_URL")
    endpoint = arguments.endpoint or (None if url else environment["YUE_ENDPOINT"])
    if not endpoint:
        return Server(http, url or DEFAULT_SERVER, api_key)
    project, region = arguments.project or environment["PROJECT_ID"], arguments.region or environment["REGION"]
    return vertex.Endpoint(http, vertex.full_name(endpoint, project, region), api_key)


def _arguments(words: Sequence[str], program: str) -> argparse.Namespace:
    """The parsed words. Raises Misused."""
    commands = {
        sing: ("--genres TAGS --lyrics TEXT", [options.add_song, options.add_song_file, options.add_play], RETRY_S),
        result: ("JOB_ID", [options.add_job, options.add_file, options.add_play], RETRY_S),
        check: ("FILE", [options.add_lyrics], 0),
        status: ("JOB_ID", [options.add_job], 0),
        cancel: ("JOB_ID", [options.add_job], 0),
        delete: ("JOB_ID", [options.add_job], 0),
        models: ("", [], 0),
        download: ("", [options.add_download], RETRY_S),
    }
    listed = "\n".join(f"  {command.__name__:10}{command.__doc__}" for command in commands)
    examples = EXAMPLES.format(program=program)
    parser = options.Parser(program, "COMMAND", f"{WHAT}\n\ncommands:\n{listed}", examples)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    names = parser.add_subparsers(prog=parser.prog, required=True, help=argparse.SUPPRESS)
    for command, (usage, groups, retry_s) in commands.items():
        name = command.__name__
        one = names.add_parser(name, usage=usage, description=command.__doc__ or "", epilog=EXIT_CODES)
        one.set_defaults(command=command, program=program, retry_seconds=retry_s)
        for add in (*groups, options.add_server, options.add_shown):
            add(one)
    return parser.parse_args(options.command_first(names.choices, words, program))
