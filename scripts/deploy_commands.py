"""Prints, runs, retries and waits for commands of gcloud and curl, and reads their answers.

It is independent of what the commands are for. A command is a text whose words have no spaces, and further words.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

MOST_TRIES = 6  # in a row, for changes that Google Cloud takes seconds to spread, and for lost answers
PRINT_TOKEN = "gcloud auth print-access-token"
ENVIRONMENT = {**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}  # a question here would wait for ever


class Failed(Exception):
    """A step did not work; the text says why and what to do, the code is the one to exit with."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class Refused(Failed):
    """Google Cloud refuses a request."""


class Commands:
    """Runs commands on Google Cloud, or in a dry run only prints them."""

    title = ""  # the step's, for what goes wrong in it

    def __init__(self, settings: argparse.Namespace, again: str) -> None:
        self.settings, self.dry_run, self.again = settings, settings.dry_run, again

    @classmethod
    def step(cls, title: str) -> None:
        cls.title = f"{title}: "
        print(f"\n# {title}")

    def run(self, command: str, *words: str) -> None:
        """Print and run a command. Raises Failed where it fails."""
        printed = self._printed(command, *words)
        if not self.dry_run and subprocess.run(printed, env=ENVIRONMENT).returncode:
            raise Failed(f"this failed, see above for the reason; fix it and {self.again}, what exists is reused")

    def patiently(self, command: str) -> None:
        """As `run`, for changes that Google Cloud takes seconds to spread."""
        for _ in range(0 if self.dry_run else MOST_TRIES - 1):
            if do(self._words(command)).returncode == 0:
                self._printed(command)
                return
            time.sleep(int(self.settings.poll_seconds))
        self.run(command)

    def find(self, command: str) -> Any:
        """The answer, None when what the command is about does not exist. A dry run finds nothing."""
        words = self._printed(command)
        if self.dry_run:
            return None
        done = do(words)
        if done.returncode == 0:
            return self._read(done.stdout) if "--format=json" in words else done.stdout
        if re.search("not[ _]found|does not exist|matched no objects", done.stderr, re.IGNORECASE):
            return None
        sys.stderr.write(done.stderr)
        raise Failed("this could not be looked up, see above for the reason")

    def run_operation(self, command: str) -> None:
        """As `run`, for what Google Cloud does in the background, until that is done.

        gcloud waits for some of these not at all, and for the others 30 minutes, after which they go on: the operation
        tells how it ends.
        """
        words = self._printed(f"{command} --format=json")
        if self.dry_run:
            return self.wait_for("OPERATION_ID")
        with tempfile.TemporaryFile("w+") as output:
            with subprocess.Popen(words, env=ENVIRONMENT, stdout=output, stderr=subprocess.PIPE, text=True) as gcloud:
                said = "".join(line for line in gcloud.stderr or () if sys.stderr.write(line))
            output.seek(0)
            answer = output.read()
        if gcloud.returncode:
            operation = re.search(r"Waiting for operation \[(\d+)\]", said)
            if not operation:
                raise Failed(f"this failed, see above for the reason; fix it and {self.again}")
        else:
            operation = re.search(r'"name": *"[^"]+/operations/([^"/]+)"', answer)
        if operation:
            self.wait_for(operation[1])

    def wait_for(self, operation: str) -> None:
        """Poll an operation until it is done."""
        command = f"gcloud ai operations describe {operation} --region={self.settings.region} --format=json"
        words, minutes, misses = self._printed(command), int(self.settings.wait_minutes), 0
        deadline = time.monotonic() + minutes * 60
        while not self.dry_run:
            done = do(words)
            misses = misses + 1 if done.returncode else 0
            if misses == MOST_TRIES:
                sys.stderr.write(done.stderr)
                raise Failed(f"the operation {operation} cannot be seen; it goes on, {self.again} to wait for it")
            answer = {} if misses else self._read(done.stdout)
            if "error" in answer:
                raise Failed(answer["error"].get("message") or str(answer["error"]))
            if answer.get("done"):
                return
            if time.monotonic() >= deadline:
                on = f"it goes on, {self.again} to wait for it (operation {operation})"
                raise Failed(f"not done after {minutes} minutes; {on}")
            time.sleep(int(self.settings.poll_seconds))

    def rest(self, method: str, address: str, body: Any = None) -> Any:
        """The answer to a request that gcloud cannot make; an empty one in a dry run. Raises Refused."""
        words = ["curl", "--silent", "--show-error", "--request", method]
        if body is not None:
            words += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        print(f'{self._quoted(words)} --header "Authorization: Bearer $({PRINT_TOKEN})" {self._quoted([address])}')
        if self.dry_run:
            return {}
        # The token goes through a pipe: every user of this machine can see a command's arguments.
        words += ["--header", "@-", "--write-out", r"\n%{http_code}", address]
        done = do(words, f"Authorization: Bearer {access_token()}\n")
        if done.returncode:
            raise Failed(f"no answer from {address}: {done.stderr.strip()}")
        answer, _, status = done.stdout.rpartition("\n")
        if not status.startswith("2"):
            raise Refused(answer)
        return self._read(answer)

    def _words(self, command: str, *words: str) -> list[str]:
        return [*command.split(), *words, f"--project={self.settings.project_id}"]

    def _printed(self, command: str, *words: str) -> list[str]:
        printed = self._words(command, *words)
        print(self._quoted(printed))
        return printed

    def _quoted(self, words: Sequence[str]) -> str:
        """The words as a shell reads them, the secret masked."""
        secret, plain = self.settings.hf_token, re.compile("[A-Za-z0-9_./:=,@%+-]+")
        masked = [word.replace(secret, "***") if secret else word for word in words]
        return " ".join(w if plain.fullmatch(w) else "'" + w.replace("'", r"'\''") + "'" for w in masked)

    @staticmethod
    def _read(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise Failed(f"cannot make sense of this answer: {text}") from None


def do(words: Sequence[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without printing it."""
    check_tool(words[0])
    return subprocess.run(words, env=ENVIRONMENT, input=given, capture_output=True, text=True)


def check_tool(tool: str) -> None:
    if not shutil.which(tool):
        raise Failed(f"{tool} is missing; install it (gcloud is part of the Google Cloud SDK)")


def check_login() -> None:
    check_tool("gcloud")
    check_tool("curl")
    access_token()


def access_token() -> str:
    done = do(PRINT_TOKEN.split())
    if done.returncode:
        raise Failed(f"there is no login: {done.stderr.strip()}; run: gcloud auth login")
    return done.stdout.strip()


def gcloud_project() -> str:
    project = do(["gcloud", "config", "get-value", "project"]).stdout.strip()
    if project in ("", "(unset)"):
        raise Failed("PROJECT_ID: got nothing; give --project-id=PROJECT or run: gcloud config set project PROJECT")
    return project
