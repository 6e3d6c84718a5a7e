"""Gives each request an id and a trace, and logs and counts it.

`serving/observability/logs.py` formats the lines, `serving/observability/metrics.py` keeps the numbers.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from urllib.parse import quote

from flask import Flask, Response, g, request
from prometheus_client.exposition import choose_encoder
from structlog.contextvars import bind_contextvars, clear_contextvars
from werkzeug.datastructures import Headers

from serving.jobs.service import Jobs
from serving.models.states import ObservedModels
from serving.observability.metrics import Metrics
from serving.settings import Settings

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
METRICS = "yue_metrics"  # the key of the Metrics in `app.extensions`
UNMATCHED = "unmatched"  # the route label of a request that matches no route
LONGEST_PATH = 200  # logged characters of a path
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@~-]{0,127}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(-.*)?")
_CLOUD_TRACE = re.compile(r"(?P<trace>[0-9a-fA-F]{32})(/(?P<span>[0-9]{1,20}))?(;o=(?P<flags>[0-9]))?")


def install(
    app: Flask, settings: Settings, manager: ObservedModels, jobs: Jobs, slots_taken: Callable[[], int]
) -> None:
    """Add request ids, request logs and metrics to the app, and the route /metrics."""
    metrics = Metrics(manager, jobs.queue, slots_taken, settings.max_waiters)
    app.extensions[METRICS] = metrics
    quiet = {"/health", "/livez", "/readyz", "/metrics", settings.health_route}  # probed every few seconds

    def expose() -> Response:
        """Metrics for Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(metrics.registry), content_type=content_type)

    def end(response: Response) -> Response:
        seconds, route = time.monotonic() - g.began, request.url_rule.rule if request.url_rule else UNMATCHED
        response.headers[REQUEST_ID] = g.request_id
        metrics.requests.note(route, request.method, response.status_code, seconds)
        if response.mimetype == "text/event-stream":
            metrics.requests.streams.inc()
            response.call_on_close(metrics.requests.streams.dec)
        _log(response, seconds, route in quiet)
        response.call_on_close(clear_contextvars)
        return response

    app.add_url_rule("/metrics", "GET /metrics", expose, methods=["GET"])
    # Before all other functions, so that refused requests are logged and counted too.
    app.before_request_funcs.setdefault(None, []).insert(0, _begin)
    app.after_request_funcs.setdefault(None, []).insert(0, end)  # called in reverse order


def trace_of(headers: Headers) -> dict[str, object]:
    """Return the trace fields from W3C's or Google's header; empty without one."""
    w3c = _TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
    if w3c and int(w3c["trace"], 16) and int(w3c["span"], 16):
        return {"trace_id": w3c["trace"], "span_id": w3c["span"], "trace_sampled": bool(int(w3c["flags"], 16) & 1)}
    google = _CLOUD_TRACE.fullmatch(headers.get("X-Cloud-Trace-Context", "").strip())
    if not google or not int(google["trace"], 16):
        return {}
    span = int(google["span"] or 0)
    named = {"span_id": f"{span:016x}"} if 0 < span < 1 << 64 else {}
    return {"trace_id": google["trace"].lower(), **named, "trace_sampled": google["flags"] == "1"}


def request_id_of(headers: Headers) -> str:
    """Return the client's request id if it is safe to log, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


def _begin() -> None:
    g.began = time.monotonic()
    g.request_id = request_id_of(request.headers)
    clear_contextvars()  # of this thread's previous request
    bind_contextvars(request_id=g.request_id, **trace_of(request.headers))


def _level(status: int, quiet: bool) -> int:
    """Return the log level. A probe gets 503 for as long as models load, which is no reason to warn."""
    if quiet:
        return logging.DEBUG if status < 400 else logging.INFO
    return logging.WARNING if status >= 500 else logging.INFO


def _log(response: Response, seconds: float, quiet: bool) -> None:
    status, path = response.status_code, quote(request.path)[:LONGEST_PATH]  # no control characters on a terminal
    http = {
        "requestMethod": request.method,
        "requestUrl": path,
        "status": status,
        "latency": f"{seconds:.6f}s",
        "protocol": request.environ.get("SERVER_PROTOCOL"),
        "userAgent": request.headers.get("User-Agent", "")[:LONGEST_PATH],
    }
    if response.content_length is not None:
        http["responseSize"] = str(response.content_length)
    log.log(
        _level(status, quiet),
        "%s %s %d %.0f ms",
        request.method,
        path,
        status,
        1_000 * seconds,
        extra={"httpRequest": http},
    )
