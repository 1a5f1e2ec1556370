"""
What a route says of itself for the OpenAPI document, beside its code: what APIFlask cannot derive, because we read bodies ourselves.

    @jobs.doc(summary="List jobs", operation_id="list_jobs", extensions=describe(query=ListQuery, headers={"200": ("Link",)}))

`openapi.py` turns this into the document; nothing here knows its form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

Model = type[BaseModel] | tuple[type[BaseModel], ...]
"""A model, or several that something may be of."""
EXTENSION = "x-glmq"
"""Where a route's operation carries its `RouteDocs` until the document is complete."""


@dataclass(frozen=True)
class RouteDocs:
    """
    What a route takes, and what is special about its answers.

    Attributes:
        query: the model of the query string.
        body: the model of a JSON body, or several models, any of which it may be.
        is_body_optional: the route also works without any body.
        example: of a JSON body.
        form: schemas of the parts of a multipart body, besides or instead of JSON; a model stands for its schema, as JSON.
        form_required: which of the parts must be there.
        form_example: parts of a multipart body, a file by what it holds.
        stream_example: the beginning of a stream, where an answer may be one.
        request_headers: names of request headers, as `openapi.py` knows them.
        descriptions: what an answer means, by status, where the standard phrase does not say it.
        headers: names of headers by status, besides those of every answer.
        same_as: statuses whose content is that of another status.
        content: media types by status, with their schemas (or models), where the answer is not plain JSON.
        more_content: further media types by status, besides the JSON.
        is_counted: its answers tell what is left of the tenant's limits (`quotas.py`).
        max_json_bytes: what is read of a JSON body; None: as of most routes (`request_body.py`).
        changes_nothing: a POST that may be repeated as it is, with or without an Idempotency-Key.
        links: operation ids of what can be done with a new resource, and the name of the path parameter that its `id` fills.
    """

    query: type[BaseModel] | None = None
    body: Model | None = None
    is_body_optional: bool = False
    example: Any = None
    form: Mapping[str, dict[str, Any] | type[BaseModel]] = field(default_factory=dict)
    form_required: tuple[str, ...] = ()
    form_example: Mapping[str, Any] = field(default_factory=dict)
    stream_example: str | None = None
    request_headers: tuple[str, ...] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    same_as: Mapping[str, str] = field(default_factory=dict)
    content: Mapping[str, Mapping[str, dict[str, Any] | Model]] = field(default_factory=dict)
    more_content: Mapping[str, Mapping[str, dict[str, Any] | Model]] = field(default_factory=dict)
    links: tuple[tuple[str, ...], str] | None = None
    is_counted: bool = False
    max_json_bytes: int | None = None
    changes_nothing: bool = False

    @property
    def keeps_answers(self) -> bool:
        """Of a POST: is its answer kept for repetitions (`once.py`)? Not where the route handles the key itself."""
        return not self.changes_nothing and "Idempotency-Key" not in self.request_headers


def describe(**docs: Any) -> dict[str, Any]:
    """The `extensions` of a route's `doc`; takes the attributes of `RouteDocs`."""
    return {EXTENSION: RouteDocs(**docs)}


def docs_of(view: Callable[..., Any]) -> RouteDocs:
    """What a view says of itself."""
    said: Mapping[str, RouteDocs] = getattr(view, "_spec", {}).get("extensions") or {}
    return said.get(EXTENSION, RouteDocs())


def operation_id_of(view: Callable[..., Any]) -> str:
    """The id of a view's operation; empty if it is not in the document."""
    return str(getattr(view, "_spec", {}).get("operation_id") or "")
