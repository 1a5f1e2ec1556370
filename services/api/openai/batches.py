"""
`/v1/batches`: the batch routes that OpenAI's clients know. Native batches are made, read, listed and canceled by them, too: there is one
kind of batch, and its answer has both interfaces' members (`../batch_answers.py`). The work on it is `../batch_clerk.py`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apiflask import APIBlueprint
from flask import Response, request
from pydantic import Field

from services.api.auth import authenticate
from services.api.batch_answers import GENERATIONS, POLL_S, BatchAnswer, BatchListAnswer, batch_document, batch_response, find_batch
from services.api.batch_schemas import MAX_ITEMS_BYTES, NativeBatchRequest
from services.api.field_errors import validated
from services.api.fields import QueryInt, Sent
from services.api.idempotency import TRY_HEADER, fingerprint, parse_key, parse_try
from services.api.new_batch import native_batch
from services.api.openai.batch_input import BatchRequest, find_input
from services.api.openai.headers import POLL_AFTER, tell_time
from services.api.openai.translate import without_nulls
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.request_body import RequestBody, read_json, read_query
from services.api.route_docs import describe
from shared.errors import TooManyBatchesError
from shared.ids import is_id
from shared.lifecycle.batch_values import BatchDocument, CreatedBatch, NewBatch
from shared.lifecycle.batches import LIVE, cancel_batch, create_batch, find_replay, list_batches
from shared.lifecycle.tenants import Caller

_ROUTE = "POST /v1/batches"
_DAY_S = 86_400


class BatchQuery(Sent):
    """Which batches to list."""

    limit: QueryInt = Field(default=20, ge=1, le=100, description="How many on a page.")
    after: str | None = Field(default=None, max_length=64, description="Id of the last one of the page before.")


def batches_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/batches`."""
    batches = APIBlueprint("openai_batches", __name__)
    tell_time(batches)

    @batches.post("/v1/batches")
    @batches.output(BatchAnswer)
    @batches.doc(
        summary="Make a batch (OpenAI, and native)",
        description="With `input_file_id` as OpenAI's clients send it, or with `items`, which are job requests.",
        operation_id="openai_make_batch",
        security="ApiKey",
        responses=[400, 401, 402, 403, 404, 413, 415, 422, 429, 503],
        extensions=describe(
            body=(BatchRequest, NativeBatchRequest),
            example={"input_file_id": "file-01k9v6s3m8e2t4w6y8a0c2e4g6", "endpoint": GENERATIONS, "completion_window": "24h"},
            request_headers=("Idempotency-Key",),
            is_counted=True,
            headers={"200": ("Location", "Retry-After", POLL_AFTER, "Idempotency-Replayed")},
        ),
    )
    def make() -> Response:
        caller = authenticate(parts.callers, request, "submit")
        parts.quotas.admit(caller)
        key = parse_key(request.headers.get("Idempotency-Key"))
        sent = read_json(request, MAX_ITEMS_BYTES)
        is_native = "items" in sent
        sent = sent if is_native else without_nulls(sent)
        once = fingerprint(_ROUTE, RequestBody(sent))
        # Before anything is judged: a deadline may have passed since, a file may have gone.
        earlier = find_replay(parts.db, caller.tenant_id, key, once) if key is not None else None
        if earlier is not None:
            created = CreatedBatch(earlier, is_replay=True)
        else:
            new = native_batch(parts, caller, sent) if is_native else _file_batch(parts, caller, sent)
            tried = parse_try(request.headers.get(TRY_HEADER))
            created = _create(parts, caller, replace(new, fingerprint=once, idempotency_key=key, try_number=tried))
        parts.quotas.note_batches(created.num_live)
        response = _answer(parts, find_batch(parts, caller, created.batch_id))
        response.headers["Location"] = f"/v1/batches/{created.batch_id}"
        if created.is_replay:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    @batches.get("/v1/batches")
    @batches.output(BatchListAnswer)
    @batches.doc(
        summary="List batches",
        operation_id="openai_list_batches",
        security="ApiKey",
        responses=[400, 401, 403, 503],
        extensions=describe(query=BatchQuery, headers={"200": ("Link",)}),
    )
    def list_page() -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, BatchQuery)
        page = asked_page(query.limit, query.after, "desc", "bat", "batch")
        found, has_more = list_batches(parts.db, caller.tenant_id, page)
        return page_response(parts, [batch_document(parts, batch) for batch in found], has_more)

    @batches.get("/v1/batches/<batch_id>")
    @batches.output(BatchAnswer)
    @batches.doc(
        summary="Get a batch",
        operation_id="openai_get_batch",
        security="ApiKey",
        responses=[401, 403, 404, 503],
        extensions=describe(headers={"200": ("Retry-After", POLL_AFTER)}),
    )
    def get_one(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        return _answer(parts, find_batch(parts, caller, batch_id))

    @batches.post("/v1/batches/<batch_id>/cancel")
    @batches.output(BatchAnswer)
    @batches.doc(
        summary="Cancel a batch",
        operation_id="openai_cancel_batch",
        security="ApiKey",
        responses=[401, 403, 404, 503],
        extensions=describe(headers={"200": ("Retry-After", POLL_AFTER)}),
    )
    def cancel_one(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        if is_id(batch_id, "bat"):
            cancel_batch(parts.db, caller.tenant_id, batch_id)
        return _answer(parts, find_batch(parts, caller, batch_id))

    return batches


def _answer(parts: Parts, batch: BatchDocument) -> Response:
    response = batch_response(parts, batch)
    if batch.status in LIVE:
        response.headers[POLL_AFTER] = str(1000 * POLL_S)
    return response


def _create(parts: Parts, caller: Caller, new: NewBatch) -> CreatedBatch:
    limits = parts.quotas.limits_of(caller)
    try:
        return create_batch(parts.db, new, limits)
    except TooManyBatchesError:
        parts.quotas.note_batches(limits.live_batches)
        raise


def _file_batch(parts: Parts, caller: Caller, sent: dict[str, Any]) -> NewBatch:
    asked = validated(BatchRequest, sent)
    return NewBatch(
        tenant_id=caller.tenant_id,
        input_file_id=find_input(parts, caller, asked.input_file_id).id,
        endpoint=asked.endpoint,
        completion_window=asked.completion_window,
        window_s=_DAY_S,
        metadata=dict(asked.metadata),
        output_expires_s=asked.output_expires_after.seconds if asked.output_expires_after else None,
    )
