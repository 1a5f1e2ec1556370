"""What every answer carries, whatever it answers: a request id, safe headers, and one line in the log."""

from __future__ import annotations

import re
import time

import structlog
from apiflask import APIFlask
from flask import Response, g, request

from shared.ids import new_id
from shared.trace import parse_trace

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET = ("/healthz", "/readyz")
"""Asked every few seconds by whoever watches the process."""

log = structlog.get_logger()


def install(app: APIFlask) -> None:
    """Wrap every request of the app."""

    @app.before_request
    def begin() -> None:
        sent = request.headers.get("X-Request-Id", "")
        g.request_id = sent if _SANE_ID.fullmatch(sent) else new_id("req")
        g.trace = parse_trace(request.headers.get("traceparent"), request.headers.get("tracestate"))
        g.began = time.monotonic()
        # A thread serves many requests, and inherits nothing of the main thread's context.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id, **({} if g.trace is None else {"trace_id": g.trace.trace_id}))

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        # Answers belong to one key, and a presigned URL is a secret while it works.
        response.headers["Cache-Control"] = "no-store"
        route = request.url_rule.rule if request.url_rule else None
        # The rule, not the path: no query strings, and few enough values to count by.
        write = log.debug if route in _QUIET else log.info
        write("request", method=request.method, route=route, status=response.status_code, ms=round((time.monotonic() - g.began) * 1000, 1))
        return response
