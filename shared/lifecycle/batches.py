"""
Many jobs submitted as one: batches made, read and canceled.

    create ─► validating ─► running ─► finalizing ─► completed | expired
                  │            │            ▲   └──► canceled
                  └─► failed   └─► canceling ┘

A batch that is filled by requests (`batch_control.py`) begins as running. A retry (`batch_retry.py`) leads from an end, but for
`failed`, back to running. The steps between are those of `batch_steps.py`, the lines are the matter of `batch_items.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError, TooManyBatchesError
from shared.ids import new_id
from shared.lifecycle.batch_reads import count_items
from shared.lifecycle.batch_values import BatchDocument, CreatedBatch, NewBatch, NewItem, describe
from shared.lifecycle.paging import Page, read_page
from shared.lifecycle.quotas import Limits
from shared.states import BatchStatus
from shared.tables import Batch, BatchItem, Tenant

_TRY_AGAIN = timedelta(minutes=10)
"""As long as a numbered try may come after the one before: longer than a client waits for an answer."""

LIVE = (BatchStatus.VALIDATING, BatchStatus.RUNNING, BatchStatus.CANCELING, BatchStatus.FINALIZING)

_now = func.clock_timestamp


def create_batch(db: Database, new: NewBatch, limits: Limits = Limits()) -> CreatedBatch:  # noqa: B008 - frozen
    """
    Store a batch, with its lines, or with those of its file still to be read.

    Raises:
        RequestError: `idempotency_mismatch`.
        TooManyBatchesError: so many of the tenant's have not ended.
    """

    def work(session: Session) -> CreatedBatch:
        lock_tenant(session, new.tenant_id)
        if (earlier := _earlier(session, new)) is not None:
            return CreatedBatch(earlier, is_replay=True)
        num_live = count_one_more(session, new.tenant_id, limits)
        now = session.execute(select(_now())).scalar_one()
        batch_id = new_id("bat")
        begins: dict[str, Any] = {"status": BatchStatus.VALIDATING}
        if new.input_file_id is None:
            begins = {"status": BatchStatus.RUNNING, "started_at": now, "num_items": len(new.items)}
        session.add(
            Batch(
                id=batch_id,
                tenant_id=new.tenant_id,
                **begins,
                name=new.name,
                defaults=new.defaults,
                is_sealed=new.is_sealed,
                max_failures=new.max_failures,
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
        session.flush()
        if new.items:
            session.execute(insert(BatchItem), item_rows(batch_id, new.items))
        return CreatedBatch(batch_id, is_replay=False, num_live=num_live)

    return db.run(work)


def count_one_more(session: Session, tenant_id: str, limits: Limits) -> int:
    """
    How many live batches the tenant has with another one, in a transaction that has locked the tenant's row.

    Raises:
        TooManyBatchesError
    """
    live = _of(tenant_id).with_only_columns(func.count()).where(Batch.status.in_(LIVE))
    num_live = session.execute(live).scalar_one() + 1
    if limits.live_batches is not None and num_live > limits.live_batches:
        raise TooManyBatchesError(limits.live_batches)
    return num_live


def lock_tenant(session: Session, tenant_id: str) -> None:
    """A tenant's batches are made one by one: the bound is exact, and of two requests with one key the second finds the first."""
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))


def item_rows(batch_id: str, items: Sequence[NewItem]) -> list[dict[str, Any]]:
    """The rows of lines."""
    return [
        {"id": new_id("itm"), "batch_id": batch_id, "line": item.line, "custom_id": item.custom_id, "request": item.request}
        for item in items
    ]


def find_replay(db: Database, tenant_id: str, key: str, fingerprint: str) -> str | None:
    """
    The batch that an earlier request with this idempotency key made, or None.

    Raises:
        RequestError: `idempotency_mismatch`.
    """
    return db.run(lambda session: _of_key(session, tenant_id, key, fingerprint))


def _of_key(session: Session, tenant_id: str, key: str, fingerprint: str | None) -> str | None:
    holder = session.scalars(_of(tenant_id).where(Batch.idempotency_key == key)).one_or_none()
    if holder is not None and holder.fingerprint != fingerprint:
        raise RequestError("idempotency_mismatch", "this Idempotency-Key came before with a different request", "Idempotency-Key")
    return None if holder is None else holder.id


def _earlier(session: Session, new: NewBatch) -> str | None:
    if new.idempotency_key is not None:
        return _of_key(session, new.tenant_id, new.idempotency_key, new.fingerprint)
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
    return db.run(lambda session: [describe(row, {}) for row in session.scalars(query)])


def _of(tenant_id: str) -> Select[Batch]:
    return select(Batch).where(Batch.tenant_id == tenant_id)


def _document(session: Session, row: Batch) -> BatchDocument:
    return describe(row, counted(session, row))


def counted(session: Session, row: Batch) -> dict[str, int]:
    """Lines of a batch by status."""
    kept = (row.counts or {}).get("items")
    return count_items(session, row.id) if kept is None else kept
