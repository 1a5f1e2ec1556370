"""
The lines of a batch: how they become jobs, once each, or get none. Knows no step of the batch itself (`batches.py`).

What became of them is read by `batch_reads.py`; those that failed begin again in `batch_retry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Select, exists, func, select, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.batch_reads import CANCELED, EXPIRED
from shared.lifecycle.ending import database_now, end_canceled
from shared.lifecycle.events import record_item_failure
from shared.lifecycle.fast_submit import insert_lines
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.quotas import Limits
from shared.lifecycle.submit import new_rows, store_in
from shared.states import TERMINAL_JOB
from shared.tables import Batch, BatchItem, Job

_CANCEL_AT_ONCE = 25
"""Jobs of one transaction, which holds the tenant's row."""
_SUBMIT_AT_ONCE = 20
"""The same; about a tenth of a second."""
_DROP_AT_ONCE = 2000
"""Lines of one statement, which is given five seconds by the database; about a tenth of one."""

_UNDONE = {
    EXPIRED: "the time of the batch was up before this request could be run",
    CANCELED: "the batch was canceled before this request was run",
}


@dataclass(frozen=True)
class PendingItem:
    """A line that has no outcome yet."""

    id: str
    custom_id: str
    request: dict[str, Any]


def pending_items(db: Database, batch_id: str, limit: int) -> list[PendingItem]:
    """The next lines without an outcome."""

    def work(session: Session) -> list[PendingItem]:
        rows = session.scalars(_pending(batch_id).order_by(BatchItem.line).limit(limit))
        return [PendingItem(row.id, row.custom_id, row.request) for row in rows]

    return db.run(work)


def submit_items(db: Database, batch_id: str, ready: Mapping[str, NewJob | dict[str, Any]], limits: Limits) -> int:
    """
    Make jobs of lines in their order, or note why they cannot be. Lines that have an outcome already are left alone.

    Args:
        ready: by item id, a job or an error.
    Returns:
        How many jobs were made.
    Raises:
        RequestError: one of the jobs cannot be stored now (`queue_full`), or ever; some of the ones before it are.
    """
    rows = new_rows(db, {item_id: found for item_id, found in ready.items() if isinstance(found, NewJob)}, limits)
    count = 0
    for is_new, run in groupby(ready, lambda item_id: item_id in rows):
        item_ids = list(run)
        if is_new and insert_lines(db, {item_id: rows[item_id] for item_id in item_ids}, limits.max_queued):
            count += len(item_ids)
            continue
        for first in range(0, len(item_ids), _SUBMIT_AT_ONCE):
            some = {item_id: ready[item_id] for item_id in item_ids[first : first + _SUBMIT_AT_ONCE]}
            count += _submit_together(db, batch_id, some, limits)
    return count


def _submit_together(db: Database, batch_id: str, ready: Mapping[str, NewJob | dict[str, Any]], limits: Limits) -> int:
    """The same in one transaction, with a look at what is there: all of them or none."""

    def work(session: Session) -> int:
        count = 0
        refused: list[BatchItem] = []
        items = session.scalars(_pending(batch_id).where(BatchItem.id.in_(ready)).order_by(BatchItem.line).with_for_update()).all()
        for item in items:
            found = ready[item.id]
            if isinstance(found, NewJob):
                item.job_id = store_in(session, found, limits, None).job_id
                count += 1
            else:
                item.error = found
                item.failed_at = database_now(session)
                refused.append(item)
        session.flush()
        if refused:
            tenant_id = session.scalars(select(Batch.tenant_id).where(Batch.id == batch_id)).one()
            for item in refused:
                record_item_failure(session, tenant_id, batch_id, (item.error or {}).get("code"), line=item.line)
        return count

    return db.run(work)


def drop_pending(db: Database, batch_id: str, code: str) -> int:
    """Some of the lines that have no job yet get none; how many. To be repeated until there are none."""
    error = {"code": code, "message": _UNDONE[code], "retryable": True}
    some = _pending(batch_id).with_only_columns(BatchItem.id).order_by(BatchItem.line).limit(_DROP_AT_ONCE).with_for_update()
    dropped = update(BatchItem).where(BatchItem.id.in_(some)).values(error=error, failed_at=func.clock_timestamp()).returning(BatchItem.id)
    return db.run(lambda session: len(session.execute(dropped).all()))


def cancel_jobs(db: Database, batch_id: str) -> tuple[int, list[str]]:
    """Cancel some of a batch's jobs; how many, and the ids of running work whose workers should stop."""

    def work(session: Session) -> tuple[int, list[str]]:
        live = _live_jobs(batch_id).order_by(Job.id).limit(_CANCEL_AT_ONCE).with_for_update(skip_locked=True)
        jobs = session.scalars(live).all()
        return len(jobs), end_canceled(session, jobs, "the batch was canceled") if jobs else []

    return db.run(work)


def is_settled(db: Database, batch_id: str) -> bool:
    """Does every line have its outcome, and has every job ended?"""

    def work(session: Session) -> bool:
        return not session.scalar(is_pending(batch_id)) and not session.scalar(select(exists(_live_jobs(batch_id))))

    return db.run(work)


def is_pending(batch_id: str) -> Select[bool]:
    """Has any line no outcome yet?"""
    return select(exists(_pending(batch_id)))


def _pending(batch_id: str) -> Select[BatchItem]:
    return select(BatchItem).where(BatchItem.batch_id == batch_id, BatchItem.job_id.is_(None), BatchItem.error.is_(None))


def _live_jobs(batch_id: str) -> Select[Job]:
    return select(Job).where(Job.batch_id == batch_id, Job.status.not_in(TERMINAL_JOB))
