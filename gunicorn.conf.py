"""gunicorn's configuration. `gunicorn`, started in the project's folder, finds this file by its name."""

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
# With command-line options, gunicorn may listen elsewhere or not at all.
if not _HAS_OPTIONS and not _IS_GIVEN_SOCKETS and (_bind_problem := listening.bind_problem(_settings)):
    raise SystemExit(_bind_problem)

_SHARED_MEMORY = Path("/dev/shm")
_GRACE_SECONDS = 10

wsgi_app = "server:create_app()"
bind = _settings.bind
# One process owns the jobs and the engine: a second one would be a second server. Recycling would lose its songs.
workers = 1
max_requests = 0
preload_app = False
worker_class = "serving.gunicorn.draining.GracefulWorker"
threads = _settings.threads + SLOW_CONNECTIONS
worker_connections = 4_096  # open at once, idle ones included, if the limit on open files allows it
timeout = 0  # a song takes longer than any sensible limit; model_manager.py watches the engine
sendfile = False  # the system call would wait for a slow client without being counted as a slow connection
keepalive = 620  # seconds; Google's load balancers keep idle connections for 600
graceful_timeout = int(_settings.wait_seconds) + _GRACE_SECONDS  # requests that wait for a song still get it
# The worker's heartbeat is a file, which would stall on a slow disk.
worker_tmp_dir = str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
control_socket_disable = True  # unused, and it would lie in the home folder, which may be read-only
logconfig_dict = logs.config(_settings)


def on_starting(server: Any) -> None:
    """Set up logging before the worker is forked, and warn of questionable settings."""
    logs.catch_all()
    for line in filter(None, (*unknown_variables(os.environ), listening.exposure(_settings))):
        logging.getLogger("serving.settings").warning("%s", line)
    for line in hub_settings.mistakes(os.environ) if _settings.needs_hub else ():
        logging.getLogger("serving.settings").warning("%s", line)  # only a warning: the weights may be cached


def post_fork(server: Any, worker: Any) -> None:
    """Give the worker its network limit, its rule for trusted requests, its urgent paths and its refusals."""
    # Until the worker installs its own handlers, its parent's would swallow SIGTERM, which comes only once.
    # For the same reason nothing slow is imported here.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    memory.return_large_blocks()
    worker.network_seconds = _settings.network_seconds
    worker.refusal = refusals.refusal
    worker.is_trusted = partial(access.is_trusted, _settings)
    worker.urgent_paths = tuple({"/health", "/livez", "/readyz", _settings.health_route or "/health"})


def worker_exit(server: Any, worker: Any) -> None:
    """End the engine and the threads; otherwise the process would wait for them."""
    worker.end()
