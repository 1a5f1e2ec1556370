"""
gunicorn's worker, whose own refusals are problems too: of requests that are no HTTP, or too long, and so never reach the application.

Knows gunicorn and the catalogue; knows no route.
"""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import Any

import structlog
from gunicorn.http import errors
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from services.api.problem_catalogue import PROBLEM_TYPE, Problem, problem_body
from shared.ids import new_id

MAX_REQUEST_LINE = 8190
"""Bytes of the first line of a request, and so of its URL. As many as gunicorn allows."""
MAX_HEADERS = 100
MAX_HEADER = 8190
"""Bytes of one header."""

_OURS = (
    errors.InvalidResponseHeader,  # type: ignore[attr-defined]  # newer than the published types, which are of gunicorn 26
    errors.InvalidResponseHeaderName,  # type: ignore[attr-defined]  # as above
    errors.ConfigurationProblem,
)
"""Of gunicorn's complaints those about us, though they are of the kinds that are made for clients."""
_OF_THE_BODY = {
    "CONTENT-LENGTH": "Content-Length: should be one whole number, and not beside Transfer-Encoding",
    "TRANSFER-ENCODING": "Transfer-Encoding: only chunked is read, and only of HTTP/1.1",
}
_INTERNAL = "an unexpected error; it was logged under the request_id"

log = structlog.get_logger()


class ProblemWorker(ThreadWorker):
    """Answers with a problem what gunicorn would answer with a page."""

    app: Any
    """The server of `services.api`, which has our settings."""

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Called by gunicorn with what kept it from handing a request to the application, or from reading its answer."""
        problem, detail = refusal_of(exc)
        request_id = new_id("req")
        # The kind alone: the text of the error quotes what was sent, which may be a key.
        if problem is Problem.INTERNAL:
            log.error("unexpected_error", error=type(exc).__name__, request_id=request_id)
        log.info("request", method=None, route=None, status=problem.status, error=type(exc).__name__, request_id=request_id)
        base_url = (self.app.settings.public_url or "").rstrip("/")
        try:
            write_nonblock(client, refusal(problem, detail, base_url, request_id))
        except OSError:
            log.debug("refusal_not_sent", request_id=request_id)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        try:
            return bool(super()._keepalive_after(conn, keepalive))  # type: ignore[misc]  # private, and not in the published types
        except errors.ParseException:
            # Broken chunks that nobody wanted to read: the request has its answer, and a second one would be taken for that of the next.
            return False


def refusal_of(error: BaseException) -> tuple[Problem, str]:
    """What gunicorn found, as an entry of the catalogue and a sentence."""
    if isinstance(error, _OURS):
        return Problem.INTERNAL, _INTERNAL
    match error:
        case errors.LimitRequestLine():
            return Problem.URI_TOO_LONG, f"the first line of the request has more than {MAX_REQUEST_LINE} bytes"
        case errors.LimitRequestHeaders():
            return Problem.HEADERS_TOO_LARGE, f"the request has more than {MAX_HEADERS} headers, or one of more than {MAX_HEADER} bytes"
        case errors.InvalidHeader() if error.hdr in _OF_THE_BODY:
            return Problem.INVALID_REQUEST, _OF_THE_BODY[error.hdr]
        case errors.InvalidHeader() | errors.InvalidHeaderName() | errors.ObsoleteFolding():
            return Problem.INVALID_REQUEST, "a header of the request is malformed, or comes twice where it may come once"
        case errors.UnsupportedTransferCoding():
            # RFC 9112 would have 501 here, which clients take for a fault that passes.
            return Problem.INVALID_REQUEST, _OF_THE_BODY["TRANSFER-ENCODING"]
        case errors.ExpectationFailed():
            return Problem.INVALID_REQUEST, "Expect: only 100-continue is known"
        case errors.ParseException():
            return Problem.INVALID_REQUEST, "the request is not HTTP/1.1, or is malformed"
        case _:
            return Problem.INTERNAL, _INTERNAL


def refusal(problem: Problem, detail: str, base_url: str, request_id: str) -> bytes:
    """The whole answer, as it goes over the wire. The connection ends with it: where the next request begins is not known."""
    status = problem.status or 500
    body = json.dumps(problem_body(problem, detail, base_url, "", request_id)).encode()
    lines = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime())}",
        "Connection: close",
        f"Content-Type: {PROBLEM_TYPE}",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {request_id}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
    )
    return "\r\n".join((*lines, "", "")).encode() + body
