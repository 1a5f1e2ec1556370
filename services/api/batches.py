"""
What a batch's owner does with it besides what OpenAI's clients know (`openai/batches.py`): append, seal, pause, resume, retry, rename; and
its items. What they have become is handed out by `batch_downloads.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.auth import authenticate
from services.api.batch_answers import (
    JOBS,
    AppendAnswer,
    BatchAnswer,
    ItemListAnswer,
    batch_document,
    batch_response,
    find_batch,
    item_document,
)
from services.api.batch_schemas import (
    MAX_ITEMS,
    MAX_ITEMS_BYTES,
    AppendRequest,
    BatchChange,
    ItemQuery,
    window_seconds,
)
from services.api.field_errors import FieldError, InvalidFieldsError, validated
from services.api.new_batch import read_items
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.request_body import read_fields, read_json, read_query
from services.api.route_docs import describe
from shared.db import Database
from shared.errors import RequestError, TooManyBatchesError
from shared.lifecycle.batch_control import OtherRequestsError, append_items, change_batch, pause_batch, resume_batch, seal_batch
from shared.lifecycle.batch_reads import list_items
from shared.lifecycle.batch_retry import retry_batch

_ITEMS_EXAMPLE = {"items": [{"custom_id": "sku-19", "prompt": "a blue mug on a white table"}]}


def native_batches_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/batches/{id}`."""
    batches = APIBlueprint("batches", __name__)

    @batches.patch("/v1/batches/<batch_id>")
    @batches.output(BatchAnswer, description="The batch as it is now.")
    @batches.doc(
        summary="Change a batch",
        operation_id="change_batch",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 503],
        extensions=describe(body=BatchChange, example={"name": "autumn", "metadata": {"order": "17"}}, headers={"200": ("Retry-After",)}),
    )
    def change_one(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        batch = find_batch(parts, caller, batch_id)
        asked = read_fields(request, BatchChange)
        changes = {name: getattr(asked, name) for name in asked.model_fields_set}
        if changes.get("metadata", {}) is None:
            changes["metadata"] = {}
        change_batch(parts.db, caller.tenant_id, batch.id, changes)
        return batch_response(parts, find_batch(parts, caller, batch_id))

    @batches.get("/v1/batches/<batch_id>/items")
    @batches.output(ItemListAnswer, description="A page of items.")
    @batches.doc(
        summary="List the items of a batch",
        operation_id="list_batch_items",
        security="ApiKey",
        responses=[400, 401, 403, 404, 503],
        extensions=describe(query=ItemQuery, headers={"200": ("Link",)}),
    )
    def list_page(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        batch = find_batch(parts, caller, batch_id)
        query = read_query(request.args, ItemQuery)
        page = asked_page(query.limit, query.after, query.order, "itm", "batch item")
        items, has_more = list_items(parts.db, batch.id, query.status, page)
        return page_response(parts, [item_document(batch.id, item) for item in items], has_more)

    @batches.post("/v1/batches/<batch_id>/append")
    @batches.output(AppendAnswer, description="All of the items are in the batch.")
    @batches.doc(
        summary="Append items to a batch",
        description="All of them or none. An item whose `custom_id` is there already with the same request changes nothing; with another "
        "request it is refused.",
        operation_id="append_batch_items",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 422, 429, 503],
        extensions=describe(body=AppendRequest, example=_ITEMS_EXAMPLE, is_counted=True, max_json_bytes=MAX_ITEMS_BYTES),
    )
    def append(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        parts.quotas.admit(caller)
        batch = find_batch(parts, caller, batch_id)
        sent = read_json(request, MAX_ITEMS_BYTES)
        validated(AppendRequest, sent)
        if batch.endpoint != JOBS:
            raise RequestError("batch_sealed", "the batch has the lines of its file, and takes no more items")
        requests = read_items(parts, caller, sent["items"], batch.defaults)
        try:
            appended = append_items(parts.db, caller.tenant_id, batch.id, requests, MAX_ITEMS)
        except OtherRequestsError as error:
            raise _mismatches(list(requests), error) from None
        if appended is None:
            raise RequestError("not_found", "there is no such batch")
        now = batch_document(parts, find_batch(parts, caller, batch_id))
        return jsonify({"object": "batch.append", "added": appended.num_added, "replayed": appended.num_replayed, "batch": now})

    @batches.post("/v1/batches/<batch_id>/retry-failed")
    @batches.output(BatchAnswer, description="The batch, which goes on if anything of it could be tried again.")
    @batches.doc(
        summary="Try again what failed in a batch",
        description="Jobs that failed, expired or were canceled begin another run under the same id; items that became no job are judged "
        "anew, but for those whose request is at fault. A batch that has ended goes on, and gets its completion window once more.",
        operation_id="retry_batch",
        security="ApiKey",
        responses=[401, 402, 403, 404, 422, 429, 503],
        extensions=describe(is_counted=True, headers={"200": ("Retry-After",)}),
    )
    def retry(batch_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        parts.quotas.admit(caller)
        batch = find_batch(parts, caller, batch_id)
        limits = parts.quotas.limits_of(caller)
        try:
            _, num_live = retry_batch(parts.db, caller.tenant_id, batch.id, window_seconds(batch.completion_window), limits)
        except TooManyBatchesError:
            parts.quotas.note_batches(limits.live_batches)
            raise
        parts.quotas.note_batches(num_live)
        return batch_response(parts, find_batch(parts, caller, batch_id))

    def add_switch(name: str, summary: str, description: str, switch: Callable[[Database, str, str], bool]) -> None:
        @batches.post(f"/v1/batches/<batch_id>/{name}", endpoint=name)
        @batches.output(BatchAnswer, description="The batch as it is now.")
        @batches.doc(
            summary=summary,
            description=f"{description} One that has ended, or is about to, stays as it is.",
            operation_id=f"{name}_batch",
            security="ApiKey",
            responses=[401, 403, 404, 503],
            extensions=describe(headers={"200": ("Retry-After",)}),
        )
        def turn(batch_id: str) -> Response:
            caller = authenticate(parts.callers, request, "submit")
            batch = find_batch(parts, caller, batch_id)
            switch(parts.db, caller.tenant_id, batch.id)
            return batch_response(parts, find_batch(parts, caller, batch_id))

    add_switch("seal", "Seal a batch", "No more items come: the batch ends with its last one.", seal_batch)
    add_switch(
        "pause", "Pause a batch", "No more items become jobs, and no more work of its jobs begins; what runs is finished.", pause_batch
    )
    add_switch("resume", "Resume a batch", "A paused batch goes on. Its completion window went on meanwhile.", resume_batch)
    return batches


def _mismatches(custom_ids: list[str], error: OtherRequestsError) -> InvalidFieldsError:
    where = [("items", custom_ids.index(custom_id), "custom_id") for custom_id in error.custom_ids]
    detail = "the batch has an item of this name with another request"
    return InvalidFieldsError(
        [FieldError(place, "idempotency_mismatch", f"{'.'.join(map(str, place))}: {detail}", "idempotency_mismatch") for place in where]
    )
