"""`/v1/batches`: OpenAI's batch routes. They write and read the batch's row; the work on it is `batch_clerk.py`'s."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from apiflask import APIBlueprint
from flask import Response, jsonify, request
from pydantic import BaseModel, Field

from services.api.auth import authenticate
from services.api.field_errors import validated
from services.api.fields import MAX_METADATA, MetadataKey, MetadataValue, QueryInt, Sent
from services.api.idempotency import TRY_HEADER, fingerprint, parse_key, parse_try
from services.api.openai.answers import unix
from services.api.openai.batch_lines import EDITS, GENERATIONS
from services.api.openai.files import ExpiresAfter
from services.api.openai.headers import BATCH_POLL_S, POLL_AFTER, tell_time
from services.api.openai.translate import without_nulls
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.request_body import RequestBody, read_json, read_query
from services.api.route_docs import describe
from shared.errors import RequestError, TooManyBatchesError
from shared.ids import is_id
from shared.lifecycle.batches import LIVE, BatchDocument, NewBatch, cancel_batch, create_batch, get_batch, list_batches
from shared.lifecycle.files import PlainFile, get_file
from shared.lifecycle.tenants import Caller
from shared.states import BatchStatus

_ROUTE = "POST /v1/batches"
_DAY_S = 86_400
_NAMES = {
    BatchStatus.VALIDATING: "validating",
    BatchStatus.RUNNING: "in_progress",
    BatchStatus.CANCELING: "cancelling",
    BatchStatus.FINALIZING: "finalizing",
    BatchStatus.COMPLETED: "completed",
    BatchStatus.FAILED: "failed",
    BatchStatus.CANCELED: "cancelled",
    BatchStatus.EXPIRED: "expired",
}


class BatchRequest(Sent):
    """Requests that are run as one."""

    input_file_id: str = Field(max_length=64, description="A file of the purpose `batch`: one request a line, at most 50,000.")
    endpoint: Literal["/v1/images/generations", "/v1/images/edits"]
    completion_window: Literal["24h"] = Field(description="What is not done by then expires.")
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=MAX_METADATA)
    output_expires_after: ExpiresAfter | None = None


class BatchQuery(Sent):
    """Which batches to list."""

    limit: QueryInt = Field(default=20, ge=1, le=100, description="How many on a page.")
    after: str | None = Field(default=None, max_length=64, description="Id of the last one of the page before.")


class BatchError(BaseModel):
    """What is wrong with a line."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """Why a batch failed."""

    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Requests of a batch; those that are under way are in neither of the other two."""

    total: int
    completed: int
    failed: int


class BatchAnswer(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: Annotated[str, Field(json_schema_extra={"enum": [GENERATIONS, EDITS]})]
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Annotated[str, Field(json_schema_extra={"enum": list(_NAMES.values())})]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: dict[str, Any] | None
    metadata: dict[str, str]


class BatchListAnswer(BaseModel):
    """A page of batches."""

    object: Literal["list"]
    data: list[BatchAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None


def batches_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/batches`."""
    batches = APIBlueprint("openai_batches", __name__)
    tell_time(batches)

    @batches.post("/v1/batches")
    @batches.output(BatchAnswer)
    @batches.doc(
        summary="Make a batch (OpenAI)",
        operation_id="openai_make_batch",
        security="ApiKey",
        responses=[400, 401, 403, 413, 415, 422, 429, 503],
        extensions=describe(
            body=BatchRequest,
            example={"input_file_id": "file-01k9v6s3m8e2t4w6y8a0c2e4g6", "endpoint": GENERATIONS, "completion_window": "24h"},
            request_headers=("Idempotency-Key",),
            is_counted=True,
            headers={"200": ("Location", POLL_AFTER, "Idempotency-Replayed")},
        ),
    )
    def make() -> Response:
        caller = authenticate(parts.callers, request, "submit")
        parts.quotas.admit(caller)
        key = parse_key(request.headers.get("Idempotency-Key"))
        sent = without_nulls(read_json(request))
        asked = validated(BatchRequest, sent)
        file = find_input(parts, caller, asked.input_file_id)
        new = NewBatch(
            tenant_id=caller.tenant_id,
            input_file_id=file.id,
            endpoint=asked.endpoint,
            completion_window=asked.completion_window,
            window_s=_DAY_S,
            fingerprint=fingerprint(_ROUTE, RequestBody(sent)),
            metadata=dict(asked.metadata),
            output_expires_s=asked.output_expires_after.seconds if asked.output_expires_after else None,
            idempotency_key=key,
            try_number=parse_try(request.headers.get(TRY_HEADER)),
        )
        limits = parts.quotas.limits_of(caller)
        try:
            created = create_batch(parts.db, new, limits)
        except TooManyBatchesError:
            parts.quotas.note_batches(limits.live_batches)
            raise
        parts.quotas.note_batches(created.num_live)
        response = _answer(find_batch(parts, caller, created.batch_id))
        response.headers["Location"] = f"/v1/batches/{created.batch_id}"
        if created.is_replay:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    @batches.get("/v1/batches")
    @batches.output(BatchListAnswer)
    @batches.doc(
        summary="List batches (OpenAI)",
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
        return page_response(parts, [batch_document(batch) for batch in found], has_more)

    @batches.get("/v1/batches/<batch_id>")
    @batches.output(BatchAnswer)
    @batches.doc(
        summary="Get a batch (OpenAI)",
        operation_id="openai_get_batch",
        security="ApiKey",
        responses=[401, 403, 404, 503],
        extensions=describe(headers={"200": (POLL_AFTER,)}),
    )
    def get_one(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        return _answer(find_batch(parts, caller, batch_id))

    @batches.post("/v1/batches/<batch_id>/cancel")
    @batches.output(BatchAnswer)
    @batches.doc(
        summary="Cancel a batch (OpenAI)",
        operation_id="openai_cancel_batch",
        security="ApiKey",
        responses=[401, 403, 404, 503],
        extensions=describe(headers={"200": (POLL_AFTER,)}),
    )
    def cancel_one(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        if is_id(batch_id, "bat"):
            cancel_batch(parts.db, caller.tenant_id, batch_id)
        return _answer(find_batch(parts, caller, batch_id))

    return batches


def _answer(batch: BatchDocument) -> Response:
    response = jsonify(batch_document(batch))
    if batch.status in LIVE:
        response.headers[POLL_AFTER] = str(1000 * BATCH_POLL_S)
    return response


def find_input(parts: Parts, caller: Caller, file_id: str) -> PlainFile:
    """
    The file of a batch's lines.

    Raises:
        RequestError: it is none of the caller's, or for something else.
    """
    file = get_file(parts.db, caller.tenant_id, file_id) if is_id(file_id, "file") else None
    if file is None:
        raise RequestError("invalid_request", "input_file_id: names no file of yours", "input_file_id")
    if file.purpose != "batch":
        raise RequestError("invalid_request", f"input_file_id: the file's purpose is {file.purpose}, not batch", "input_file_id")
    return file


def find_batch(parts: Parts, caller: Caller, batch_id: str) -> BatchDocument:
    """
    A batch of the caller's.

    Raises:
        RequestError: `not_found`: malformed, unknown and foreign ids are not told apart.
    """
    batch = get_batch(parts.db, caller.tenant_id, batch_id) if is_id(batch_id, "bat") else None
    if batch is None:
        raise RequestError("not_found", "there is no such batch")
    return batch


def batch_document(batch: BatchDocument) -> dict[str, Any]:
    """The batch as OpenAI's clients read it."""

    def ended(status: BatchStatus) -> int | None:
        return unix(batch.completed_at) if batch.status == status else None

    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": _NAMES[batch.status],
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": unix(batch.created_at),
        "in_progress_at": unix(batch.started_at),
        "expires_at": unix(batch.expires_at),
        "finalizing_at": unix(batch.finalizing_at),
        "completed_at": ended(BatchStatus.COMPLETED),
        "failed_at": ended(BatchStatus.FAILED),
        "expired_at": ended(BatchStatus.EXPIRED),
        "cancelling_at": unix(batch.canceling_at),
        "cancelled_at": ended(BatchStatus.CANCELED),
        "request_counts": {"total": batch.num_items, "completed": batch.num_completed, "failed": batch.num_failed},
        "usage": batch.usage,
        "metadata": batch.metadata,
    }
