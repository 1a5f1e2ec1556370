"""The endpoint that a request names, or the refusal that says there is none."""

from __future__ import annotations

from typing import Any

from shared.errors import RequestError


def found(document: dict[str, Any] | None) -> dict[str, Any]:
    """
    Raises:
        RequestError: `not_found`, there is no document of an endpoint.
    """
    if document is None:
        raise unknown_endpoint()
    return document


def unknown_endpoint() -> RequestError:
    """Of a foreign id, too: the two are not told apart."""
    return RequestError("not_found", "there is no such webhook endpoint")
