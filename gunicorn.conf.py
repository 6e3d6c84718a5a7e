"""How gunicorn runs the server: `gunicorn`, started in the project's folder, finds this file by its name.

It knows nothing of routes or models: it builds the app and ends it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from inference.weights import hub_settings
from serving.gunicorn import listening, memory, refusals
from serving.gunicorn.worker import SLOW_CONNECTIONS
from serving.http import access
from serving.observability import logs
from serving.settings import InvalidSettings, read_settings, unknown_variables

try:
    _settings = read_settings()
except InvalidSettings as error:
    raise SystemExit(str(error)) from None
_HAS_OPTIONS = any(word.startswith("-") for word in (*sys.argv[1:], *os.environ.get("GUNICORN_CMD_ARGS", "").split()))
_IS_GIVEN_SOCKETS = "LISTEN_FDS" in os.environ or "GUNICORN_FD" in os.environ
# With options of its own it may listen elsewhere, or not at all.
if not _HAS_OPTIONS and not _IS_GIVEN_SOCKETS and (_hindrance := listening.hindrance(_settings)):
    raise SystemExit(_hindrance)

_SHARED_MEMORY = Path("/dev/shm")
_GRACE_SECONDS = 10

wsgi_app = "server:create_app()"
bind = _settings.bind
# One process holds the jobs and the engine: a second one would be a second server. Recycling it would lose its songs.
workers = 1
max_requests = 0
preload_app = False
worker_class = "serving.gunicorn.draining.GracefulWorker"
threads = _settings.threads + SLOW_CONNECTIONS
worker_connections = 4_096  # open at once, idle ones included, if so many files may be open
timeout = 0  # a song is longer than any sensible limit; the engine is watched elsewhere
keepalive = 620  # seconds; Google's load balancers keep idle connections for 600
graceful_timeout = int(_settings.wait_seconds) + _GRACE_SECONDS  # requests that wait for a song get it
# The worker's heartbeat is a file: on a slow disk it would stall.
worker_tmp_dir = str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
control_socket_disable = True  # nobody speaks to it, and it would lie in the home folder, which may be read-only
logconfig_dict = logs.config(_settings)


def on_starting(server: Any) -> None:
    """Before the worker is forked, so that it holds for both."""
    logs.catch_all()
    for line in filter(None, (*unknown_variables(os.environ), listening.exposure(_settings))):
        logging.getLogger("serving.settings").warning("%s", line)
    for line in hub_settings.mistakes(os.environ) if _settings.needs_hub else ():
        logging.getLogger("serving.settings").warning("%s", line)  # no more: the weights may be here already


def post_fork(server: Any, worker: Any) -> None:
    """Tell the worker how patient it is, whom it answers first, and how it refuses."""
    # Until the worker has handlers of its own, its parent's would swallow the signal to stop, which comes but once.
    # For the same reason nothing is imported here that takes its time.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    memory.return_large_blocks()
    worker.network_seconds = _settings.network_seconds
    worker.refusal = refusals.refusal
    worker.is_trusted = partial(access.is_trusted, _settings)
    worker.urgent_paths = tuple({"/health", "/livez", "/readyz", _settings.health_route or "/health"})


def worker_exit(server: Any, worker: Any) -> None:
    """End the engine and the threads: the process would wait for them."""
    worker.end()
