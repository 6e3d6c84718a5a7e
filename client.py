#!/usr/bin/env python3
"""The command line: sing a song on a YuE server, here or behind Vertex AI; look at its job, fetch it, cancel it.

It knows nothing of models or audio, and needs nothing but Python: its parts are in `yue_client/`, beside this file.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import signal
import sys
import time
import urllib.parse
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yue_client import files, songs, vertex
from yue_client.errors import INTERRUPTED, ClientError, Forgotten, Json, Misused
from yue_client.progress import Progress, models_words
from yue_client.transport import Clock, Http, Server

DEFAULT_SERVER = "http://127.0.0.1:8080"
FORMATS = ("mp3", "wav", "flac", "ogg")
TRACKS = ("mix", "vocal", "instrumental")
PATIENCE_S = 600.0  # for songs, which may be the work of minutes; a glance is done at once or not at all
CANCEL_PATIENCE_S = 10.0  # somebody has pressed Ctrl-C and waits
NEVER_FORGOTTEN = 3  # a song that its server has forgotten is asked for so often
REQUEST_FIELDS = (
    *("genres", "lyrics", "segments", "seed", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"),
    *("guidance_scale", "format", "tracks", "model", "wait_seconds", "request_id", "deadline_seconds"),
)
EXIT_CODES = """\
exit codes:
  0    done
  1    the song or the models failed, or the song cannot be written
  2    wrong usage
  3    the server was not reached, or was too busy for all of --patience: try again later
  4    the server refused the request: change it
  5    no right to use the server: --api-key, or Google's login
  130  Ctrl-C; sing cancels its song first

environment: YUE_URL, YUE_ENDPOINT, PROJECT_ID, REGION and YUE_API_KEY stand for options that are not given
"""


def main(argv: Sequence[str] | None = None, clock: Clock = time) -> int:
    """Do one command; its exit code."""
    arguments = _parser().parse_args(argv)
    progress = Progress(sys.stderr, arguments.quiet)
    try:
        answer, text = arguments.command(_server(arguments, clock, progress), arguments, progress)
        if arguments.json or not arguments.quiet:
            print(json.dumps(answer) if arguments.json else text, flush=True)
        return 0
    except ClientError as error:
        progress.end()
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"client.py: {error}{hint}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"error": error.as_dict()}), flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        progress.end()
        if arguments.json:
            print(json.dumps({"error": {"detail": "interrupted", "exit_code": INTERRUPTED}}), flush=True)
        return INTERRUPTED


Answer = tuple[Json, str]  # for scripts, for people


def sing(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """sing a song and write it to a file; Ctrl-C cancels it"""
    song = _song(arguments)
    if arguments.out and not arguments.force:
        files.check_free(arguments.out, song.get("tracks") or ["mix"])
    job_id = ""
    try:
        for tries_left in reversed(range(NEVER_FORGOTTEN)):
            job_id = server.predict(song)["job_id"]
            try:
                return _followed(server, job_id, arguments, progress)
            except Forgotten as error:  # the server was begun anew with nothing of what it knew
                if not tries_left:
                    raise
                progress.pause(error, 0)
    except KeyboardInterrupt:
        progress.end()
        progress.say(_cancelled(server, job_id, song))
        raise
    raise AssertionError("tries never end without an answer")


def result(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """wait for a job that was begun before, and write its song"""
    if arguments.out and not arguments.force:
        files.check_free(arguments.out, ["mix"])
    return _followed(server, arguments.job_id, arguments, progress)


def status(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """say where a job stands"""
    job, words, fraction = songs.look(server, arguments.job_id)
    problem = job.get("error") or {}
    why = f": {problem['detail']}" if problem.get("detail") else ""
    return job, f"job {arguments.job_id}: {fraction:.0%}, {words}{why}"


def cancel(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """cancel a job, whether it waits or sings"""
    job = server.predict({"job_id": arguments.job_id, "operation": "cancel"})
    soon = " (cancelled soon)" if job.get("cancel_requested") and job["status"] in songs.OPEN else ""
    return job, f"job {arguments.job_id}: {job['status']}{soon}"


def delete(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """have the server forget a finished job and its song; one that is not finished is cancelled"""
    job = server.predict({"job_id": arguments.job_id, "operation": "delete"})
    done = "deleted" if job.get("deleted") else f"{job['status']}, not finished before, so not deleted"
    return job, f"job {arguments.job_id}: {done}"


def models(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """show what the server knows of its models"""
    state = server.predict({"operation": "models/status"})
    return state, json.dumps(state, indent=2)


def download(server: Server, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """have the server fetch and load its models, or another one's; Ctrl-C leaves it at that"""
    if arguments.cancel:
        answer = server.predict({"operation": "cancel-download"})
        return answer, str(answer["message"])
    wishes = {"model": arguments.model, "revision": arguments.revision, "force": arguments.force or None}
    asked = {name: wish for name, wish in wishes.items() if wish is not None}
    answer = server.predict({"operation": "download-models", "wait": False, **asked})
    if answer.get("status") == "success" or arguments.no_wait:
        state = answer["models"]
    else:
        state = songs.follow_models(server, arguments.model, progress)
    words = models_words(state)[0] or state.get("status")
    return state, f"{state.get('model')} ({state.get('revision')}): {words}"


def _followed(server: Server, job_id: str, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """Wait for a job and write its song."""
    try:
        return _fetched(server, songs.follow(server, job_id, progress), arguments, progress)
    except Forgotten:
        raise
    except ClientError as error:
        if "job_id" not in error.problem:  # the song did not fail
            error.hint = f"the song is not lost; fetch it with: client.py result {job_id}"
        raise


def _fetched(server: Server, job: Json, arguments: argparse.Namespace, progress: Progress) -> Answer:
    """Write the tracks of a finished job."""
    tracks = songs.Tracks(server, job)
    out = arguments.out or Path(f"song.{job['format']}")
    lie = {}
    for index, track in enumerate(tracks.names):
        path = files.track_path(out, index, track)
        with files.written(path) as file:
            tracks.fetch(track, file)
            lie[track] = files.placed(file, path, arguments.force)
        if lie[track] != path and arguments.out:
            progress.say(f"warning: {path} exists already; the song is in {lie[track]}")
    misnamed = [f"{out} holds {job['format']}"] if _suffix(out) not in ("", job["format"]) else []
    for warning in [*job.get("warnings", ()), *misnamed]:
        progress.say(f"warning: {warning}")
    what = f"{job['duration_seconds']:.1f} s, seed {job['seed']}, job {job['job_id']}"
    answer = {**job, "files": {track: str(path) for track, path in lie.items()}}
    return answer, f"{', '.join(answer['files'].values())}: {what}"


def _cancelled(server: Server, job_id: str, song: Json) -> str:
    """Cancel a song. If its job is not known yet, asking for the same song tells it."""
    server.http.patience_s = CANCEL_PATIENCE_S
    try:
        job_id = job_id or server.predict({**song, "wait_seconds": 0})["job_id"]
        job = server.predict({"job_id": job_id, "operation": "cancel"})
        soon = " (cancelled soon)" if job["status"] in songs.OPEN else ""
        return f"job {job_id}: {job['status']}{soon}"
    except ClientError as error:
        return f"the song could not be cancelled: {error}"


def _song(arguments: argparse.Namespace) -> Json:
    """The instance that is asked for: what was not wished for is left to the server."""
    song = {name: wish for name in REQUEST_FIELDS if (wish := getattr(arguments, name)) is not None}
    song["genres"] = song["genres"].strip()
    song.setdefault("request_id", str(uuid.uuid4()))
    if arguments.out and _suffix(arguments.out) not in ("", *FORMATS):
        raise Misused(f"--out: got {arguments.out}; allowed: a name that ends in one of {', '.join(FORMATS)}")
    if arguments.out and _suffix(arguments.out) in FORMATS:
        song.setdefault("format", _suffix(arguments.out))
    parts = ("audio", "vocal", "instrumental", "start_seconds", "end_seconds")
    given = {part: value for part in parts if (value := getattr(arguments, f"reference_{part}")) is not None}
    reference = {f"{part}_uri" if _is_address(value) else part: value for part, value in given.items()}
    return {**song, "reference": reference} if reference else song


def _server(arguments: argparse.Namespace, clock: Clock, progress: Progress) -> Server:
    http = Http(clock, arguments.patience, progress.pause)
    environment = {name: os.environ.get(name) or None for name in ("YUE_URL", "YUE_ENDPOINT", "PROJECT_ID", "REGION")}
    try:
        api_key = _api_key(arguments.api_key or os.environ.get("YUE_API_KEY") or "") or None
        url = arguments.url or (environment["YUE_URL"] and _address(environment["YUE_URL"]))
    except argparse.ArgumentTypeError as error:
        raise Misused(str(error)) from None
    endpoint = arguments.endpoint or (None if url else environment["YUE_ENDPOINT"])
    if not endpoint:
        return Server(http, url or DEFAULT_SERVER, api_key)
    project, region = arguments.project or environment["PROJECT_ID"], arguments.region or environment["REGION"]
    return vertex.Endpoint(http, vertex.full_name(endpoint, project, region), api_key)


def _suffix(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _text_file(name: str) -> str:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{error}; allowed: a text file in UTF-8, or - for the input") from error


def _is_address(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "gs://"))


def _audio_file(name: str) -> str:
    """A file as base64; an address as it is, for the server to fetch from."""
    if _is_address(name):
        return name
    try:
        return base64.b64encode(Path(name).read_bytes()).decode()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{error}; allowed: an audio file, or its address") from error


def _output(name: str) -> Path:
    """A file that can be written: better found out before the song is sung than after."""
    path = Path(name)
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"got {name!r}; allowed: a file in a folder that can be written to")
    return path


def _address(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: an address such as {DEFAULT_SERVER}")
    return text


def _api_key(text: str) -> str:
    if not all("!" <= character <= "~" for character in text):
        raise argparse.ArgumentTypeError("the API key: allowed: visible ASCII characters")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number of seconds from 0")
    return seconds


def _parser() -> argparse.ArgumentParser:
    what = (__doc__ or "").partition("\n")[0]
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=what, epilog=EXIT_CODES, formatter_class=layout)
    names = "{sing,result,status,cancel,delete,models,download}"
    commands = parser.add_subparsers(required=True, metavar=names)

    def add(command: Callable[..., Answer], patience_s: float = 0) -> argparse.ArgumentParser:
        hint = command.__doc__ or ""
        one = commands.add_parser(
            command.__name__, help=hint, description=hint, epilog=EXIT_CODES, formatter_class=layout
        )
        one.set_defaults(command=command)
        _add_common(one, patience_s)
        return one

    singing = add(sing, PATIENCE_S)
    _add_song(singing)
    _add_out(singing)
    fetching = add(result, PATIENCE_S)
    for one in (fetching, add(status), add(cancel), add(delete)):
        one.add_argument("job_id")
    _add_out(fetching)
    add(models)
    _add_download(add(download, PATIENCE_S))
    return parser


def _add_common(one: Any, patience_s: float) -> None:
    where = one.add_argument_group("where the server is")
    either = where.add_mutually_exclusive_group()
    either.add_argument("--url", "--server", type=_address, metavar="ADDRESS", help=f"default: {DEFAULT_SERVER}")
    hint = (
        "an endpoint of Vertex AI: projects/P/locations/R/endpoints/E, or its id with --project and --region; "
        "/invoke behind it where the model was uploaded with invokeRoutePrefix"
    )
    either.add_argument("--endpoint", metavar="NAME", help=hint)
    where.add_argument("--project", help="of the endpoint")
    where.add_argument("--region", help="of the endpoint")
    where.add_argument("--api-key", type=_api_key, metavar="KEY", help="better in YUE_API_KEY, where nobody sees it")
    hint = "go on for so long while the server is away or busy (default: %(default)g)"
    where.add_argument("--patience", type=_seconds, default=patience_s, metavar="SECONDS", help=hint)
    shown = one.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="one JSON object on the output, an error's too")
    shown.add_argument("--quiet", action="store_true", help="errors only, and what --json says")


def _add_out(one: Any) -> None:
    hint = "default: song.mp3, or as the format is, or a free name beside it; a second track is song-vocal.mp3"
    one.add_argument("--out", "--output", type=_output, metavar="FILE", help=hint)
    one.add_argument("--force", action="store_true", help="overwrite files that exist")


def _add_song(one: Any) -> None:
    words = one.add_argument_group("the song (what is allowed: README, API)")
    for name, hint in (("genres", "tags: 'folk acoustic guitar calm female'"), ("lyrics", "sections under [tags]")):
        either = words.add_mutually_exclusive_group(required=True)
        either.add_argument(f"--{name}", help=hint)
        file_hint = "the same from a file; - is the input"
        either.add_argument(f"--{name}-file", type=_text_file, dest=name, metavar="FILE", help=file_hint)
    words.add_argument("--segments", type=int, metavar="N", help="sing the first N sections (default: all)")
    words.add_argument("--seed", type=int, help="sing the same song again (default: drawn by the server)")
    words.add_argument("--format", choices=FORMATS, help="default: as --out ends, or mp3")
    words.add_argument("--tracks", nargs="+", choices=TRACKS, metavar="TRACK", help=f"of {', '.join(TRACKS)}")
    for option, kind in (("max-new-tokens", int), ("temperature", float), ("top-p", float), ("top-k", int)):
        words.add_argument(f"--{option}", type=kind, metavar="N")
    words.add_argument("--repetition-penalty", type=float, metavar="N")
    words.add_argument(
        "--guidance-scale", type=float, nargs="+", metavar="N", help="one, or first section and later ones"
    )
    words.add_argument("--model", help="refuse to be sung by another")
    for part, hint in (
        ("audio", "an audio file to continue, or its address: https:// or gs://"),
        ("vocal", "its voice"),
        ("instrumental", "the rest"),
    ):
        option = "--reference" if part == "audio" else f"--reference-{part}"
        words.add_argument(option, type=_audio_file, dest=f"reference_{part}", metavar="FILE", help=hint)
    for part in ("start", "end"):
        words.add_argument(f"--reference-{part}", type=float, dest=f"reference_{part}_seconds", metavar="SECONDS")
    hint = "let the server give the song up when it takes longer"
    words.add_argument("--deadline-seconds", type=_seconds, metavar="SECONDS", help=hint)
    hint = "let the server wait so long before it answers (default: %(default)g, it is asked how far it is)"
    words.add_argument("--wait-seconds", type=_seconds, default=0.0, metavar="SECONDS", help=hint)
    words.add_argument(
        "--request-id", metavar="ID", help="the same id is the same song, sung once (default: a new one)"
    )


def _add_download(one: Any) -> None:
    one.add_argument("--model", help="another model than the one that is set up")
    one.add_argument("--revision", help="a branch, tag or commit of it")
    one.add_argument("--force", action="store_true", help="prove every file anew")
    either = one.add_mutually_exclusive_group()
    either.add_argument("--no-wait", action="store_true", help="only begin")
    either.add_argument("--cancel", action="store_true", help="end what is being fetched")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # half-written files are cleared away
    sys.exit(main())
