"""
Jobs over HTTP: submit, read, list, cancel, and the way to their images.

`submit_job` and `find_job` are what other dialects translate to; everything below them is routes.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from apiflask import APIBlueprint
from flask import Response, g, jsonify, request
from pydantic import ValidationError

from services.api.answers import JobAnswer, JobListAnswer
from services.api.auth import authenticate
from services.api.callbacks import collect_webhook
from services.api.field_errors import ErrorCollector, from_pydantic
from services.api.idempotency import fingerprint, parse_key
from services.api.job_answers import job_response, public_document
from services.api.new_job import check_request, new_job, requested_size
from services.api.parts import Parts
from services.api.prefer import MAX_WAIT_S, NO_PREFERENCE, Preference, parse_prefer
from services.api.priority import with_allowed_priority
from services.api.request_body import RequestBody, read_body, read_query
from services.api.route_docs import describe
from services.api.schemas import JobQuery, JobRequest, ListQuery
from services.api.sources import SourceReader
from services.api.waiting import NoPlaceError, has_ended
from shared.errors import QueueFullError, RequestError
from shared.ids import is_id
from shared.lifecycle.idempotency import Idempotency, find_replay
from shared.lifecycle.jobs import JobFilter, cancel, get_job, list_jobs
from shared.lifecycle.submit import NewJob, SourceFile, store
from shared.lifecycle.tenants import Caller
from shared.lifecycle.tries import Try, find_earlier
from shared.storage import PRESIGN_S

SUBMIT_ROUTE = "POST /v1/jobs"
_PUT_ROUTE = "PUT /v1/jobs/<job_id>"
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
RANDOM_SEEDS = 2**53 - 10
"""How many seeds we draw from. JavaScript reads whole numbers exactly up to 2^53; image 9 adds 9."""


UPLOADS = {
    "type": "array",
    "items": {"type": "string", "contentMediaType": "application/octet-stream"},
    "description": "Reference images, after those of `images`.",
}
NEW_JOB: dict[str, Any] = {
    "request_headers": ("Idempotency-Key", "Prefer"),
    "descriptions": {"200": "The job has ended while the request waited for it; or the same Idempotency-Key made it before."},
    "headers": {
        "202": ("Location", "Retry-After", "Preference-Applied"),
        "200": ("Location", "Idempotency-Replayed", "Preference-Applied"),
    },
    "same_as": {"200": "202"},
    "links": (("get_job", "cancel_job", "list_images", "redecode_job", "approve_job", "reject_job"), "job_id"),
}
"""What the routes that make jobs have in common, for the OpenAPI document."""


@dataclass(frozen=True)
class Submitted:
    """
    A job that is in the ledger; a replay if the same Idempotency-Key brought it there before.

    `document` is there if the job was written just now, and need not be read again.
    """

    job_id: str
    is_replay: bool
    document: dict[str, Any] | None = None


@dataclass(frozen=True)
class Origin:
    """
    How a request came, where that is not `POST /v1/jobs`: what a dialect says beside the translated body.

    Attributes:
        route: that Idempotency-Keys hold for.
        sent: the body before it was translated: what makes two requests the same.
        try_number: counted by clients that repeat a request by themselves; None: the client does not count.
        arrived_at: by `time.monotonic`.
        dialect: what is kept beside the job, to answer in the dialect's words.
    """

    route: str
    sent: RequestBody
    try_number: int | None = None
    arrived_at: float = 0.0
    dialect: dict[str, Any] | None = None


def submit_job(parts: Parts, caller: Caller, body: RequestBody, idempotency_key: str | None, origin: Origin | None = None) -> Submitted:
    """
    Check a request, bring its reference images, and store the job. Nothing is stored if any part is wrong.

    Raises:
        RequestError: names every wrong field; or `idempotency_mismatch`.
        QuotaError: the tenant may not ask for more now.
        NoModelError, BusyError, DatabaseDownError, StorageDownError
    """
    parts.quotas.admit(caller)
    origin = origin or Origin(SUBMIT_ROUTE, body)
    once = client_try = None
    # Before anything is judged: a deadline may have passed since, a source URL may have died.
    if idempotency_key is not None:
        once = Idempotency(origin.route, idempotency_key, fingerprint(origin.route, origin.sent))
        earlier = find_replay(parts.db, caller.tenant_id, once)
    elif origin.try_number is not None:
        client_try = Try(fingerprint(origin.route, origin.sent), origin.try_number)
        earlier = find_earlier(parts.db, caller.tenant_id, client_try)
    else:
        earlier = None
    if earlier is not None:
        return Submitted(earlier, is_replay=True)
    read = read_request(parts, caller, body)
    job = replace(read.job, sources=read.store(), dialect=origin.dialect)
    if client_try is not None:
        client_try = replace(client_try, elapsed_s=time.monotonic() - origin.arrived_at)
    return store_job(parts, caller, job, once, client_try)


@dataclass(frozen=True)
class ReadRequest:
    """
    A request that was checked.

    Attributes:
        job: with the hashes of its reference images, but not their ids.
        sizes: height and width of each reference image.
        store: puts what is new of the reference images into the stores; returns them with their ids.
    """

    job: NewJob
    sizes: tuple[tuple[int, int], ...]
    store: Callable[[], tuple[SourceFile, ...]]


def read_request(parts: Parts, caller: Caller, body: RequestBody) -> ReadRequest:
    """
    Check a request, bring its reference images here, and store nothing.

    Raises: as `submit_job`, but for what is about the idempotency key.
    """
    try:
        asked = JobRequest.model_validate(body.fields)
    except ValidationError as error:
        raise from_pydantic(error, JobRequest, body.fields) from None
    asked = with_allowed_priority(caller, asked)
    info = parts.model.get()
    errors = ErrorCollector()
    check_request(asked, info, len(body.uploads), errors)
    webhook = collect_webhook(parts.policy, asked.webhook, body.fields.get("webhook"), errors)
    errors.raise_any()
    reader = SourceReader(parts, caller.tenant_id, info)
    ready = reader.prepare(asked.images, body.uploads)
    if body.order is not None:
        ready = [ready[index] for index in body.order]
    sizes = tuple((source.height_px, source.width_px) for source in ready)
    sources = tuple(SourceFile("", source.sha256) for source in ready)
    random_seed = secrets.randbelow(RANDOM_SEEDS)
    size = requested_size(asked, info, sizes)
    job = new_job(asked, info, caller.tenant_id, body.fields, size, sources, webhook, random_seed, parts.settings.approval_s)
    return ReadRequest(parts.fleet.get().priced(job, sizes), sizes, lambda: reader.store(ready))


def cancel_job(parts: Parts, caller: Caller, job_id: str) -> None:
    """
    Cancel a job, if the caller has one of this id.

    Raises:
        RequestError: `already_terminal`.
    """
    stopped = cancel(parts.db, caller.tenant_id, job_id) if is_id(job_id, "job") else None
    # After commit, or a worker could be told to drop work that is still wanted. Without Redis it hears at its next heartbeat.
    parts.live.flag_stop(stopped or [])


def store_job(parts: Parts, caller: Caller, job: NewJob, once: Idempotency | None, client_try: Try | None = None) -> Submitted:
    """
    Store a checked job within the caller's limits, and have its work begin.

    Raises:
        RequestError: `idempotency_mismatch`.
        QuotaError: `queue_full` or `budget_exhausted`.
    """
    parts.quotas.check_room(caller)
    limits = parts.quotas.limits_of(caller)
    try:
        stored = store(parts.db, replace(job, trace=g.trace), limits, once, client_try)
    except QueueFullError:
        parts.quotas.note_queued(limits.max_queued)
        raise
    parts.quotas.note_queued(stored.num_queued)
    parts.ring_for_work()
    return Submitted(stored.job_id, stored.is_replay, stored.document)


def find_job(parts: Parts, caller: Caller, job_id: str) -> dict[str, Any]:
    """
    The job's document, with storage keys instead of URLs.

    Raises:
        RequestError: `not_found`: malformed, unknown and foreign ids are not told apart.
    """
    document = get_job(parts.db, caller.tenant_id, job_id, parts.live.read_progress) if is_id(job_id, "job") else None
    if document is None:
        raise RequestError("not_found", "there is no such job")
    return document


def wait_for_job(parts: Parts, caller: Caller, job_id: str, timeout_s: float) -> dict[str, Any]:
    """
    The job's document once it has ended, or as it is after `timeout_s`.

    Raises:
        RequestError: as `find_job`.
        NoPlaceError: it has not ended yet, and too many requests wait already.
    """
    return parts.waiting.wait_until(caller.tenant_id, job_id, lambda: find_job(parts, caller, job_id), has_ended, timeout_s)


def submitted_response(parts: Parts, caller: Caller, submitted: Submitted, prefer: Preference = NO_PREFERENCE) -> Response:
    """
    202 with the new job; 200 if it was there before, or if the client waited for it and it has ended.

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
    is_awaited = prefer.wait_s > 0 and has_ended(document)
    response.status_code = 200 if submitted.is_replay or is_awaited else 202
    if applied is not None:
        response.headers["Preference-Applied"] = applied
    response.headers["Location"] = f"/v1/jobs/{submitted.job_id}"
    if submitted.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def jobs_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/jobs`."""
    jobs = APIBlueprint("jobs", __name__)

    @jobs.post("/v1/jobs")
    @jobs.output(JobAnswer, status_code=202, description="The job is accepted.")
    @jobs.doc(
        summary="Submit a job",
        operation_id="submit_job",
        security="ApiKey",
        responses=[200, 400, 401, 402, 403, 404, 413, 415, 422, 429, 503],
        extensions=describe(
            body=JobRequest,
            example={"prompt": 'a red fox holding a sign that says "hello"', "size": "1024x768", "seed": 7},
            form={"request": JobRequest, "image": UPLOADS},
            form_required=("request",),
            **NEW_JOB,
        ),
    )
    def submit_one() -> Response:
        caller = authenticate(parts.db, request, "submit")
        key = parse_key(request.headers.get("Idempotency-Key"))
        prefer = parse_prefer(request.headers.getlist("Prefer"))
        return submitted_response(parts, caller, submit_job(parts, caller, read_body(request), key), prefer)

    @jobs.put("/v1/jobs/<job_id>")
    @jobs.output(JobAnswer, status_code=202, description="The job is accepted. It has an id of its own.")
    @jobs.doc(
        summary="Submit a job under a UUID of yours",
        description="As a submit with the UUID as its Idempotency-Key: however often it is sent, there is one job.",
        operation_id="put_job",
        security="ApiKey",
        responses=[200, 400, 401, 402, 403, 404, 413, 415, 422, 429, 503],
        extensions=describe(
            body=JobRequest,
            example={"prompt": "a red fox"},
            form={"request": JobRequest, "image": UPLOADS},
            form_required=("request",),
            **{**NEW_JOB, "request_headers": ("Prefer",)},
        ),
    )
    def put_one(job_id: str) -> Response:
        caller = authenticate(parts.db, request, "submit")
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
        responses=[304, 400, 401, 403, 404, 503],
        extensions=describe(
            query=JobQuery,
            request_headers=("If-None-Match",),
            descriptions={"304": "Nothing has changed since the ETag of If-None-Match."},
            headers={"200": ("ETag", "Retry-After"), "304": ("ETag",)},
        ),
    )
    def get_one(job_id: str) -> Response:
        caller = authenticate(parts.db, request, "read")
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
        caller = authenticate(parts.db, request, "read")
        query = read_query(request.args, ListQuery)
        if query.after is not None and not is_id(query.after, "job"):
            raise RequestError("invalid_request", "after: should be the id of a job", "after")
        if query.batch is not None and not is_id(query.batch, "bat"):
            raise RequestError("invalid_request", "batch: should be the id of a batch", "batch")
        documents, has_more = list_jobs(
            parts.db, caller.tenant_id, _filter(query), query.limit, query.after, query.order == "desc", parts.live.read_progress
        )
        data = [public_document(parts, document) for document in documents]
        first_id, last_id = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        response = jsonify({"object": "list", "data": data, "has_more": has_more, "first_id": first_id, "last_id": last_id})
        if has_more:
            kept = [(name, value) for name, value in request.args.items(multi=True) if name != "after"]
            following = urlencode([*kept, ("after", last_id)])
            response.headers["Link"] = f'<{parts.base_url()}/v1/jobs?{following}>; rel="next"'
        return response

    @jobs.post("/v1/jobs/<job_id>/cancel")
    @jobs.output(JobAnswer, description="The job is canceled.")
    @jobs.doc(summary="Cancel a job", operation_id="cancel_job", security="ApiKey", responses=[401, 403, 404, 409, 503])
    def cancel_one(job_id: str) -> Response:
        caller = authenticate(parts.db, request, "submit")
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
