"""A job's document -> the answer: URLs made, and when to ask again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify

from services.api.parts import Parts
from shared.job_document import finish_document
from shared.states import TERMINAL_JOB

_MAX_POLL_S = 15


def public_document(parts: Parts, document: dict[str, Any]) -> dict[str, Any]:
    """The document with absolute links, presigned URLs and its place in the line."""
    return {**finish_document(document, parts.base_url(), parts.storage.presign), "queue": parts.outlook.place(document)}


def job_response(parts: Parts, document: dict[str, Any]) -> Response:
    """The job, and for one that is not over the seconds until the next look."""
    response = jsonify(public_document(parts, document))
    if document["status"] not in TERMINAL_JOB:
        response.headers["Retry-After"] = str(retry_after_s(parts, document))
    return response


def retry_after_s(parts: Parts, document: dict[str, Any]) -> int:
    """
    A quarter of the time that the job may still take, 1 to 15 seconds.

    Where that cannot be told, what is known is how long it has been going on: of jobs of all lengths, one that is so old has on average
    about as much before it.
    """
    left_s = parts.outlook.remaining_s(document)
    if left_s is None:
        left_s = (datetime.now(UTC) - datetime.fromisoformat(document["created_at"])).total_seconds()
    return max(1, min(_MAX_POLL_S, round(left_s / 4)))
