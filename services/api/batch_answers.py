"""A batch and its items -> what clients read: one form for OpenAI's clients and the native routes, whoever filled the batch."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from flask import Response, jsonify
from pydantic import BaseModel, Field

from services.api.answers import Output
from services.api.list_answer import ListAnswer
from services.api.parts import Parts
from services.api.problem_catalogue import Problem
from shared.errors import RequestError
from shared.ids import is_id
from shared.job_document import finish_document
from shared.lifecycle.batch_reads import ITEM_STATUSES, ItemRow, Outcome
from shared.lifecycle.batch_values import BatchDocument
from shared.lifecycle.batches import LIVE, get_batch
from shared.lifecycle.tenants import Caller
from shared.states import BatchStatus

POLL_S = 5
"""Guess: batches take minutes and more."""
JOBS = "/v1/jobs"
"""`endpoint` of native batches: the route whose bodies their items are."""
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
"""Those of batches that are read from a file."""

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
_LINKS = ("items", "append", "seal", "pause", "resume", "cancel", "retry-failed", "results", "export.zip")


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


class ItemCounts(BaseModel):
    """Items of a batch by status."""

    pending: int = Field(description="They have no job yet.")
    queued: int
    running: int
    succeeded: int
    failed: int
    canceled: int
    expired: int


class BatchUrls(BaseModel):
    """Where to go from here."""

    self: str
    items: str
    append: str
    seal: str
    pause: str
    resume: str
    cancel: str
    retry_failed: str
    results: str
    export: str


class BatchAnswer(BaseModel):
    """A batch. Times are seconds since 1970, and the status has OpenAI's names, for OpenAI's clients read it too."""

    id: str
    object: Literal["batch"]
    endpoint: Annotated[str, Field(json_schema_extra={"enum": [GENERATIONS, EDITS, JOBS]})]
    errors: BatchErrors | None
    input_file_id: str | None = Field(description="Null: its items were sent, not uploaded.")
    completion_window: str
    status: Annotated[str, Field(json_schema_extra={"enum": list(_NAMES.values())})]
    output_file_id: str | None = Field(description="Of batches that were read from a file, as is the next one.")
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
    name: str | None
    sealed: bool = Field(description="No items can be appended, and it ends with its last one.")
    paused: bool = Field(description="Nothing more of it begins until it is resumed.")
    max_failures: int | None = Field(description="It is paused when so many items have failed since it went on.")
    items: ItemCounts
    urls: BatchUrls


class BatchListAnswer(ListAnswer[BatchAnswer]):
    """A page of batches."""


class ItemError(BaseModel):
    """Why an item did not succeed."""

    code: str
    message: str
    param: str | None = Field(description="The wrong member of the item's request.")
    retryable: bool = Field(description="Would `retry-failed` perhaps help?")


class ItemAnswer(BaseModel):
    """An item of a batch."""

    id: str
    object: Literal["batch.item"]
    batch_id: str
    line: int = Field(description="Counts the items of the batch from 1, in the order in which they came.")
    custom_id: str
    status: Annotated[str, Field(json_schema_extra={"enum": list(ITEM_STATUSES)})] = Field(
        description="Its job's, or `pending` before it has one."
    )
    job_id: str | None = Field(description="Null before it has one, and where it will have none.")
    error: ItemError | None


class ItemListAnswer(ListAnswer[ItemAnswer]):
    """A page of items."""


class ResultAnswer(ItemAnswer):
    """An item that has ended, with its images."""

    outputs: list[Output] = Field(description="Empty, unless it has succeeded.")


class ResultListAnswer(ListAnswer[ResultAnswer]):
    """A page of results."""


class AppendAnswer(BaseModel):
    """What became of the items that were sent."""

    object: Literal["batch.append"]
    added: int
    replayed: int = Field(description="Items that were there before, with the same request.")
    batch: BatchAnswer


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


def batch_response(parts: Parts, batch: BatchDocument) -> Response:
    """The batch, and while it goes on when to look again."""
    response = jsonify(batch_document(parts, batch))
    if batch.status in LIVE:
        response.headers["Retry-After"] = str(POLL_S)
    return response


def batch_document(parts: Parts, batch: BatchDocument) -> dict[str, Any]:
    """The batch as its owner reads it."""

    def ended(status: BatchStatus) -> int | None:
        return _unix(batch.completed_at) if batch.status == status else None

    own = f"{parts.base_url()}/v1/batches/{batch.id}"
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
        "created_at": _unix(batch.created_at),
        "in_progress_at": _unix(batch.started_at),
        "expires_at": _unix(batch.expires_at),
        "finalizing_at": _unix(batch.finalizing_at),
        "completed_at": ended(BatchStatus.COMPLETED),
        "failed_at": ended(BatchStatus.FAILED),
        "expired_at": ended(BatchStatus.EXPIRED),
        "cancelling_at": _unix(batch.canceling_at),
        "cancelled_at": ended(BatchStatus.CANCELED),
        "request_counts": {"total": batch.num_items, "completed": batch.num_completed, "failed": batch.num_failed},
        "usage": batch.usage,
        "metadata": batch.metadata,
        "name": batch.name,
        "sealed": batch.is_sealed,
        # What has ended does not go on, paused or not.
        "paused": batch.paused_at is not None and batch.status in LIVE,
        "max_failures": batch.max_failures,
        "items": batch.counts,
        "urls": {"self": own, **{_member(name): f"{own}/{name}" for name in _LINKS}},
    }


def item_document(batch_id: str, item: ItemRow) -> dict[str, Any]:
    """An item as its owner reads it."""
    return {
        "id": item.id,
        "object": "batch.item",
        "batch_id": batch_id,
        "line": item.line,
        "custom_id": item.custom_id,
        "status": item.status,
        "job_id": item.job_id,
        "error": None if item.error is None else _error(item.error, item.status),
    }


def result_document(batch_id: str, outcome: Outcome, base_url: str, parts: Parts) -> dict[str, Any]:
    """An item that has ended, with links to its images that work now."""
    document = outcome.document
    job_id, error = (None, outcome.error) if document is None else (document["id"], document["error"])
    item = ItemRow(outcome.item_id, outcome.line, outcome.custom_id, outcome.status, job_id, error)
    # Of a job that did not succeed, what it has is no result.
    has_outputs = document is not None and outcome.status == "succeeded"
    outputs = finish_document(document, base_url, parts.storage.presign)["outputs"] if document is not None and has_outputs else []
    return {**item_document(batch_id, item), "outputs": outputs}


def _error(error: dict[str, Any], status: str) -> dict[str, Any]:
    code = error["code"]
    problem = Problem.__members__.get(code.upper())
    # What did not come to its end says nothing of what it would have come to.
    retryable = status != "failed" or (problem is not None and problem.retryable)
    return {"code": code, "message": error["message"], "param": error.get("param"), "retryable": retryable}


def _member(link: str) -> str:
    return link.removesuffix(".zip").replace("-", "_")


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
