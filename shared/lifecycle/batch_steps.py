"""
The steps of a batch that the clerk takes (`services/api/batch_clerk.py`); `batches.py` shows the way.

Every step may be repeated: a line has no job or exactly one, which the transaction that makes the job writes into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.batch_items import is_pending
from shared.lifecycle.batch_reads import ENDED, count_items
from shared.lifecycle.batch_values import BatchDocument, NewItem
from shared.lifecycle.batches import counted, item_rows
from shared.lifecycle.events import record_event
from shared.lifecycle.files import NewFile, add_file_in
from shared.states import BatchStatus
from shared.tables import Batch, BatchItem

_INSERT_AT_ONCE = 1000
"""Lines of one statement."""

_ALSO_CALLED = {BatchStatus.CANCELED: ("batch.cancelled",)}
"""OpenAI's spelling; whoever listens to it is told, too."""

_now = func.clock_timestamp


def refuse_batch(db: Database, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
    """Some line was not understood: nothing is run."""

    def work(session: Session) -> None:
        row = session.get_one(Batch, batch_id, with_for_update=True, populate_existing=True)
        if row.status != BatchStatus.VALIDATING:
            return
        row.errors = [dict(error) for error in errors]
        _end(session, row, BatchStatus.FAILED)

    db.run(work)


def start_batch(db: Database, batch_id: str, items: Sequence[NewItem]) -> bool:
    """
    All lines were understood: store them, and begin. False: the batch is not being validated any more.

    Lines that were stored before by a try that did not come so far are left as they are: they are the same.
    """
    for first in range(0, len(items), _INSERT_AT_ONCE):
        rows = item_rows(batch_id, items[first : first + _INSERT_AT_ONCE])
        add = insert_or_skip(BatchItem).on_conflict_do_nothing()
        db.run(partial(_execute, add, rows))
    values = {"status": BatchStatus.RUNNING, "num_items": len(items), "started_at": _now()}
    begun = _move(batch_id, BatchStatus.VALIDATING).values(values).returning(Batch.id)
    return db.run(lambda session: session.scalar(begun)) is not None


def start_finalizing(db: Database, batch: BatchDocument) -> bool:
    """
    Nothing of the batch can change any more.

    Returns:
        False: something just has, by an append or a retry of which the batch as it was read does not know.
    """

    def work(session: Session) -> bool:
        # Judged once the row is locked, as whoever appends and retries locks it.
        row = session.get_one(Batch, batch.id, with_for_update=True, populate_existing=True)
        if row.status not in (BatchStatus.RUNNING, BatchStatus.CANCELING) or row.retried_at != batch.retried_at:
            return False
        if session.scalar(is_pending(batch.id)):
            return False
        row.status = BatchStatus.FINALIZING
        row.finalizing_at = session.execute(select(_now())).scalar_one()
        return True

    return db.run(work)


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
        row.usage = dict(usage)
        _end(session, row, status)

    db.run(work)


def _end(session: Session, row: Batch, status: BatchStatus) -> None:
    """End a batch that this transaction has locked, and tell of it."""
    items = count_items(session, row.id)
    completed = items["succeeded"]
    failed = sum(items[name] for name in ENDED) - completed
    row.counts = {"completed": completed, "failed": failed, "items": items}
    row.status = status
    row.completed_at = session.execute(select(_now())).scalar_one()
    # Whoever mends what is left of a batch need not hear of those that are whole.
    partial = ("batch.partial",) if completed and failed else ()
    for name in (f"batch.{status}", *_ALSO_CALLED.get(status, ()), *partial):
        tell_batch(session, row, name)


def tell_batch(session: Session, row: Batch, event_type: str) -> None:
    """An event of a batch that this transaction has locked, with its counts as they are."""
    items = counted(session, row)
    completed = items["succeeded"]
    counts = {"total": row.num_items, "completed": completed, "failed": sum(items[name] for name in ENDED) - completed}
    files = {"output_file_id": row.output_file_id, "error_file_id": row.error_file_id}
    record_event(
        session, row.tenant_id, event_type, {"id": row.id, "object": "batch", "status": row.status, "request_counts": counts, **files}
    )


def _execute(statement: Any, rows: list[dict[str, Any]], session: Session) -> None:
    session.execute(statement, rows)


def _move(batch_id: str, *origins: BatchStatus) -> Any:
    return update(Batch).where(Batch.id == batch_id, Batch.status.in_(origins))
