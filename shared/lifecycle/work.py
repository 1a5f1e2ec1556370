"""How a unit of work moves before it ends, besides its claim: release, heartbeat, hand back, rescue. The same for grids and images."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.orm import Session

from shared.db import NOT_SYNCED, Database
from shared.lifecycle.candidates import NUM_IN_HAND, START, TABLES, Order, look
from shared.lifecycle.ending import database_now, end_work, live_jobs
from shared.lifecycle.events import record_changes
from shared.lifecycle.past_attempts import keep_attempt
from shared.states import Stage, WorkState
from shared.tables import Grid, Image
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

AT_ONCE = 16
"""Units chosen by one look; a window that has more room is filled by several. Each group of candidates is read so far."""


def release(
    db: Database,
    stage: Stage,
    window: int,
    max_running: int | None = None,
    *,
    is_any_limited: bool = False,
    order: Order | None = None,
) -> dict[str, TraceContext | None]:
    """
    Mark the next units as released, until `window` are released or running: all that is ready if it fits, or else what `order` chooses.

    Args:
        max_running: units of both stages that a tenant without a limit of its own may have released or running; None: any number.
        is_any_limited: does any tenant have a limit? Looking costs a little.
        order: who goes first; None: the most urgent lane, oldest first within it.
    Returns:
        Their ids, in the order of release, to be sent to Celery after this transaction: a message must never be ahead of its row. And the
        traces that their messages tell of.
    """
    is_limited = is_any_limited or max_running is not None
    order = order or Order()
    # Run again after a connection that died, it tells of fewer: idle workers find what no message tells of.
    room, released = _release_all(db, stage, window, max_running, is_limited=is_limited)
    if released is not None:
        order.forget()
        return released
    told: dict[str, TraceContext | None] = {}
    while room > 0:
        began_at = order.begin_at
        seen = look(db, stage, min(room, AT_ONCE), order, max_running, is_limited=is_limited)
        order.begin_at = seen.stopped_at
        # What is chosen and has gone meanwhile, canceled or locked, has had its turn all the same.
        chosen = order.choose(seen, min(room, AT_ONCE))
        told |= _release_chosen(db, stage, chosen)
        room -= len(chosen)
        if not chosen and began_at == START:
            break
    return told


def _release_all(
    db: Database, stage: Stage, window: int, max_running: int | None, *, is_limited: bool
) -> tuple[int, dict[str, TraceContext | None] | None]:
    """
    Release everything that is ready, if it fits.

    Returns:
        How many units may be released, and those that were; None: more are ready, and none was released.
    """
    statement = _release_all_statement(TABLES[stage], is_limited)
    values = {"window": window, "max_running": max_running or 0}
    rows = db.run_alone(statement, values)
    if rows[0].is_crowded:
        return rows[0].room, None
    # An UPDATE returns its rows in no order.
    released = sorted((row for row in rows if row.id is not None), key=lambda row: (row.lane, row.created_at, row.id))
    return rows[0].room, {row.id: TraceContext.from_headers(row.trace) for row in released}


def _release_chosen(db: Database, stage: Stage, ids: Sequence[str]) -> dict[str, TraceContext | None]:
    """Release those of these units that are still ready, to be claimed in this order."""
    statement = _release_chosen_statement(TABLES[stage])
    rows = db.run_alone(statement, {"ids": list(ids)})
    traces = {row.id: TraceContext.from_headers(row.trace) for row in rows}
    return {unit_id: traces[unit_id] for unit_id in ids if unit_id in traces}


_IS_READY = "state || '' = 'ready'"
"""
Of a unit that is known by its id. Said plainly, Postgres would take the index of those that are ready for the shorter way, while its
statistics are of a time when there were few.
"""


@functools.cache
def _release_all_statement(table: str, is_limited: bool) -> str:
    """
    One trip while nobody has to wait: it counts the room, sees whether what is ready fits, and releases it.

    Plain SQL: the session's way to say the same costs more than running it, and the dispatcher does nothing more often. With limits, it
    fits only if no tenant gets more units than it may have in hand; those of both stages count. One dispatcher releases, so what is
    counted does not grow meanwhile.
    """
    is_over = f"OR EXISTS ({_OVER_LIMIT})" if is_limited else ""
    # CTEs that are used twice, or lock, are computed once; a subquery with a limit might be computed again for every row.
    return f"""
        WITH asked AS (
            SELECT greatest(
                0,
                %(window)s::bigint
                - (SELECT count(*) FROM {table} WHERE state = 'released') - (SELECT count(*) FROM {table} WHERE state = 'running')
            ) AS room
        ), seen AS MATERIALIZED (
            SELECT id, tenant_id FROM {table} WHERE state = 'ready' AND not_before <= clock_timestamp()
            ORDER BY lane, created_at, id LIMIT (SELECT room + 1 FROM asked)
        ), looked AS MATERIALIZED (
            SELECT room, (SELECT count(*) FROM seen) > room {is_over} AS is_crowded FROM asked
        ), picked AS (
            SELECT id FROM {table} WHERE id IN (SELECT id FROM seen) AND {_IS_READY} AND NOT (SELECT is_crowded FROM looked)
            FOR UPDATE SKIP LOCKED
        ), released AS (
            -- One time for all: among them the claim goes by age, and not by the order in which rows were touched.
            -- A release that is lost with the server is found ready again; what was claimed by then is written behind it.
            UPDATE {table} SET state = 'released', released_at = statement_timestamp() WHERE id IN (SELECT id FROM picked)
            RETURNING lane, created_at, id, trace, {NOT_SYNCED} AS not_synced
        )
        SELECT looked.room, looked.is_crowded, released.* FROM looked LEFT JOIN released ON true
    """  # noqa: S608 - our own names


_OVER_LIMIT = f"""
    SELECT FROM (SELECT tenant_id, count(*) AS num_units FROM seen GROUP BY tenant_id) AS wanted
    JOIN tenant ON tenant.id = wanted.tenant_id
    WHERE coalesce(tenant.max_running, %(max_running)s) > 0
        AND wanted.num_units + ({NUM_IN_HAND}) > coalesce(tenant.max_running, %(max_running)s)
"""  # noqa: S608 - our own names


@functools.cache
def _release_chosen_statement(table: str) -> str:
    return f"""
        WITH picked AS (
            SELECT id FROM {table} WHERE id = ANY(%(ids)s::text[]) AND {_IS_READY} FOR UPDATE SKIP LOCKED
        )
        UPDATE {table}
        -- A microsecond apart: the claim keeps the order.
        SET state = 'released', released_at = statement_timestamp() + chosen.place * interval '1 microsecond'
        FROM unnest(%(ids)s::text[]) WITH ORDINALITY AS chosen (id, place)
        WHERE {table}.id = chosen.id AND {table}.id IN (SELECT id FROM picked)
        RETURNING {table}.id, {table}.trace, {NOT_SYNCED} AS not_synced
    """  # noqa: S608 - our own names


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
