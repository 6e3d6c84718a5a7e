#!/usr/bin/env python3
"""The command line: sing a song on a YuE server, look at its job, fetch it, cancel it, see the models.

It knows nothing of models or audio, and needs nothing but Python: all it speaks is JSON with /predict.

Exit codes: 0 done, 1 the server refused or the song failed, 2 wrong usage, 3 the server was not reached, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]

DEFAULT_SERVER = "http://127.0.0.1:8080"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
SUFFIXES = {"audio/mpeg": "mp3", "audio/wav": "wav", "audio/flac": "flac", "audio/ogg": "ogg"}
FORMATS = tuple(SUFFIXES.values())
ANSWER_TIMEOUT_S = 120.0
POLL_S = 0.5
LOOKS = 10  # how many looks at a job may fail in a row before it is given up
BAR_WIDTH, PLAIN_STEPS = 30, 10  # where there is no terminal: a line for each tenth of the song
INTERRUPTED = 130  # what shells call Ctrl-C
STAGES = {"prompt": "reading the lyrics", "stage2": "filling in the sound", "decode": "decoding", "encode": "encoding"}


class Refused(Exception):
    """The server said no, or the song failed; the message is the server's."""

    exit_code = 1


class Unreachable(Exception):
    """No answer came."""

    exit_code = 3


def main(argv: Sequence[str] | None = None, poll_s: float = POLL_S) -> int:
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(Server(arguments.server, poll_s), arguments)
        return 0
    except (Refused, Unreachable) as error:
        print(f"client.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def sing(server: Server, arguments: argparse.Namespace) -> None:
    """Submit a song, follow it and write it; Ctrl-C cancels it."""
    suffix = _suffix(arguments.output) if arguments.output else ""
    wishes = {
        "genres": arguments.genres.strip(),
        "lyrics": arguments.lyrics,
        "segments": arguments.segments,
        "seed": arguments.seed,
        "format": arguments.format or (suffix if suffix in FORMATS else None),
        "wait_seconds": 0,
        "request_id": str(uuid.uuid4()),
    }
    song = {name: wish for name, wish in wishes.items() if wish is not None}
    arguments.job_id = server.predict(song)["job_id"]
    try:
        result(server, arguments)
    except KeyboardInterrupt:
        cancel(server, arguments)
        raise


def result(server: Server, arguments: argparse.Namespace) -> None:
    """Follow a job to its end and write its song."""
    job_id = arguments.job_id
    fetch = f"fetch it with: client.py result {job_id}"
    try:
        _follow(server, job_id)
        prediction = server.predict({"job_id": job_id, "operation": "result"}, tries=LOOKS)
        audio = server.audio(prediction)
        song_format = SUFFIXES[prediction["mime_type"]]
        output = arguments.output or Path(f"song.{song_format}")
        _write_atomically(output, audio)
    except Unreachable as error:
        raise Unreachable(f"{error}\nthe song may still be sung; {fetch}") from None
    except OSError as error:
        raise Refused(f"{error}\nthe song is still there; {fetch}") from error
    misnamed = [f"{output} holds {song_format}"] if _suffix(output) not in ("", song_format) else []
    for warning in [*prediction.get("warnings", ()), *misnamed]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{output}: {prediction['duration_seconds']:.1f} s, seed {prediction['seed']}, job {job_id}")


def status(server: Server, arguments: argparse.Namespace) -> None:
    """Say where a job stands."""
    label, fraction = _where(server, server.predict({"job_id": arguments.job_id, "operation": "status"}))
    print(f"job {arguments.job_id}: {fraction:.0%}, {label}")


def cancel(server: Server, arguments: argparse.Namespace) -> None:
    """Cancel a job, whether it waits or sings."""
    prediction = server.predict({"job_id": arguments.job_id, "operation": "cancel"}, may_have_failed=True)
    soon = " (cancelled soon)" if prediction.get("cancel_requested") else ""
    print(f"job {arguments.job_id}: {prediction['status']}{soon}", file=sys.stderr)


def models(server: Server, arguments: argparse.Namespace) -> None:
    """Show what the server knows of its models."""
    print(json.dumps(server.predict({"operation": "models/status"}), indent=2))


class Server:
    """A YuE server, spoken to through /predict alone: one instance there, one prediction back."""

    def __init__(self, address: str, poll_s: float) -> None:
        self.address, self.poll_s = address.rstrip("/"), poll_s
        # A proxy meant for the outside world cannot reach this very machine.
        local = urllib.parse.urlsplit(address).hostname in LOOPBACK_HOSTS
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))

    def predict(self, instance: Json, tries: int = 1, may_have_failed: bool = False) -> Json:
        """The prediction for one instance; a prediction that is an error raises Refused, unless it is expected."""
        body = json.dumps({"instances": [instance]}).encode()
        request = urllib.request.Request(f"{self.address}/predict", body, {"Content-Type": "application/json"})
        answer = self._open(request, tries)
        try:
            prediction: Json = json.loads(answer)["predictions"][0]
            problem = prediction.get("error")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Refused(f"{self.address} does not answer like a YuE server: {answer[:80]!r}") from None
        if problem and not (may_have_failed and "status" in prediction):
            raise Refused(_problem_text(problem))
        return prediction

    def audio(self, prediction: Json) -> bytes:
        """The bytes of a finished song, from within the prediction or from where it points to."""
        if "audio" in prediction:
            return base64.b64decode(prediction["audio"])
        if "url" in prediction:
            where = urllib.parse.urljoin(f"{self.address}/", prediction["url"])
            return self._open(urllib.request.Request(where), LOOKS)
        raise Refused(f"the song is not in the answer; it lies at {prediction.get('audio_uri', 'no known place')}")

    def _open(self, request: urllib.request.Request, tries: int) -> bytes:
        while True:
            tries -= 1
            try:
                with self._opener.open(request, timeout=ANSWER_TIMEOUT_S) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                raise Refused(_refusal(error)) from None
            except (OSError, http.client.HTTPException) as error:
                if tries <= 0:
                    reason = getattr(error, "reason", None) or error
                    raise Unreachable(f"no answer from {self.address}: {reason}") from error
                time.sleep(self.poll_s)


def _follow(server: Server, job_id: str) -> None:
    """Show the way of a job until it has succeeded."""
    shown = ""
    try:
        while True:
            job = server.predict({"job_id": job_id, "operation": "status"}, tries=LOOKS)
            shown = _show(*_where(server, job), shown)
            if job["status"] == "succeeded":
                return
            if job["status"] not in ("queued", "running"):
                raise Refused(f"job {job_id}: {job['status']}")
            time.sleep(server.poll_s)
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _show(label: str, fraction: float, shown: str) -> str:
    """A bar that moves on a terminal; elsewhere a line, unless that step was `shown` last. Returns the step."""
    step = f"{label.split(',')[0]} {int(fraction * PLAIN_STEPS)}"
    if sys.stderr.isatty():
        bar = ("#" * round(fraction * BAR_WIDTH)).ljust(BAR_WIDTH, "-")
        line = f"[{bar}] {fraction:4.0%} {label}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
    elif step != shown:
        print(f"{fraction:4.0%} {label}", file=sys.stderr, flush=True)
    return step


def _where(server: Server, job: Json) -> tuple[str, float]:
    """A few words on what a job is doing, and how much of it is done, 0 … 1."""
    progress = job.get("progress") or {}
    if job["status"] not in ("queued", "running"):
        return job["status"], float(job["status"] == "succeeded")
    stage = progress.get("stage")
    if job["status"] == "queued" or not stage:
        return f"waiting{_models_words(server.predict({'operation': 'models/status'}, tries=LOOKS))}", 0.0
    words = STAGES.get(stage, f"singing section {progress.get('section')} of {progress.get('sections')}")
    seconds_left = progress.get("seconds_left")
    left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
    return f"{words}{left}", progress.get("fraction", 0.0)


def _models_words(models_status: Json) -> str:
    """What the models keep a song waiting with; nothing once they are ready."""
    state = models_status.get("status")
    if state == "loading":
        return f" for the models: loading {models_status.get('loading') or ''}".rstrip()
    if state != "downloading":
        return ""
    download = models_status.get("download") or {}
    total = download.get("bytes_total")
    return " for the models: downloading" + (f" {download['bytes_done'] / total:.0%}" if total else "")


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        with error:
            return _problem_text(json.loads(error.read()))
    except (ValueError, OSError, http.client.HTTPException):
        return f"{error.url} answered {error.code} {error.reason}"


def _problem_text(problem: Any) -> str:
    """An RFC 9457 problem in words, with the problems it lists."""
    if not isinstance(problem, dict):
        return str(problem)
    own = str(problem.get("detail") or problem.get("title") or problem)
    each = [_problem_text(part) for part in problem.get("errors", ())]
    return "\n".join([own, *(text for text in each if text not in own)])


def _suffix(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _text_file(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{error}; allowed: a text file in UTF-8") from error


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


def _parser() -> argparse.ArgumentParser:
    anywhere = argparse.ArgumentParser(add_help=False)
    anywhere.add_argument("--server", type=_address, default=DEFAULT_SERVER, help="default: %(default)s")
    job = argparse.ArgumentParser(add_help=False)
    job.add_argument("job_id")
    song = argparse.ArgumentParser(add_help=False)
    song.add_argument("--output", type=_output, metavar="FILE", help="default: song.mp3, or as the format is")

    what, *_, exit_codes = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=what, epilog=exit_codes)
    commands = parser.add_subparsers(required=True, metavar="{sing,result,status,cancel,models}")

    def add(command: Any, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        one = commands.add_parser(command.__name__, parents=[anywhere, *parents], help=command.__doc__)
        one.set_defaults(command=command)
        return one

    singing = add(sing, song)
    for name, hint in (("genres", "tags: 'folk acoustic guitar calm female'"), ("lyrics", "sections under [tags]")):
        either = singing.add_mutually_exclusive_group(required=True)
        either.add_argument(f"--{name}", help=hint)
        either.add_argument(f"--{name}-file", type=_text_file, dest=name, metavar="FILE", help="the same from a file")
    singing.add_argument("--segments", type=int, metavar="N", help="sing the first N sections (default: all)")
    singing.add_argument("--seed", type=int, help="sing the same song again (default: drawn by the server)")
    singing.add_argument("--format", choices=FORMATS, help="default: as --output ends, or mp3")
    add(result, job, song)
    add(status, job)
    add(cancel, job)
    add(models)
    return parser


if __name__ == "__main__":
    sys.exit(main())
