"""A job's document -> the answer: URLs made, and when to ask again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify

from services.api.job_access import find_job, wait_for_job
from services.api.parts import Parts
from services.api.prefer import NO_PREFERENCE, Preference
from services.api.submitting import Submitted
from services.api.waiting import NoPlaceError, has_ended
from shared.job_document import finish_document
from shared.lifecycle.tenants import Caller
from shared.states import TERMINAL_JOB

_MAX_POLL_S = 15


def public_document(parts: Parts, document: dict[str, Any]) -> dict[str, Any]:
    """The document with absolute links, presigned URLs and its place in the line."""
    return {**finish_document(document, parts.base_url(), parts.storage.presign), "queue": parts.outlook.place(document)}


def job_response(parts: Parts, document: dict[str, Any]) -> Response:
    """The job, and for one that is not over the seconds until the next look."""
    public = public_document(parts, document)
    response = jsonify(public)
    if document["status"] not in TERMINAL_JOB:
        response.headers["Retry-After"] = str(retry_after_s(parts, public))
    return response


def submitted_response(parts: Parts, caller: Caller, submitted: Submitted, prefer: Preference = NO_PREFERENCE) -> Response:
    """
    202 with the new job; 200 if it was there before, or if the client would wait for it, for no time at all even, and it has ended.

    Where nobody else may wait, the answer comes at once and says so.
    """
    applied = prefer.applied
    document = submitted.document
    if document is None or prefer.wait_s:
        try:
            document = wait_for_job(parts, caller, submitted.job_id, prefer.wait_s)
        except NoPlaceError:
            document, applied = find_job(parts, caller, submitted.job_id), "respond-async"
    response = job_response(parts, document)
    is_awaited = prefer.is_wait and has_ended(document)
    response.status_code = 200 if submitted.is_replay or is_awaited else 202
    if applied is not None:
        response.headers["Preference-Applied"] = applied
    response.headers["Location"] = f"/v1/jobs/{submitted.job_id}"
    if submitted.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
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
