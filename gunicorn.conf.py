"""How gunicorn runs the server: `gunicorn`, started in the project's folder, finds this file by its name.

It knows nothing of routes or models: it builds the app and ends it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.settings import InvalidSettings, read_settings

try:
    _settings = read_settings()
except InvalidSettings as error:
    raise SystemExit(str(error)) from None

_SHARED_MEMORY = Path("/dev/shm")
_GRACE_SECONDS = 10

wsgi_app = "server:create_app()"
bind = f"0.0.0.0:{_settings.http_port}"
# One process holds the jobs and the engine: a second one would be a second server. Recycling it would lose its songs.
workers = 1
max_requests = 0
preload_app = False
worker_class = "serving.graceful.GracefulWorker"
threads = _settings.threads
timeout = 0  # a song is longer than any sensible limit; the engine is watched elsewhere
keepalive = 620  # seconds; Google's load balancers keep idle connections for 600
graceful_timeout = int(_settings.wait_seconds) + _GRACE_SECONDS  # requests that wait for a song get it
# The worker's heartbeat is a file: on a slow disk it would stall.
worker_tmp_dir = str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
control_socket_disable = True  # nobody speaks to it, and it would lie in the home folder, which may be read-only
# Everything on stdout: platforms take what is on stderr for errors.
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
    "root": {"level": "INFO", "handlers": ["stdout"]},
    "loggers": {"gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True}},
}


def worker_exit(server: Any, worker: Any) -> None:
    """End the engine and the threads: the process would wait for them."""
    worker.end()
