"""Asks before a server without a GPU downloads weights that need one."""

from __future__ import annotations

import re
import sys

from yue_client.errors import ClientError, Json, Refused, Unauthorized
from yue_client.progress import Progress
from yue_client.transport import Server

REAL_WEIGHTS = re.compile(r"[a-z-]+-(cot|icl)|.+/.+")  # matches neither `tiny`, which needs no GPU, nor a misspelt name
BEGUN = ("downloading", "loading", "ready")
WITHOUT_GPU = (
    "some 16 GB are fetched if they are not there, but the server has no GPU: on a CPU, 30 s of music take about 1 "
    "hour and a song of 3 minutes about 6 hours (an estimate), and about 35 GB of main memory are needed"
)


def confirm_download(server: Server, model: str | None, yes: bool, progress: Progress) -> None:
    """Warn, and on a terminal ask, unless `yes`. Raises ClientError where the answer is no."""
    try:
        state = server.predict({"operation": "models/status"})
    except (Refused, Unauthorized):
        return  # the state may be closed to this client; the download itself may be allowed
    name = model or str(state.get("model"))
    if state.get("gpu", True) or not REAL_WEIGHTS.fullmatch(name) or _has_begun(state, name):
        return
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        progress.say(f"warning: {name}: {WITHOUT_GPU}")
        return
    print(f"{name}: {WITHOUT_GPU}.\nGo on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ClientError("nothing was downloaded", "--yes goes on without a question")


def _has_begun(state: Json, name: str) -> bool:
    return any(each.get("model") == name and each.get("status") in BEGUN for each in (state, state.get("next") or {}))
