"""
What the owner of a batch does with it while it goes on: lines appended, sealed, paused, renamed.

A batch that has ended, or is about to, is neither paused nor sealed; asked for that, it stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session, aliased

from shared.db import Database
from shared.errors import GlmqError, RequestError
from shared.lifecycle.batch_reads import CANCELED, EXPIRED
from shared.lifecycle.batch_steps import tell_batch
from shared.lifecycle.batch_values import NewItem
from shared.lifecycle.batches import item_rows
from shared.lifecycle.ending import database_now
from shared.states import TERMINAL_JOB, BatchStatus, JobStatus, WorkState
from shared.tables import Batch, BatchItem, Grid, Image, Job, Output

_GOES_ON = (BatchStatus.VALIDATING, BatchStatus.RUNNING)
_HOLD_AT_ONCE = 500
"""Units of one statement."""
_HELD = timedelta(minutes=10)
"""How long work is held back at once. Whatever becomes of its batch and of whoever holds it, then it goes on by itself."""
_HELD_ANEW = timedelta(minutes=5)
"""What is left of that when it is held anew."""
_IS_HELD = timedelta(minutes=2)
"""What waits longer than this is held: work that failed waits some seconds for its next attempt."""

_now = func.clock_timestamp


class OtherRequestsError(GlmqError):
    """Lines of these custom ids are there, with other requests."""

    def __init__(self, custom_ids: Sequence[str]) -> None:
        super().__init__(", ".join(custom_ids))
        self.custom_ids = tuple(custom_ids)


@dataclass(frozen=True)
class Appended:
    """How many lines are new, and how many were there before with the same request."""

    num_added: int
    num_replayed: int


def append_items(db: Database, tenant_id: str, batch_id: str, requests: Mapping[str, dict[str, Any]], most: int) -> Appended | None:
    """
    Add lines to a batch: all of them or none.

    Args:
        requests: by custom id, in order.
        most: lines that a batch may have.
    Returns:
        None: the tenant has no such batch.
    Raises:
        RequestError: `batch_sealed`; or it would have too many lines.
        OtherRequestsError
    """

    def work(session: Session) -> Appended | None:
        row = _lock(session, tenant_id, batch_id)
        if row is None:
            return None
        mine = select(BatchItem.custom_id, BatchItem.request).where(BatchItem.batch_id == batch_id, BatchItem.custom_id.in_(list(requests)))
        there = {row.custom_id: row.request for row in session.execute(mine)}
        # Of an erased job nothing is left to compare: it was done once, and is not done again.
        others = [custom_id for custom_id, request in there.items() if request not in ({}, requests[custom_id])]
        if others:
            raise OtherRequestsError(others)
        new = [(custom_id, request) for custom_id, request in requests.items() if custom_id not in there]
        if new:
            _check_open(session, row, row.num_items + len(new), most)
            items = [NewItem(row.num_items + place, custom_id, request) for place, (custom_id, request) in enumerate(new, 1)]
            session.execute(insert(BatchItem), item_rows(batch_id, items))
            row.num_items += len(new)
        return Appended(len(new), len(there))

    return db.run(work)


def _check_open(session: Session, row: Batch, num_items: int, most: int) -> None:
    is_over = row.expires_at is not None and row.expires_at <= database_now(session)
    if row.is_sealed or row.status != BatchStatus.RUNNING or is_over:
        why = "is sealed" if row.is_sealed and row.status == BatchStatus.RUNNING else "has ended, or is about to"
        raise RequestError("batch_sealed", f"the batch {why}, and takes no more items")
    if num_items > most:
        raise RequestError("invalid_request", f"items: a batch has at most {most} (with these {num_items})", "items")


def seal_batch(db: Database, tenant_id: str, batch_id: str) -> bool:
    """Nothing more comes: the batch ends with its last line. False: the tenant has no such batch."""

    def work(session: Session) -> bool:
        row = _lock(session, tenant_id, batch_id)
        if row is not None and row.status in _GOES_ON:
            row.is_sealed = True
        return row is not None

    return db.run(work)


def pause_batch(db: Database, tenant_id: str, batch_id: str) -> bool:
    """Let nothing more of a batch begin until it is resumed. False: the tenant has no such batch."""

    def work(session: Session) -> bool:
        row = _lock(session, tenant_id, batch_id)
        if row is not None and row.status in _GOES_ON and row.paused_at is None:
            _pause(session, row)
        return row is not None

    return db.run(work)


def pause_failing(db: Database, batch_id: str) -> bool:
    """Pause a batch of which as many lines have failed since it went on as may. False: it goes on."""

    def work(session: Session) -> bool:
        row = session.get_one(Batch, batch_id, with_for_update=True, populate_existing=True)
        if row.status != BatchStatus.RUNNING or row.paused_at is not None or row.max_failures is None:
            return False
        since = row.resumed_at or row.created_at
        jobs = select(Job.id).where(Job.batch_id == batch_id, Job.status == JobStatus.FAILED, Job.completed_at > since)
        is_refused = (BatchItem.error.is_not(None), BatchItem.error["code"].astext.not_in((CANCELED, EXPIRED)))
        lines = select(BatchItem.id).where(BatchItem.batch_id == batch_id, *is_refused, BatchItem.failed_at > since)
        counts = [select(func.count()).select_from(some.limit(row.max_failures).subquery()).scalar_subquery() for some in (jobs, lines)]
        if session.execute(select(counts[0] + counts[1])).scalar_one() < row.max_failures:
            return False
        _pause(session, row)
        return True

    return db.run(work)


def _pause(session: Session, row: Batch) -> None:
    row.paused_at = database_now(session)
    tell_batch(session, row, "batch.paused")


def resume_batch(db: Database, tenant_id: str, batch_id: str) -> bool:
    """Let it go on, and count its failures anew. False: the tenant has no such batch."""

    def work(session: Session) -> bool:
        row = _lock(session, tenant_id, batch_id)
        if row is not None and row.paused_at is not None:
            row.paused_at = None
            row.resumed_at = database_now(session)
        return row is not None

    return db.run(work)


def change_batch(db: Database, tenant_id: str, batch_id: str, changes: Mapping[str, Any]) -> bool:
    """
    Give a batch another name, other metadata, or another number of failures to pause at. False: the tenant has no such batch.

    Args:
        changes: of `name`, `metadata` and `max_failures`, those that are to be changed.
    """

    def work(session: Session) -> bool:
        row = _lock(session, tenant_id, batch_id)
        if row is None:
            return False
        row.name = changes.get("name", row.name)
        row.request_metadata = changes.get("metadata", row.request_metadata)
        row.max_failures = changes.get("max_failures", row.max_failures)
        return True

    return db.run(work)


def hold_work(db: Database, batch_id: str) -> int:
    """
    Hold back work of a paused batch that could begin, and let go what other jobs wait for; how many units.

    To be repeated while it is paused: running work makes other work ready.
    """

    def work(session: Session) -> int:
        session.execute(update(Batch).where(Batch.id == batch_id, ~Batch.holds_work).values(holds_work=True))
        count = 0
        for unit in (Grid, Image):
            ready, is_wanted = _ready(unit, batch_id), _is_wanted(unit, batch_id)
            count += _postpone(session, ready.where(unit.not_before < _now() + _HELD_ANEW, ~is_wanted), unit, _now() + _HELD)
            count += _postpone(session, ready.where(unit.not_before > _now() + _IS_HELD, is_wanted), unit, _now())
        return count

    return db.run(work)


def let_work_go(db: Database, batch_id: str) -> int:
    """Let go some of the work that was held back; how many units. To be repeated until there are none."""

    def work(session: Session) -> int:
        count = 0
        for unit in (Grid, Image):
            count += _postpone(session, _ready(unit, batch_id).where(unit.not_before > _now() + _IS_HELD), unit, _now())
        if not count:
            session.execute(update(Batch).where(Batch.id == batch_id, Batch.paused_at.is_(None)).values(holds_work=False))
        return count

    return db.run(work)


def _postpone(session: Session, some: Select[Any], unit: Any, until: Any) -> int:
    picked = some.order_by(unit.id).limit(_HOLD_AT_ONCE).with_for_update(of=unit, skip_locked=True).cte("picked")
    moved = update(unit).where(unit.id.in_(select(picked.c.id))).values(not_before=until).returning(unit.id)
    return len(session.execute(moved.execution_options(synchronize_session=False)).all())


def _ready(unit: Any, batch_id: str) -> Select[Any]:
    """
    Units of the batch's jobs that are ready.

    Any, here and below: mypy joins the two row types to their bare base, which has no columns.
    """
    of_batch = _jobs_of(unit, Job).where(Job.batch_id == batch_id)
    return select(unit.id).where(unit.state == WorkState.READY, unit.id.in_(of_batch))


def _is_wanted(unit: Any, batch_id: str) -> Any:
    """Does a live job of elsewhere wait for it?"""
    other = aliased(Job)
    elsewhere = or_(other.batch_id.is_(None), other.batch_id != batch_id)
    return exists(_jobs_of(unit, other).where(elsewhere, _unit_of(unit) == unit.id))


def _jobs_of(unit: Any, job: Any) -> Select[Any]:
    waiting = select(_unit_of(unit)).select_from(job).join(Output, Output.job_id == job.id).join(Image, Image.id == Output.image_id)
    return waiting.where(job.status.not_in(TERMINAL_JOB))


def _unit_of(unit: Any) -> Any:
    return Image.grid_id if unit is Grid else Output.image_id


def _lock(session: Session, tenant_id: str, batch_id: str) -> Batch | None:
    mine = select(Batch).where(Batch.id == batch_id, Batch.tenant_id == tenant_id)
    return session.scalars(mine.with_for_update()).one_or_none()
