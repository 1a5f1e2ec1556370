"""Jobs over HTTP: submit, read, list, cancel."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Any

from apiflask import APIBlueprint
from flask import Response, g, request

from services.api.answers import JobAnswer, JobListAnswer
from services.api.auth import as_caller, authenticate, require_fresh
from services.api.idempotency import TRY_HEADER, parse_key, parse_try
from services.api.job_access import cancel_job, find_job
from services.api.job_answers import job_response, public_document, submitted_response
from services.api.job_docs import FORM_EXAMPLE, NEW_JOB, UPLOADS
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.prefer import MAX_WAIT_S, NO_PREFERENCE, parse_prefer
from services.api.queries import JobQuery, ListQuery
from services.api.request_body import read_body, read_query
from services.api.route_docs import describe
from services.api.schemas import JobRequest
from services.api.submitting import SUBMIT_ROUTE, Origin, Submitted, submit_job
from services.api.waiting import NoPlaceError, has_ended
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.jobs import JobFilter, list_jobs
from shared.lifecycle.tenants import Caller
from shared.lifecycle.tries import note_answer
from shared.storage import PRESIGN_S

_PUT_ROUTE = "PUT /v1/jobs/<job_id>"
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


def jobs_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/jobs`."""
    jobs = APIBlueprint("jobs", __name__)

    @jobs.post("/v1/jobs")
    @jobs.output(JobAnswer, status_code=202, description="The job is accepted.")
    @jobs.doc(
        summary="Submit a job",
        operation_id="submit_job",
        security="ApiKey",
        responses=[200, 400, 401, 402, 403, 404, 409, 410, 413, 415, 422, 429, 503],
        extensions=describe(
            body=JobRequest,
            example={"prompt": 'a red fox holding a sign that says "hello"', "size": "1024x768", "seed": 7},
            form={"request": JobRequest, "image": UPLOADS},
            form_required=("request",),
            form_example=FORM_EXAMPLE,
            **NEW_JOB,
        ),
    )
    def submit_one() -> Response:
        key = try_number = None
        prefer = NO_PREFERENCE

        def work(caller: Caller) -> Submitted:
            nonlocal key, prefer, try_number
            if request.mimetype != "application/json":
                # Files can be read but once.
                require_fresh(caller)
            key = parse_key(request.headers.get("Idempotency-Key"))
            prefer = parse_prefer(request.headers.getlist("Prefer"))
            try_number = parse_try(request.headers.get(TRY_HEADER))
            body = read_body(request)
            return submit_job(parts, caller, body, key, Origin(SUBMIT_ROUTE, body, try_number, g.began))

        caller, submitted = as_caller(parts.callers, request, "submit", work)
        if try_number is not None and key is None:
            note_answer(parts.db, submitted.job_id)
        return submitted_response(parts, caller, submitted, prefer)

    @jobs.put("/v1/jobs/<job_id>")
    @jobs.output(JobAnswer, status_code=202, description="The job is accepted. It has an id of its own.")
    @jobs.doc(
        summary="Submit a job under a UUID of yours",
        description="As a submit with the UUID as its Idempotency-Key: however often it is sent, there is one job.",
        operation_id="put_job",
        security="ApiKey",
        responses=[200, 400, 401, 402, 403, 404, 409, 410, 413, 415, 422, 429, 503],
        extensions=describe(
            body=JobRequest,
            example={"prompt": "a red fox"},
            form={"request": JobRequest, "image": UPLOADS},
            form_required=("request",),
            form_example=FORM_EXAMPLE,
            **{**NEW_JOB, "request_headers": ("Prefer",)},
        ),
    )
    def put_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        if not _UUID.fullmatch(job_id):
            raise RequestError("not_found", "a job is put under a UUID, such as 0b9c3f5e-7d1a-4c52-9a51-2f6c1d0e8a77")
        prefer = parse_prefer(request.headers.getlist("Prefer"))
        body = read_body(request)
        return submitted_response(parts, caller, submit_job(parts, caller, body, job_id.lower(), Origin(_PUT_ROUTE, body)), prefer)

    @jobs.get("/v1/jobs/<job_id>")
    @jobs.output(JobAnswer, description="The job.")
    @jobs.doc(
        summary="Get a job",
        operation_id="get_job",
        security="ApiKey",
        responses=[304, 400, 401, 403, 404, 410, 503],
        extensions=describe(
            query=JobQuery,
            request_headers=("If-None-Match",),
            descriptions={"304": "Nothing has changed since the ETag of If-None-Match."},
            headers={"200": ("ETag", "Retry-After"), "304": ("ETag", "Retry-After")},
        ),
    )
    def get_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        wait_s = min(read_query(request.args, JobQuery).wait, MAX_WAIT_S)
        known = request.if_none_match

        def is_enough(document: dict[str, Any]) -> bool:
            return has_ended(document) or (bool(known) and not known.contains_weak(_etag(document)))

        try:
            document = parts.waiting.wait_until(
                caller.tenant_id, job_id, lambda: find_job(parts, caller, job_id), is_enough, wait_s, sees_progress=bool(known)
            )
        except NoPlaceError:
            # What it asks for is an answer in good time, and this is one.
            document = find_job(parts, caller, job_id)
        response = job_response(parts, document)
        response.set_etag(_etag(document), weak=True)
        response.make_conditional(request)
        return response

    @jobs.get("/v1/jobs")
    @jobs.output(JobListAnswer, description="A page of jobs.")
    @jobs.doc(
        summary="List jobs",
        operation_id="list_jobs",
        security="ApiKey",
        responses=[400, 401, 403, 503],
        extensions=describe(query=ListQuery, headers={"200": ("Link",)}),
    )
    def list_page() -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, ListQuery)
        page = asked_page(query.limit, query.after, query.order, "job", "job")
        if query.batch is not None and not is_id(query.batch, "bat"):
            raise RequestError("invalid_request", "batch: should be the id of a batch", "batch")
        documents, has_more = list_jobs(parts.db, caller.tenant_id, _filter(query), page, parts.live.read_progress)
        return page_response(parts, [public_document(parts, document) for document in documents], has_more)

    @jobs.post("/v1/jobs/<job_id>/cancel")
    @jobs.output(JobAnswer, description="The job is canceled.")
    @jobs.doc(summary="Cancel a job", operation_id="cancel_job", security="ApiKey", responses=[401, 403, 404, 409, 410, 503])
    def cancel_one(job_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        cancel_job(parts, caller, job_id)
        return job_response(parts, find_job(parts, caller, job_id))

    return jobs


def _etag(document: dict[str, Any]) -> str:
    """
    Changes with the job, its progress, and twice in the life of its presigned URLs.

    The version alone would not do: progress does not move it, and a client that trusts a 304 would keep URLs that have ended.
    """
    state = json.dumps([document, time.time() // (PRESIGN_S / 2)], sort_keys=True)
    return f"{document['version']}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def _filter(query: ListQuery) -> JobFilter:
    return JobFilter(
        statuses=tuple(query.status),
        batch_id=query.batch,
        custom_id=query.custom_id,
        metadata=tuple(query.metadata.items()),
        created_after=query.created_after,
        created_before=query.created_before,
    )
