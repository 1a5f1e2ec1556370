"""One page of a list, and the way to the next one. Knows no kind of thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlencode

from flask import Response, jsonify, request

from services.api.list_answer import list_body
from services.api.parts import Parts
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.paging import Page


def page_response(parts: Parts, data: Sequence[dict[str, Any]], has_more: bool) -> Response:
    """
    A page, with a Link to the next one.

    Args:
        data: documents with an `id`.
    """
    body = list_body(data, has_more)
    response = jsonify(body)
    if has_more:
        kept = [(name, value) for name, value in request.args.items(multi=True) if name != "after"]
        following = urlencode([*kept, ("after", body["last_id"])])
        response.headers["Link"] = f'<{parts.base_url()}{request.path}?{following}>; rel="next"'
    return response


def asked_page(limit: int, after: str | None, order: Literal["asc", "desc"], prefix: str, what: str) -> Page:
    """
    The page that a query asks for.

    Raises:
        RequestError: the cursor has not the form of an id of such a thing.
    """
    if after is not None and not is_id(after, prefix):
        raise RequestError("invalid_request", f"after: should be the id of a {what}", "after")
    return Page(limit, after, order == "desc")
