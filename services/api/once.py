"""
`Idempotency-Key` on every POST that makes no job: the first request is worked on, its repetitions get the answer that it got.

Routes that make jobs find the job itself again, and handle the key themselves; they say so in their documentation (`route_docs.py`).
Only what succeeded is kept: what was refused has changed nothing, and may be asked again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import structlog
from apiflask import APIFlask
from flask import Request, Response, request

from services.api.auth import authenticate, needed_scope, require
from services.api.idempotency import parse_key
from services.api.parts import Parts
from services.api.request_body import MAX_JSON_BYTES
from services.api.route_docs import docs_of
from services.api.strict_json import parse_object
from shared.db import DatabaseDownError
from shared.errors import RequestError
from shared.lifecycle.answers import KeptAnswer, begin, give_back, keep
from shared.lifecycle.idempotency import Idempotency

_OF_THE_CONNECTION = ("Content-Length",)

log = structlog.get_logger()


def install(app: APIFlask, parts: Parts) -> None:
    """Wrap the views of all routes that are there."""
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        if "POST" in (rule.methods or ()) and docs_of(view).keeps_answers:
            app.view_functions[rule.endpoint] = _repeatable(app, parts, f"POST {rule.rule}", view)


def _repeatable(app: APIFlask, parts: Parts, route: str, view: Callable[..., Any]) -> Callable[..., Any]:
    max_bytes = docs_of(view).max_json_bytes or MAX_JSON_BYTES

    @functools.wraps(view)
    def answer(**values: Any) -> Any:
        header = request.headers.get("Idempotency-Key")
        if header is None:
            return view(**values)
        # Somebody of the tenant; what the route asks for beyond that is asked by the route, and of repetitions here.
        caller = authenticate(parts.callers, request, "read")
        key = parse_key(header)
        once = Idempotency(route, key or "", _fingerprint(request, max_bytes))
        begun = begin(parts.db, caller.tenant_id, once)
        if isinstance(begun, KeptAnswer):
            require(caller, begun.scope)
            return _replay(parts, begun)
        is_done = False
        try:
            response = app.make_response(view(**values))
            is_done = 200 <= response.status_code < 300
        finally:
            if not is_done:
                _try(lambda: give_back(parts.db, caller.tenant_id, once, begun))
        _try(lambda: keep(parts.db, caller.tenant_id, once, begun, _sealed(parts, response)))
        return response

    return answer


def _fingerprint(request: Request, max_bytes: int) -> str:
    """A hash of what is asked: method, path, query and body, whatever the order of the JSON's keys and the boundary of a multipart."""
    asked = [request.method, request.path, list(request.args.items(multi=True)), _content(request, max_bytes)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _content(request: Request, max_bytes: int) -> Any:
    if request.mimetype == "multipart/form-data":
        files = []
        for name, file in request.files.items(multi=True):
            files.append([name, file.filename, hashlib.sha256(file.stream.read()).hexdigest()])
            file.stream.seek(0)
        return [list(request.form.items(multi=True)), files]
    # As the route will read it: what has more is refused there.
    request.max_content_length = min(request.max_content_length or max_bytes + 1, max_bytes + 1)
    data = request.get_data()
    try:
        return parse_object(data)
    except RequestError:
        return hashlib.sha256(data).hexdigest()


def _sealed(parts: Parts, response: Response) -> KeptAnswer:
    headers = [(name, value) for name, value in response.headers.items() if name not in _OF_THE_CONNECTION]
    kept = {"status": response.status_code, "headers": headers, "body": response.get_data(as_text=True)}
    return KeptAnswer(needed_scope(), parts.sealer.seal(json.dumps(kept)))


def _replay(parts: Parts, answer: KeptAnswer) -> Response:
    kept = json.loads(parts.sealer.unseal(answer.sealed))
    response = Response(kept["body"], kept["status"], kept["headers"])
    response.headers["Idempotency-Replayed"] = "true"
    return response


def _try(write: Callable[[], None]) -> None:
    """What was done is done, and its answer is not withheld because it could not be kept: the key is free again after a while."""
    try:
        write()
    except DatabaseDownError as error:
        log.warning("answer_not_kept", error=str(error))
