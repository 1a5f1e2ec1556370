"""A job's second life and its last: retry what did not succeed, erase what nobody shall see any more."""

from __future__ import annotations

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.answers import JobAnswer
from services.api.auth import authenticate
from services.api.field_errors import validated
from services.api.job_access import erase_job, find_job
from services.api.job_answers import job_response
from services.api.parts import Parts
from services.api.request_body import read_optional_json
from services.api.rerun_schemas import ErasedAnswer, RetryRequest
from services.api.route_docs import describe
from services.api.run_time import check_retry
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.retry import retry


def reruns_blueprint(parts: Parts) -> APIBlueprint:
    """`POST /v1/jobs/{id}/retry` and `DELETE /v1/jobs/{id}`."""
    reruns = APIBlueprint("reruns", __name__)

    @reruns.post("/v1/jobs/<job_id>/retry")
    @reruns.output(JobAnswer, status_code=202, description="The job begins anew; what it has is kept.")
    @reruns.doc(
        summary="Retry a job that did not succeed",
        operation_id="retry_job",
        security="ApiKey",
        responses=[400, 401, 402, 403, 404, 409, 410, 413, 415, 429, 503],
        extensions=describe(body=RetryRequest, is_body_optional=True, is_counted=True, headers={"202": ("Location", "Retry-After")}),
    )
    def retry_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        sent = read_optional_json(request)
        asked = validated(RetryRequest, sent)
        parts.quotas.admit(caller)
        parts.quotas.check_room(caller)
        retried = None
        if is_id(job_id, "job"):
            check_retry(parts, caller.tenant_id, job_id, asked.deadline)
            retried = retry(parts.db, caller.tenant_id, job_id, asked.deadline)
        if retried is None:
            raise RequestError("not_found", "there is no such job")
        # Before anybody is told that there is work: a worker would take the old flag for a new one.
        parts.live.clear_stops(retried.work_ids)
        parts.ring_for_work()
        response = job_response(parts, find_job(parts, caller, job_id))
        response.status_code = 202
        response.headers["Location"] = f"/v1/jobs/{job_id}"
        return response

    @reruns.delete("/v1/jobs/<job_id>")
    @reruns.output(ErasedAnswer, description="Nothing is left of the job but its id.")
    @reruns.doc(
        summary="Erase a job",
        description="Cancels it first if it is not over. What other jobs of yours share with it stays with them.",
        operation_id="delete_job",
        security="ApiKey",
        responses=[401, 403, 404, 503],
    )
    def delete_one(job_id: str) -> Response:
        erase_job(parts, authenticate(parts.callers, request, "submit"), job_id)
        return jsonify({"id": job_id, "object": "job", "deleted": True})

    return reruns
