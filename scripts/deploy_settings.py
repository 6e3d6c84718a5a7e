"""The settings of a deployment: one table, read from options, the environment and defaults, and checked.

It is independent of what they are used for.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
from collections.abc import Sequence

from deploy_commands import Failed, gcloud_project

INFERENCE_TIMEOUT_S = 3600  # the longest that a dedicated endpoint waits for an answer
KINDS = {  # of settings: what a value must match, and how an error says so
    "name": ("[a-z][a-z0-9-]{4,28}[a-z0-9]", "6 to 30 lower-case letters, digits and -"),
    "machine": ("[a-z0-9-]+", "a machine type such as g2-standard-16"),
    "region": ("[a-z]+-[a-z]+[0-9]+", "a region such as us-central1"),
    "bucket": ("[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", "a bucket's name, without gs://"),
    "mirror": ("gs://[a-z0-9][A-Za-z0-9._/-]+", "gs://BUCKET/FOLDER"),
    "model": ("[A-Za-z0-9._/@-]+", "en-cot, zh-icl, … or owner/name@revision"),
    "tag": ("[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", "letters, digits, _, . and -"),
    "requirement": ("torch[A-Za-z0-9.=<>~!+_-]*", "a requirement without commas such as torch==2.13.0"),
    "words": ("[A-Za-z0-9._:/=@+ -]+", "words of letters, digits, and . _ : / = @ + -"),
    "accelerator": ("l4|a100|a100-80gb|h100", "l4, a100, a100-80gb, h100"),
    "quantization": ("none|int8", "none, int8"),
    "choice": ("yes|no", "yes, no"),
    "number": ("[1-9][0-9]{0,5}", "a whole number from 1"),
    "count": ("[0-9]{1,5}", "a whole number from 0"),
    "token": ("[A-Za-z0-9_-]+", "letters, digits, _ and -"),
}
SETTINGS = {  # kind, default, meaning; each is an option, but for the token, and an environment variable
    "project_id": ("name", "", "the Google Cloud project (default: the one of gcloud)"),
    "region": ("region", "us-central1", "where everything is made"),
    "deployment_name": ("name", "yue-server", "the name of the model and the endpoint"),
    "repository": ("name", "", "Artifact Registry's repository for the image (default: DEPLOYMENT_NAME)"),
    "bucket": ("bucket", "", "the bucket for results (default: PROJECT_ID-DEPLOYMENT_NAME)"),
    "service_account": ("name", "", "the account that the server runs as (default: DEPLOYMENT_NAME)"),
    "yue_model": ("model", "en-cot", "the model"),
    "accelerator": ("accelerator", "a100", "l4, a100, a100-80gb or h100"),
    "machine_type": ("machine", "", "a machine with one such GPU (default: by ACCELERATOR)"),
    "spot": ("choice", "no", "yes: cheaper machines that may be taken away at any time"),
    "min_replicas": ("number", "1", "machines that always run"),
    "max_replicas": ("number", "", "machines at most (default: MIN_REPLICAS); a song keeps a GPU busy"),
    "image_tag": ("tag", "", "the image's tag (default: the commit)"),
    "rebuild": ("choice", "no", "yes: build the image even if this tag exists"),
    "bake_weights": ("choice", "no", "yes: put the weights into the image"),
    "weights": ("mirror", "", "gs://BUCKET/FOLDER with the weights, instead of the Hub"),
    "torch_requirement": ("requirement", "", "which torch is put into the image (default: the one of the Dockerfile)"),
    "pip_args": ("words", "", "more arguments for pip install in the build, as --pip-args='--pre …'"),
    "shared_memory_mb": ("number", "2048", "the container's /dev/shm"),
    "yue_max_queue": ("number", "", "songs that may wait (default: by ACCELERATOR)"),
    "yue_quantization": ("quantization", "none", "int8: stage 1 in half the memory, for l4"),
    "yue_max_songs": (
        "number",
        "",
        "songs generated together (default: 1 with l4 unless quantized, else as many as fit)",
    ),
    "yue_wait_seconds": (
        "number",
        "3540",
        "how long a request waits for its song; the endpoint closes the connection after 3600",
    ),
    "hf_token": ("token", "", "the Hub's token; never printed, but whoever may see the model can read it"),
    "poll_seconds": ("count", "15", "time between two checks of an operation of Google Cloud"),
    "wait_minutes": ("count", "130", "how long to wait for one operation"),
}
# Its names for gcloud and the quota, its machine, songs that may wait and songs generated together. The server measures
# how many of the latter fit; the smallest GPU is nearly full with one, unless stage 1 is quantized.
ACCELERATORS = {
    "l4": ("nvidia-l4", "l4", "g2-standard-16", "8", "1"),
    "a100": ("nvidia-tesla-a100", "a100", "a2-highgpu-1g", "16", ""),
    "a100-80gb": ("nvidia-a100-80gb", "a100_80gb", "a2-ultragpu-1g", "32", ""),
    "h100": ("nvidia-h100-80gb", "h100", "a3-highgpu-1g", "32", ""),
}


def make_parser(script: str, description: str) -> argparse.ArgumentParser:
    """The options of a script, with defaults from the environment."""
    parser = argparse.ArgumentParser(script, f"./{script} [OPTION…]", description, allow_abbrev=False)
    plan = "print every command and do nothing; needs neither gcloud nor a login"
    parser.add_argument("--dry-run", action="store_true", help=plan)
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    secret = f"HF_TOKEN in the environment alone: {SETTINGS['hf_token'][2]}"
    group = parser.add_argument_group("settings (--project-id is PROJECT_ID in the environment)", secret)
    for name, (kind, default, meaning) in SETTINGS.items():
        value = os.environ.get(name.upper()) or default
        if kind == "token":
            parser.set_defaults(hf_token=value)
        else:
            shown = f"{meaning} (default: {default})" if default else meaning
            group.add_argument(option_of(name), default=value, metavar="", help=shown)
    return parser


def option_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """All settings, checked, and the other arguments."""
    options = {option_of(name) for name in SETTINGS}
    for number, word in enumerate(words, start=1):
        behind = words[number] if number < len(words) else ""
        option, equals, value = word.partition("=")
        if option in options and not value and (equals or not behind or behind.startswith("--")):
            hint = "" if equals or not behind else f", or {option}={behind}"
            usage_error(f"{option}: got nothing; allowed: a value{hint}")
    settings, rest = parser.parse_known_args(words)
    if rest:
        usage_error(f"got '{rest[0].partition('=')[0]}'; allowed: the options that --help lists")
    _check(settings)  # before others are derived from them
    settings.project_id = settings.project_id or ("my-project" if settings.dry_run else gcloud_project())
    _fill(settings)
    _check(settings)
    if settings.bake_weights == "yes" and settings.weights:  # the server would prefer them to those in its image
        usage_error(f"WEIGHTS: got '{settings.weights}' with BAKE_WEIGHTS=yes; allowed: one of the two")
    if int(settings.min_replicas) > int(settings.max_replicas):
        usage_error(f"MAX_REPLICAS: got '{settings.max_replicas}'; allowed: {settings.min_replicas} or more")
    if int(settings.yue_wait_seconds) >= INFERENCE_TIMEOUT_S:
        allowed = f"1 to {INFERENCE_TIMEOUT_S - 1}"
        usage_error(f"YUE_WAIT_SECONDS: got '{settings.yue_wait_seconds}'; allowed: {allowed}")
    return settings


def usage_error(text: str) -> None:
    raise Failed(text, code=2)


def _check(settings: argparse.Namespace) -> None:
    for name, (kind, *_) in SETTINGS.items():
        (form, allowed), value = KINDS[kind], getattr(settings, name)
        if value and not re.fullmatch(form, value):
            usage_error(f"{name.upper()}: got {'a token' if kind == 'token' else repr(value)}; allowed: {allowed}")


def _fill(settings: argparse.Namespace) -> None:
    """Fill in the defaults that depend on other settings."""
    settings.gpu, settings.quota, machine, queue, songs = ACCELERATORS[settings.accelerator]
    settings.machine_type = settings.machine_type or machine
    settings.max_replicas = settings.max_replicas or settings.min_replicas
    settings.yue_max_queue = settings.yue_max_queue or queue
    settings.yue_max_songs = settings.yue_max_songs or (songs if settings.yue_quantization == "none" else "")
    settings.repository = settings.repository or settings.deployment_name
    settings.service_account = settings.service_account or settings.deployment_name
    settings.bucket = settings.bucket or f"{settings.project_id}-{settings.deployment_name}"
    if not settings.image_tag:
        settings.image_tag = _git("rev-parse", "--short=12", "HEAD") or "latest"
        if settings.image_tag == "latest" or _git("status", "--porcelain"):  # such files are built every time
            settings.image_tag, settings.rebuild = f"{settings.image_tag}-modified", "yes"
    if settings.bake_weights == "yes":
        settings.image_tag += "-" + re.sub("[/@]", "-", settings.yue_model)
    if settings.torch_requirement or settings.pip_args:
        settings.image_tag += "-" + checksum(settings.torch_requirement, settings.pip_args)


def _git(*words: str) -> str:
    try:
        return subprocess.run(("git", *words), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def checksum(*words: str) -> str:
    """A short text that changes with any of the words."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:10]
