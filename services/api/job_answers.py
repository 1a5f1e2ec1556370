"""A job's document -> the answer: URLs made, and when to ask again."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify

from services.api.parts import Parts
from shared.job_document import finish_document
from shared.states import TERMINAL_JOB

_POLL_S = 1
"""Guess: what a client may wait between two looks."""


def public_document(parts: Parts, document: dict[str, Any]) -> dict[str, Any]:
    """The document with absolute links and presigned URLs."""
    return finish_document(document, parts.base_url(), parts.storage.presign)


def job_response(parts: Parts, document: dict[str, Any]) -> Response:
    """The job, and for one that is not over the seconds until the next look."""
    response = jsonify(public_document(parts, document))
    if document["status"] not in TERMINAL_JOB:
        response.headers["Retry-After"] = str(_POLL_S)
    return response
