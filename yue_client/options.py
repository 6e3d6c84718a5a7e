"""The options of the command line: their names, groups and help. Wrong ones are refused with one line and a hint.

It is independent of what the commands do.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from yue_client import values
from yue_client.address import DEFAULT_SERVER, server_address
from yue_client.errors import Misused
from yue_client.files import FORMATS

TRACKS = ("mix", "vocal", "instrumental")
HELP = ("-h", "--help")
VERSION = "--version"
NUMBER = re.compile(r"-[\d.]")


class Parser(argparse.ArgumentParser):
    """Raises Misused for wrong arguments, instead of showing all of the usage."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            usage=" ".join(filter(None, (prog, usage, "[OPTIONS]"))),
            description=description,
            epilog=epilog,
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument(*HELP, action="help", help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Name the option and what is wrong with it."""
        text = re.sub(r"^argument (--[\w-]+)[^:]*: ", r"\1: ", message)
        raise Misused(text.replace("unrecognized arguments:", "not expected:"), f"all options: {self.prog} --help")

    def options(self, with_value: bool = False) -> set[str]:
        """The names of all options, or of those that take a value."""
        actions = [action for action in self._actions if not with_value or action.nargs != 0]
        return {name for action in actions for name in action.option_strings}


def command_first(commands: Mapping[str, Parser], words: Sequence[str], program: str) -> list[str]:
    """The words with the command in front, since options may precede it. Raises Misused, also for unknown options."""
    allowed = f"allowed: {', '.join(commands)}"
    with_value = {name for command in commands.values() for name in command.options(with_value=True)}
    free = [
        place
        for place, word in enumerate(words)
        if not word.startswith("-") and not (place and words[place - 1] in with_value)
    ]
    place = next((place for place in free if words[place] in commands), None)
    if place is None:
        for flag in (*HELP, VERSION):
            if flag in words:
                return [flag]
        if free:
            wrong = words[free[0]]
            raise Misused(f"got the command {wrong!r}; {allowed}", _nearest(wrong, commands))
        raise Misused(f"a command is missing; {allowed}", f"examples: {program} --help")
    found = [words[place], *words[:place], *words[place + 1 :]]
    _check_options(commands[words[place]], found)
    return found


def _check_options(command: Parser, words: Sequence[str]) -> None:
    """Check for unknown options first: their names explain more than what is missing without them."""
    known = command.options()
    for word in words[: words.index("--")] if "--" in words else words:
        name = word.partition("=")[0]
        is_option = name.startswith("-") and name != "-" and " " not in name and not NUMBER.match(name)
        if is_option and name not in known:
            hint = _nearest(name, known) or f"all options: {command.prog} --help"
            raise Misused(f"{command.prog} has no option {name}", hint)


def _nearest(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, sorted(known), 1)
    return f"did you mean {nearest[0]}?" if nearest else ""


def add_server(one: Parser) -> None:
    """Where the server is."""
    where = one.add_argument_group("where the server is")
    either = where.add_mutually_exclusive_group()
    hint = f"default: {DEFAULT_SERVER}"
    either.add_argument("--url", "--server", type=server_address, metavar="ADDRESS", help=hint)
    hint = (
        "an endpoint of Vertex AI: projects/P/locations/R/endpoints/E, or its id with --project and --region; "
        "/invoke behind it where the model was uploaded with invokeRoutePrefix"
    )
    either.add_argument("--endpoint", metavar="NAME", help=hint)
    where.add_argument("--project", help="of the endpoint")
    where.add_argument("--region", help="of the endpoint")
    hint = "better in YUE_API_KEY, where nobody sees it"
    where.add_argument("--api-key", type=values.api_key, metavar="KEY", help=hint)
    hint = "retry for up to SECONDS while the server is unavailable or busy (default: %(default)g)"
    where.add_argument("--retry-seconds", type=values.seconds, metavar="SECONDS", help=hint)


def add_shown(one: Parser) -> None:
    """What is shown."""
    shown = one.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="one JSON object on the output, an error's too")
    shown.add_argument("--quiet", action="store_true", help="errors only, and what --json says")


def add_song(one: Parser) -> None:
    """The song, and how it is generated."""
    _add_words(one.add_argument_group("the song"))
    _add_reference(one.add_argument_group("what it sounds like (models whose names end in -icl)"))
    _add_sampling(one.add_argument_group("how it is generated (allowed values: docs/api.md)"))
    waiting = one.add_argument_group("how long it may take")
    hint = "have the server refuse the song where it would take longer"
    waiting.add_argument("--deadline-seconds", type=values.seconds, metavar="SECONDS", help=hint)
    hint = "have the server wait so long before it answers (default: %(default)g; the state is polled)"
    waiting.add_argument("--wait-seconds", type=values.seconds, default=0.0, metavar="SECONDS", help=hint)
    hint = "the same id is the same song, generated once (default: a new one)"
    waiting.add_argument("--request-id", metavar="ID", help=hint)


def _add_words(words: Any) -> None:
    for name, metavar, hint in (
        ("genres", "TAGS", "tags: 'folk acoustic guitar calm female'"),
        ("lyrics", "TEXT", r"sections, each under a [tag]: $'[verse]\nLa la la'"),
    ):
        either = words.add_mutually_exclusive_group(required=True)
        either.add_argument(f"--{name}", type=values.text, metavar=metavar, help=hint)
        hint = "the same from a file; - is the standard input"
        either.add_argument(f"--{name}-file", type=values.text_file, dest=name, metavar="FILE", help=hint)


def _add_reference(reference: Any) -> None:
    for part, hint in (
        ("audio", "an audio file to continue, or its address: https:// or gs://"),
        ("vocal", "its vocal track"),
        ("instrumental", "its instrumental track"),
    ):
        option = "--reference" if part == "audio" else f"--reference-{part}"
        reference.add_argument(option, type=values.audio_file, dest=f"reference_{part}", metavar="FILE", help=hint)
    for part in ("start", "end"):
        dest = f"reference_{part}_seconds"
        reference.add_argument(f"--reference-{part}", type=values.number, dest=dest, metavar="SECONDS")


def _add_sampling(how: Any) -> None:
    how.add_argument("--model", help="refuse the song where another model is loaded")
    how.add_argument(
        "--segments", type=values.whole_number, metavar="N", help="generate the first N sections (default: all)"
    )
    hint = "the same seed gives the same song (default: drawn by the server)"
    how.add_argument("--seed", type=values.whole_number, metavar="N", help=hint)
    hint = "length of a section at most; 100 are a second"
    how.add_argument("--max-new-tokens", type=values.whole_number, metavar="N", help=hint)
    how.add_argument("--temperature", type=values.number, metavar="X", help="0 takes the likeliest token")
    how.add_argument("--top-p", type=values.number, metavar="X")
    how.add_argument("--top-k", type=values.whole_number, metavar="N")
    how.add_argument("--repetition-penalty", type=values.number, metavar="X")
    hint = "one for all, or one for the first section and one for the later ones"
    how.add_argument("--guidance-scale", type=values.number, nargs="+", metavar="X", help=hint)


def add_song_file(one: Parser) -> None:
    """The file of a new song, and its format."""
    add_file(one)
    shape = one.add_argument_group("what is in it")
    hint = f"{', '.join(FORMATS)} (default: as --out ends, or mp3)"
    shape.add_argument("--format", type=values.one_of(FORMATS), help=hint)
    hint = f"of {', '.join(TRACKS)}; the second one is song-vocal.mp3"
    shape.add_argument("--tracks", nargs="+", type=values.one_of(TRACKS), metavar="TRACK", help=hint)


def add_file(one: Parser) -> None:
    """The file of a song."""
    file = one.add_argument_group("the file")
    hint = "- is the standard output (default: song.mp3, or as the format is; if that is there, song-2.mp3)"
    file.add_argument("--out", "--output", type=values.output, metavar="FILE", help=hint)
    file.add_argument("--force", action="store_true", help="overwrite files that exist")


def add_play(one: Parser) -> None:
    """What is heard."""
    hint = "play the song while it is generated, with ffplay, mpv or VLC; the file is written as usual"
    one.add_argument_group("what is heard").add_argument("--play", action="store_true", help=hint)


def add_lyrics(one: Parser) -> None:
    """The lyrics to check, and what their length depends on."""
    one.add_argument("lyrics", type=values.text_file, metavar="FILE", help="the lyrics; - is the standard input")
    song = one.add_argument_group("the song")
    either = song.add_mutually_exclusive_group()
    either.add_argument("--genres", type=values.text, metavar="TAGS", help="check these too")
    either.add_argument("--genres-file", type=values.text_file, dest="genres", metavar="FILE", help="from a file")
    song.add_argument("--segments", type=values.whole_number, metavar="N", help="generate the first N sections")
    hint = "length of a section at most; 100 are a second"
    song.add_argument("--max-new-tokens", type=values.whole_number, metavar="N", help=hint)


def add_job(one: Parser) -> None:
    """The job."""
    one.add_argument("job_id", metavar="JOB_ID", help="as printed by sing and returned by the server")


def add_download(one: Parser) -> None:
    """The models to download."""
    which = one.add_argument_group("which models")
    which.add_argument("--model", help="another model than the configured one")
    which.add_argument("--revision", help="a branch, tag or commit of it")
    which.add_argument("--force", action="store_true", help="verify every file again")
    which.add_argument("--yes", action="store_true", help="do not ask, where the server has no GPU")
    either = which.add_mutually_exclusive_group()
    either.add_argument("--no-wait", action="store_true", help="only start the download")
    either.add_argument("--cancel", action="store_true", help="cancel the download")
