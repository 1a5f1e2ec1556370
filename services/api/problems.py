"""
Exception -> RFC 9457. No other file knows both.

A code that is not in `problem_catalogue.py` does not leave the house.
"""

from __future__ import annotations

import math
import re
import traceback
from typing import Any
from urllib.parse import quote

import structlog
from apiflask import APIFlask
from flask import Response, g, jsonify, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

from services.api.field_errors import InvalidFieldsError, Path
from services.api.loaded_model import NoModelError
from services.api.parts import Parts
from services.api.problem_catalogue import PROBLEM_TYPE, QUOTA_TYPE, Problem, problem_body
from services.api.sources import BusyError
from services.api.unfinished import UnfinishedError
from services.api.waiting import NoPlaceError
from shared.db import DatabaseDownError
from shared.errors import QuotaError, RequestError
from shared.storage import StorageDownError

_OPENAI_PATHS = ("/v1/images/", "/v1/files", "/v1/batches", "/v1/responses", "/v1/models")
_OVERLOAD_TYPE = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
"""What the same draft calls a request that was in nobody's quota's way: too many of all tenants wait here. `code` is as ever."""
_RETRY_AFTER_S = 5
_HEADERS = (("Idempotency-Key",), ("Cancel-After",))
"""Headers that a request can be refused for, as the place of a wrong value."""
_OVERLOADED = (BusyError, NoPlaceError)
_AWAY = (DatabaseDownError, StorageDownError, NoModelError, *_OVERLOADED)

log = structlog.get_logger()


def install(app: APIFlask, parts: Parts) -> None:
    """Answer every exception of the app with a problem."""

    @app.errorhandler(Exception)
    def answer(error: Exception) -> Response:
        return problem_response(error, parts.base_url())


def problem_response(error: Exception, base_url: str) -> Response:
    """The answer to an exception. Unexpected ones are logged, and say nothing of themselves to the client."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestError) and (known := Problem.find(error.code)):
        problem, detail = known, error.detail
    elif isinstance(error, HTTPException):
        problem, detail = _of_http(error)
        allow = dict(error.get_headers()).get("Allow")
        headers = {"Allow": allow} if allow else {}
    elif isinstance(error, ParseException):
        # Found while the body was being read: broken chunks.
        problem, detail = Problem.INVALID_REQUEST, "the request is malformed"
    elif isinstance(error, _AWAY):
        problem, detail = Problem.ENGINE_UNAVAILABLE, _away_detail(error)
        log.warning("unavailable", error=type(error).__name__, why=str(error))
    else:
        problem, detail = Problem.INTERNAL, "an unexpected error; it was logged under the request_id"
        # Frames only: the text of an error may quote a row, and so a prompt or a secret.
        log.error("unexpected_error", error=type(error).__name__, frames=traceback.format_tb(error.__traceback__))
    if isinstance(error, QuotaError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if problem is Problem.ENGINE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    if problem is Problem.REQUEST_IN_FLIGHT:
        headers["Retry-After"] = "1"
    if isinstance(error, UnfinishedError):
        # The clients would repeat the request, and draw once more what failed or goes on.
        headers |= {"X-Should-Retry": "false", "Link": f'<{base_url}/v1/jobs/{error.job_id}>; rel="related"'}
    if problem is Problem.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="glmq"'
    status = problem.openai_status if _is_openai_route() else problem.status or 500
    response = jsonify({**_body(problem, detail, error, base_url), "status": status})
    response.status_code = status
    response.mimetype = _media_type()
    response.headers.update(headers)
    return response


def _media_type() -> str:
    """Problem JSON; on routes of OpenAI's interface plain JSON for a client that accepts nothing else."""
    asked = {kind for kind, _ in request.accept_mimetypes}
    return "application/json" if _is_openai_route() and asked == {"application/json"} else PROBLEM_TYPE


def _is_openai_route() -> bool:
    return request.path.startswith(_OPENAI_PATHS)


def _of_http(error: HTTPException) -> tuple[Problem, str]:
    """What Flask and Werkzeug raise by themselves."""
    match error.code:
        case 404:
            return Problem.NOT_FOUND, f"no such route: {request.path[:200]}"
        case 405:
            return Problem.METHOD_NOT_ALLOWED, f"{request.method[:20]} is not allowed here"
        case 413:
            return Problem.PAYLOAD_TOO_LARGE, "the request body is too large, or has too many parts"
        case 415:
            return Problem.UNSUPPORTED_MEDIA, "the media type is not supported"
        case code if code is not None and 400 <= code < 500:
            return Problem.INVALID_REQUEST, "the request is malformed or was cut short"
        case _:
            return Problem.INTERNAL, "an unexpected error"


def _away_detail(error: Exception) -> str:
    match error:
        case DatabaseDownError():
            return "the database does not answer; nothing was stored, or a repeated request with the same Idempotency-Key will tell"
        case StorageDownError():
            return "the object store does not answer"
        case _:
            return str(error)


def _body(problem: Problem, detail: str, error: Exception, base_url: str) -> dict[str, Any]:
    param = error.param if isinstance(error, RequestError) and problem is not Problem.INTERNAL else None
    job = {"job": f"{base_url}/v1/jobs/{error.job_id}"} if isinstance(error, UnfinishedError) else {}
    quota = {"type": QUOTA_TYPE, "violated-policies": [error.policy]} if isinstance(error, QuotaError) else {}
    overload = {"type": _OVERLOAD_TYPE} if isinstance(error, _OVERLOADED) else {}
    trace_id = g.trace.trace_id if g.get("trace") else None
    body = problem_body(problem, detail, base_url, quote(request.path), g.request_id, param, trace_id, _field_errors(error, param))
    return {**body, **quota, **overload, **job}


def _field_errors(error: Exception, param: str | None) -> list[dict[str, Any]]:
    if isinstance(error, InvalidFieldsError):
        return [{**_place(field.path, field.is_argument), "code": field.reason, "detail": field.detail} for field in error.errors]
    if isinstance(error, RequestError) and param is not None:
        path: Path = tuple(param.split("."))
        return [{**_place(path), "code": error.code, "detail": error.detail}]
    return []


def _place(path: Path, is_argument: bool = False) -> dict[str, str]:
    """Where the wrong value stood: a JSON pointer (RFC 6901) into the body, or the name of a header or query argument."""
    if path in _HEADERS:
        return {"header": str(path[0])}
    if is_argument or request.method == "GET":
        return {"parameter": ".".join(map(str, path))}
    steps = [re.sub("[~/]", lambda found: {"~": "~0", "/": "~1"}[found[0]], str(step)) for step in path]
    return {"pointer": "#" + "".join(f"/{quote(step, safe='~')}" for step in steps)}
