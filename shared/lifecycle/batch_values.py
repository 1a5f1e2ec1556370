"""A batch and its lines as values: what somebody wants, what was made of it, and what it is now. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.lifecycle.batch_reads import ENDED
from shared.states import BatchStatus
from shared.tables import Batch


@dataclass(frozen=True)
class NewItem:
    """A line that was understood."""

    line: int
    custom_id: str
    request: dict[str, Any]


@dataclass(frozen=True)
class NewBatch:
    """
    A batch that somebody wants.

    Attributes:
        input_file_id: of its lines; None: they are `items`, which were understood, and those that are appended.
        defaults: members of a job request that appended lines inherit. `items` have them already.
        max_failures: lines that may fail until it is paused; None: any number.
    """

    tenant_id: str
    input_file_id: str | None
    endpoint: str
    completion_window: str
    window_s: int
    fingerprint: str = ""
    name: str | None = None
    defaults: dict[str, Any] | None = None
    is_sealed: bool = True
    max_failures: int | None = None
    items: Sequence[NewItem] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    output_expires_s: int | None = None
    idempotency_key: str | None = None
    try_number: int | None = None


@dataclass(frozen=True)
class BatchDocument:
    """
    A batch as it is now; times are aware, and those of what has not happened are None.

    `counts`: lines by status, as `ITEM_STATUSES` has them; empty where they were not counted.
    """

    id: str
    tenant_id: str
    status: BatchStatus
    endpoint: str
    input_file_id: str | None
    name: str | None
    defaults: dict[str, Any]
    is_sealed: bool
    max_failures: int | None
    holds_work: bool
    completion_window: str
    output_expires_s: int | None
    metadata: dict[str, Any]
    errors: list[dict[str, Any]] | None
    output_file_id: str | None
    error_file_id: str | None
    num_items: int
    counts: dict[str, int]
    usage: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime
    started_at: datetime | None
    finalizing_at: datetime | None
    canceling_at: datetime | None
    completed_at: datetime | None
    paused_at: datetime | None
    retried_at: datetime | None

    @property
    def num_completed(self) -> int:
        """Lines that have succeeded."""
        return self.counts["succeeded"]

    @property
    def num_failed(self) -> int:
        """Lines that have ended otherwise."""
        return sum(self.counts[status] for status in ENDED) - self.num_completed


@dataclass(frozen=True)
class CreatedBatch:
    """
    A batch that is in the ledger.

    Attributes:
        is_replay: it was there before: the same idempotency key, or an earlier try of the request, brought it.
        num_live: batches of its tenant that have not ended; None for a replay.
    """

    batch_id: str
    is_replay: bool
    num_live: int | None = None


def describe(row: Batch, counts: dict[str, int]) -> BatchDocument:
    """A batch as its row has it, with these counts."""
    return BatchDocument(
        id=row.id,
        tenant_id=row.tenant_id,
        status=BatchStatus(row.status),
        endpoint=row.endpoint or "",
        input_file_id=row.input_file_id,
        name=row.name,
        defaults=row.defaults or {},
        is_sealed=row.is_sealed,
        max_failures=row.max_failures,
        holds_work=row.holds_work,
        completion_window=row.completion_window or "",
        output_expires_s=row.output_expires_s,
        metadata=row.request_metadata,
        errors=row.errors,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        num_items=row.num_items,
        counts=counts,
        usage=row.usage,
        created_at=row.created_at,
        expires_at=row.expires_at or row.created_at,
        started_at=row.started_at,
        finalizing_at=row.finalizing_at,
        canceling_at=row.canceling_at,
        completed_at=row.completed_at,
        paused_at=row.paused_at,
        retried_at=row.retried_at,
    )
