"""
Many jobs submitted as one: the steps of a batch. Its lines are the matter of `batch_items.py`.

    create ─► validating ─► running ─► finalizing ─► completed | expired
                  │            │            ▲   └──► canceled
                  └─► failed   └─► canceling ┘

Every step may be repeated: a line has no job or exactly one, which the transaction that makes the job writes into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError, TooManyBatchesError
from shared.ids import new_id
from shared.lifecycle.batch_items import count_outcomes
from shared.lifecycle.events import record_event
from shared.lifecycle.files import NewFile, add_file_in
from shared.lifecycle.paging import Page, read_page
from shared.lifecycle.quotas import Limits
from shared.states import BatchStatus
from shared.tables import Batch, BatchItem, Tenant

_TRY_AGAIN = timedelta(minutes=10)
"""As long as a numbered try may come after the one before: longer than a client waits for an answer."""
_INSERT_AT_ONCE = 1000
"""Lines of one statement."""

_ALSO_CALLED = {BatchStatus.CANCELED: ("batch.cancelled",)}
"""OpenAI's spelling; whoever listens to it is told, too."""

LIVE = (BatchStatus.VALIDATING, BatchStatus.RUNNING, BatchStatus.CANCELING, BatchStatus.FINALIZING)

_now = func.clock_timestamp


@dataclass(frozen=True)
class NewBatch:
    """A batch that somebody wants."""

    tenant_id: str
    input_file_id: str
    endpoint: str
    completion_window: str
    window_s: int
    fingerprint: str
    metadata: dict[str, str] = field(default_factory=dict)
    output_expires_s: int | None = None
    idempotency_key: str | None = None
    try_number: int | None = None


@dataclass(frozen=True)
class BatchDocument:
    """A batch as it is now; times are aware, and those of what has not happened are None."""

    id: str
    tenant_id: str
    status: BatchStatus
    endpoint: str
    input_file_id: str
    completion_window: str
    output_expires_s: int | None
    metadata: dict[str, Any]
    errors: list[dict[str, Any]] | None
    output_file_id: str | None
    error_file_id: str | None
    num_items: int
    num_completed: int
    num_failed: int
    usage: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime
    started_at: datetime | None
    finalizing_at: datetime | None
    canceling_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True)
class NewItem:
    """A line that was understood."""

    line: int
    custom_id: str
    request: dict[str, Any]


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


def create_batch(db: Database, new: NewBatch, limits: Limits = Limits()) -> CreatedBatch:  # noqa: B008 - frozen
    """
    Store a batch, whose lines are still to be read.

    Raises:
        RequestError: `idempotency_mismatch`.
        TooManyBatchesError: so many of the tenant's have not ended.
    """

    def work(session: Session) -> CreatedBatch:
        # A tenant's batches are made one by one: the bound is exact, and of two requests with one key the second finds the first.
        session.execute(select(Tenant.id).where(Tenant.id == new.tenant_id).with_for_update(key_share=True))
        if (earlier := _earlier(session, new)) is not None:
            return CreatedBatch(earlier, is_replay=True)
        live = _of(new.tenant_id).with_only_columns(func.count()).where(Batch.status.in_(LIVE))
        num_live = session.execute(live).scalar_one() + 1
        if limits.live_batches is not None and num_live > limits.live_batches:
            raise TooManyBatchesError(limits.live_batches)
        now = session.execute(select(_now())).scalar_one()
        batch_id = new_id("bat")
        session.add(
            Batch(
                id=batch_id,
                tenant_id=new.tenant_id,
                status=BatchStatus.VALIDATING,
                input_file_id=new.input_file_id,
                request_metadata=new.metadata,
                idempotency_key=new.idempotency_key,
                fingerprint=new.fingerprint,
                num_retries=new.try_number or 0,
                endpoint=new.endpoint,
                completion_window=new.completion_window,
                output_expires_s=new.output_expires_s,
                created_at=now,
                expires_at=now + timedelta(seconds=new.window_s),
            )
        )
        return CreatedBatch(batch_id, is_replay=False, num_live=num_live)

    return db.run(work)


def _earlier(session: Session, new: NewBatch) -> str | None:
    if new.idempotency_key is not None:
        holder = session.scalars(_of(new.tenant_id).where(Batch.idempotency_key == new.idempotency_key)).one_or_none()
        if holder is not None and holder.fingerprint != new.fingerprint:
            raise RequestError("idempotency_mismatch", "this Idempotency-Key came before with a different request", "Idempotency-Key")
        return None if holder is None else holder.id
    if not new.try_number:
        return None
    alike = _of(new.tenant_id).where(
        Batch.fingerprint == new.fingerprint, Batch.num_retries < new.try_number, Batch.created_at > _now() - _TRY_AGAIN
    )
    found = session.scalars(alike.order_by(Batch.created_at.desc()).limit(1).with_for_update()).one_or_none()
    if found is None:
        return None
    found.num_retries = new.try_number
    return found.id


def get_batch(db: Database, tenant_id: str, batch_id: str) -> BatchDocument | None:
    """A batch of this tenant, or None."""

    def work(session: Session) -> BatchDocument | None:
        row = session.scalars(_of(tenant_id).where(Batch.id == batch_id)).one_or_none()
        return None if row is None else _document(session, row)

    return db.run(work)


def list_batches(db: Database, tenant_id: str, page: Page) -> tuple[list[BatchDocument], bool]:
    """
    One page of batches by time of creation, and whether more follow.

    Raises:
        RequestError: as `read_page`.
    """

    def work(session: Session) -> tuple[list[BatchDocument], bool]:
        query = _of(tenant_id).where(Batch.endpoint.is_not(None))
        rows, has_more = read_page(session, query, Batch, page, "batch of yours", Batch.tenant_id == tenant_id)
        return [_document(session, row) for (row,) in rows], has_more

    return db.run(work)


def cancel_batch(db: Database, tenant_id: str, batch_id: str) -> bool:
    """Let nothing more of a batch be run; one that has ended, or is about to, stays as it is. False: there is no such batch."""

    def work(session: Session) -> bool:
        row = session.scalars(_of(tenant_id).where(Batch.id == batch_id).with_for_update()).one_or_none()
        if row is None:
            return False
        if row.status in (BatchStatus.VALIDATING, BatchStatus.RUNNING):
            row.status = BatchStatus.CANCELING
            row.canceling_at = session.execute(select(_now())).scalar_one()
        return True

    return db.run(work)


def live_batches(db: Database) -> list[BatchDocument]:
    """All batches that have not ended, oldest first. Their counts are not counted."""
    query = select(Batch).where(Batch.status.in_(LIVE), Batch.endpoint.is_not(None)).order_by(Batch.created_at)
    return db.run(lambda session: [_plain(row, 0, 0) for row in session.scalars(query)])


def refuse_batch(db: Database, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
    """Some line was not understood: nothing is run."""

    def work(session: Session) -> None:
        row = session.get_one(Batch, batch_id, with_for_update=True, populate_existing=True)
        if row.status != BatchStatus.VALIDATING:
            return
        row.errors = [dict(error) for error in errors]
        _end(session, row, BatchStatus.FAILED, {"completed": 0, "failed": 0})

    db.run(work)


def start_batch(db: Database, batch_id: str, items: Sequence[NewItem]) -> bool:
    """
    All lines were understood: store them, and begin. False: the batch is not being validated any more.

    Lines that were stored before by a try that did not come so far are left as they are: they are the same.
    """
    for first in range(0, len(items), _INSERT_AT_ONCE):
        rows = [
            {"id": new_id("itm"), "batch_id": batch_id, "line": item.line, "custom_id": item.custom_id, "request": item.request}
            for item in items[first : first + _INSERT_AT_ONCE]
        ]
        add = insert_or_skip(BatchItem).on_conflict_do_nothing()
        db.run(partial(_execute, add, rows))
    values = {"status": BatchStatus.RUNNING, "num_items": len(items), "started_at": _now()}
    begun = _move(batch_id, BatchStatus.VALIDATING).values(values).returning(Batch.id)
    return db.run(lambda session: session.scalar(begun)) is not None


def start_finalizing(db: Database, batch_id: str) -> None:
    """Nothing of the batch can change any more."""
    values = {"status": BatchStatus.FINALIZING, "finalizing_at": _now()}
    db.run(lambda session: session.execute(_move(batch_id, BatchStatus.RUNNING, BatchStatus.CANCELING).values(values)))


def end_batch(
    db: Database, batch_id: str, status: BatchStatus, output: NewFile | None, error: NewFile | None, usage: Mapping[str, Any]
) -> None:
    """The files are stored: the batch has ended."""

    def work(session: Session) -> None:
        row = session.get_one(Batch, batch_id, with_for_update=True, populate_existing=True)
        if row.status != BatchStatus.FINALIZING:
            return  # another one was quicker, or an unknown commit is being repeated
        row.output_file_id = add_file_in(session, output).id if output else None
        row.error_file_id = add_file_in(session, error).id if error else None
        completed, failed = count_outcomes(session, batch_id)
        row.usage = dict(usage)
        _end(session, row, status, {"completed": completed, "failed": failed})

    db.run(work)


def _end(session: Session, row: Batch, status: BatchStatus, counts: dict[str, int]) -> None:
    """End a batch that this transaction has locked, and tell of it."""
    row.counts = counts
    row.status = status
    row.completed_at = session.execute(select(_now())).scalar_one()
    files = {"output_file_id": row.output_file_id, "error_file_id": row.error_file_id}
    data = {"id": row.id, "object": "batch", "status": status, "request_counts": {"total": row.num_items, **counts}, **files}
    for name in (f"batch.{status}", *_ALSO_CALLED.get(status, ())):
        record_event(session, row.tenant_id, name, data)


def _execute(statement: Any, rows: list[dict[str, Any]], session: Session) -> None:
    session.execute(statement, rows)


def _of(tenant_id: str) -> Select[Batch]:
    return select(Batch).where(Batch.tenant_id == tenant_id)


def _move(batch_id: str, *origins: BatchStatus) -> Any:
    return update(Batch).where(Batch.id == batch_id, Batch.status.in_(origins))


def _document(session: Session, row: Batch) -> BatchDocument:
    counts = row.counts or dict(zip(("completed", "failed"), count_outcomes(session, row.id), strict=True))
    return _plain(row, counts["completed"], counts["failed"])


def _plain(row: Batch, num_completed: int, num_failed: int) -> BatchDocument:
    return BatchDocument(
        id=row.id,
        tenant_id=row.tenant_id,
        status=BatchStatus(row.status),
        endpoint=row.endpoint or "",
        input_file_id=row.input_file_id or "",
        completion_window=row.completion_window or "",
        output_expires_s=row.output_expires_s,
        metadata=row.request_metadata,
        errors=row.errors,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        num_items=row.num_items,
        num_completed=num_completed,
        num_failed=num_failed,
        usage=row.usage,
        created_at=row.created_at,
        expires_at=row.expires_at or row.created_at,
        started_at=row.started_at,
        finalizing_at=row.finalizing_at,
        canceling_at=row.canceling_at,
        completed_at=row.completed_at,
    )
