"""Drafts over HTTP: approve one, or reject it for another."""

from __future__ import annotations

import secrets

from apiflask import APIBlueprint
from flask import Response, request

from services.api.answers import JobAnswer
from services.api.auth import authenticate
from services.api.field_errors import validated
from services.api.job_access import find_job
from services.api.job_answers import job_response
from services.api.parts import Parts
from services.api.request_body import read_optional_json
from services.api.route_docs import describe
from services.api.schemas import RejectRequest
from services.api.submitting import RANDOM_SEEDS
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.approval import approve, reject


def approval_blueprint(parts: Parts) -> APIBlueprint:
    """The routes by which a job that was submitted with `approve` goes on."""
    approval = APIBlueprint("approval", __name__)

    @approval.post("/v1/jobs/<job_id>/approve")
    @approval.output(JobAnswer, description="The job goes on from its drafts.")
    @approval.doc(
        summary="Approve the drafts of a job",
        operation_id="approve_job",
        security="ApiKey",
        responses=[401, 403, 404, 409, 410, 503],
        extensions=describe(headers={"200": ("Retry-After",)}),
    )
    def approve_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        if not (is_id(job_id, "job") and approve(parts.db, caller.tenant_id, job_id)):
            raise RequestError("not_found", "there is no such job")
        parts.ring_for_work()
        return job_response(parts, find_job(parts, caller, job_id))

    @approval.post("/v1/jobs/<job_id>/reject")
    @approval.output(JobAnswer, description="The job makes other drafts.")
    @approval.doc(
        summary="Reject the drafts of a job",
        operation_id="reject_job",
        security="ApiKey",
        responses=[400, 401, 403, 404, 409, 410, 413, 415, 503],
        extensions=describe(body=RejectRequest, is_body_optional=True, headers={"200": ("Retry-After",)}),
    )
    def reject_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        sent = read_optional_json(request)
        asked = validated(RejectRequest, sent)
        layout_seed = secrets.randbelow(RANDOM_SEEDS) if asked.layout_seed is None else asked.layout_seed
        if not (is_id(job_id, "job") and reject(parts.db, caller.tenant_id, job_id, layout_seed)):
            raise RequestError("not_found", "there is no such job")
        parts.ring_for_work()
        return job_response(parts, find_job(parts, caller, job_id))

    return approval
