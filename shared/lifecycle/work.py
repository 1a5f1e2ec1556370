"""How a unit of work moves before it ends, besides its claim: release, heartbeat, hand back, rescue. The same for grids and images."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Integer, bindparam, case, func, or_, select, true, tuple_, union_all, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.ending import database_now, end_work, live_jobs
from shared.lifecycle.events import record_changes
from shared.lifecycle.past_attempts import keep_attempt
from shared.states import Stage, WorkState
from shared.tables import Grid, Image, Tenant
from shared.trace import TraceContext

WORK: dict[Stage, Any] = {Stage.AR: Grid, Stage.DECODER: Image}
"""The table of each stage. Any: mypy joins the two row types to their bare base, which has no columns."""

MAX_LOST = 3
"""Leases a unit may lose before it is taken for work that kills its worker."""

RELEASE_S = 30
"""Seconds until a release that nobody claimed is taken back. Idle workers ask every 2 s, so all are busy or gone by then."""

Unit = TypeVar("Unit", Grid, Image)

_BATCH = 100
_now = func.clock_timestamp
_NOT_SYNCED = func.set_config("synchronous_commit", "off", True)


def release(
    db: Database, stage: Stage, window: int, max_running: int | None = None, *, is_any_limited: bool = False
) -> dict[str, TraceContext | None]:
    """
    Mark the next units as released, most urgent lane first, oldest first within it, until `window` are released or running.

    Args:
        max_running: units of both stages that a tenant without a limit of its own may have released or running; None: any number.
        is_any_limited: does any tenant have a limit? Looking costs a little for every tenant there is.
    Returns:
        Their ids, in the order of the line, to be sent to Celery after this transaction: a message must never be ahead of its row. And
        the traces that their messages tell of.
    """
    is_limited = is_any_limited or max_running is not None
    statement = _limited_release_statement(stage) if is_limited else _release_statement(stage)
    values = {"window": window, **({"max_running": max_running or 0} if is_limited else {})}

    # Run again after a connection that died, it tells of fewer: idle workers find what no message tells of.
    released = db.change_rows(statement, values)
    # An UPDATE returns its rows in no order.
    return {row.id: TraceContext.from_headers(row.trace) for row in sorted(released, key=lambda row: (row.lane, row.created_at, row.id))}


def _is_in_hand(row: Any) -> Any:
    return or_(row.state == WorkState.RELEASED, row.state == WorkState.RUNNING)


@functools.cache
def _release_statement(stage: Stage) -> Any:
    """
    Built once: the dispatcher runs it all the time, and building it costs more than running it. Its commit does not wait for the disk: a
    release that is lost with the server is found ready again, and what was claimed by then is written behind it.

    Any: SQLAlchemy's type of it names the columns' types of one of the two tables.
    """
    row = WORK[stage]
    outstanding = select(func.count()).where(_is_in_hand(row)).scalar_subquery()
    picked = (
        select(row.id)
        .where(row.state == WorkState.READY, row.not_before <= _now())
        .order_by(row.lane, row.created_at, row.id)
        .limit(func.greatest(0, bindparam("window", type_=Integer) - outstanding))
        .with_for_update(skip_locked=True)
        # A CTE that locks is computed once; a subquery with a limit might be computed again for every row.
        .cte("picked")
    )
    return (
        update(row)
        .where(row.id.in_(select(picked.c.id)))
        # One time for all: among them the claim goes by age, as the choice did, and not by the order in which rows were touched.
        .values(state=WorkState.RELEASED, released_at=func.statement_timestamp())
        .returning(row.lane, row.created_at, row.id, row.trace, _NOT_SYNCED)
        .execution_options(synchronize_session=False)
    )


@functools.cache
def _limited_release_statement(stage: Stage) -> Any:
    """
    As `_release_statement`, and no tenant gets more units than it may have in hand; it counts those of both stages.

    One dispatcher releases, so what is counted does not grow meanwhile. Each tenant's next units are found by an index of their own: what a
    tenant at its limit has waiting is not passed by.
    """
    row = WORK[stage]
    in_hand = [select(unit.tenant_id).where(_is_in_hand(unit)) for unit in (Grid, Image)]
    by_tenant = union_all(*in_hand).cte("in_hand")
    held = select(func.count()).select_from(by_tenant).where(by_tenant.c.tenant_id == Tenant.id).scalar_subquery()
    limit = func.coalesce(Tenant.max_running, bindparam("max_running", type_=Integer))
    # Of all tenants together no more than the window; of each one no more than its own room.
    window = bindparam("window", type_=Integer)
    room = case((limit > 0, func.least(window, func.greatest(0, limit - held))), else_=window)
    next_of_tenant = (
        select(row.id, row.lane, row.created_at)
        .where(row.tenant_id == Tenant.id, row.state == WorkState.READY, row.not_before <= _now())
        .order_by(row.lane, row.created_at, row.id)
        .limit(room)
        .lateral("next_of_tenant")
    )
    outstanding = select(func.count()).where(_is_in_hand(row)).scalar_subquery()
    chosen = (
        select(next_of_tenant.c.id)
        .select_from(Tenant)
        .join(next_of_tenant, true())
        .order_by(next_of_tenant.c.lane, next_of_tenant.c.created_at, next_of_tenant.c.id)
        .limit(func.greatest(0, window - outstanding))
        .cte("chosen")
    )
    picked = select(row.id).where(row.id.in_(select(chosen.c.id)), row.state == WorkState.READY).with_for_update(skip_locked=True)
    return (
        update(row)
        .where(row.id.in_(select(picked.cte("picked").c.id)))
        .values(state=WorkState.RELEASED, released_at=func.statement_timestamp())
        .returning(row.lane, row.created_at, row.id, row.trace, _NOT_SYNCED)
        .execution_options(synchronize_session=False)
    )


def heartbeat(db: Database, stage: Stage, held: Collection[tuple[str, int]], lease_s: float) -> set[tuple[str, int]]:
    """
    Extend the leases of `held`: pairs of work id and attempt.

    Returns:
        The pairs still held. The others were canceled or rescued: stop them and write nothing.
    """
    row = WORK[stage]

    def work(session: Session) -> set[tuple[str, int]]:
        extended = session.execute(
            update(row)
            .where(tuple_(row.id, row.attempt).in_(list(held)), row.state == WorkState.RUNNING)
            .values(lease_until=_now() + timedelta(seconds=lease_s))
            .returning(row.id, row.attempt)
        )
        return {(unit_id, attempt) for unit_id, attempt in extended}

    return db.run(work)


def held_unit(session: Session, stage: Stage, work_id: str, attempt: int) -> Grid | Image | None:
    """The unit, locked, if this attempt still runs it."""
    row = WORK[stage]
    held: Grid | Image | None = session.execute(
        select(row).where(row.id == work_id, row.attempt == attempt, row.state == WorkState.RUNNING).with_for_update()
    ).scalar_one_or_none()
    return held


def hand_back(db: Database, stage: Stage, work_id: str, attempt: int) -> bool:
    """Give running work back at once, as a worker does that shuts down. False: it was not ours any more."""

    def work(session: Session) -> bool:
        unit = held_unit(session, stage, work_id, attempt)
        if unit is None:
            return False
        unit.error = None  # that of an earlier attempt
        requeue(session, unit, delay_s=0)
        return True

    return db.run(work)


def rescue(db: Database, stage: Stage) -> tuple[int, list[str]]:
    """
    Take back expired leases and unclaimed releases; work that lost `MAX_LOST` leases fails.

    Returns:
        How many units were touched, and the ids of other running work that nobody wants any more.
    """
    row = WORK[stage]

    def work(session: Session) -> tuple[int, list[str]]:
        unclaimed = (
            select(row.id)
            .where(row.state == WorkState.RELEASED, row.released_at < _now() - timedelta(seconds=RELEASE_S))
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
            # A CTE that locks is computed once; a subquery with a limit might be computed again for every row.
            .cte("unclaimed")
        )
        forgotten = session.scalars(
            update(row)
            .where(row.id.in_(select(unclaimed.c.id)))
            .values(state=WorkState.READY, released_at=None, not_before=_now() + timedelta(seconds=1))
            .returning(row.id)
        ).all()
        expired: Sequence[Grid | Image] = session.scalars(
            select(row)
            .where(row.state == WorkState.RUNNING, row.lease_until < _now())
            .order_by(row.lease_until)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        ).all()
        stopped: list[str] = []
        for unit in expired:
            if unit.state != WorkState.RUNNING:
                # It ended with another unit of its job, a moment ago.
                continue
            unit.num_lost += 1
            unit.error = {"code": "worker_lost", "message": "the worker that did this died or fell silent"}
            if unit.num_lost >= MAX_LOST:
                error = {"code": "poison", "message": f"{unit.num_lost} workers were lost while doing this"}
                stopped += end_work(session, unit, error)
            else:
                requeue(session, unit, delay_s=2.0**unit.num_lost)
        return len(forgotten) + len(expired), stopped

    return db.run(work)


def lock_units(session: Session, row: type[Unit], ids: Collection[str]) -> list[Unit]:
    """Units by id, locked in that order, as they are now."""
    query = select(row).where(row.id.in_(ids)).order_by(row.id).with_for_update().execution_options(populate_existing=True)
    return list(session.scalars(query))


def requeue(session: Session, unit: Grid | Image, delay_s: float) -> None:
    """Running work goes back to ready. Whoever still runs it is refused: by the state now, by the attempt after the next claim."""
    now = database_now(session)
    keep_attempt(unit, now)
    unit.state = WorkState.READY
    unit.worker_id = unit.lease_until = None
    unit.not_before = now + timedelta(seconds=delay_s)
    record_changes(session, session.scalars(live_jobs(unit)).all(), "job.requeued")
