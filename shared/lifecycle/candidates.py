"""
What could be released next, where not all of it fits: of each tenant and lane the first few units, read by index from any number of rows.

Knows who waits, not who goes first: an `Order` decides, the dispatcher's or, where there is none, lane and age.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from shared.db import Database
from shared.states import Priority, Stage
from shared.tables import COST_CLASS

MAX_GROUPS = 512
"""
Of each lane, groups of one tenant and one class of cost that a decision looks at; each costs some 20 µs. Where there are more, the next
decision goes on behind them.
"""

TABLES = {Stage.AR: "grid", Stage.DECODER: "image"}

NUM_IN_HAND = " + ".join(
    f"(SELECT count(*) FROM {table} WHERE state = '{state}' AND tenant_id = tenant.id)"  # noqa: S608 - our own names
    for table in TABLES.values()
    for state in ("released", "running")
)
"""
SQL: units of both stages that `tenant` has released or running.

Each state by itself, here and in `work.py`: each has an index of its own, and of both at once Postgres may look through all the rest.
"""

Place = tuple[str, int]
"""Tenant and class of cost."""

START: tuple[Place, ...] = (("", -1),) * len(Priority)
"""Of each lane, where a walk begins that is to see all of it."""


class Waiting(NamedTuple):
    """
    A unit that could be released.

    Attributes:
        lane: index of its priority in `Priority`.
        cost_s: predicted seconds of a worker; None: not known.
        waited_s: since it was asked for.
        left_s: until its deadline; None: it has none.
        attempt: how often a worker has claimed it.
    """

    id: str
    lane: int
    tenant_id: str
    cost_s: float | None
    waited_s: float
    left_s: float | None
    attempt: int


@dataclass(frozen=True)
class Seen:
    """
    What a look found.

    Attributes:
        waiting: of each tenant, lane and class of cost the oldest, and those whose deadline is near.
        room_of: units that tenants with a bound may get now.
        stopped_at: of each lane, where the next look begins; `START` if everybody was seen.
        are_all: this look saw everybody who waits.
    """

    waiting: tuple[Waiting, ...]
    room_of: Mapping[str, int]
    stopped_at: tuple[Place, ...]
    are_all: bool


class Order:
    """Who goes first where not all fits: here the most urgent lane and, within it, the oldest. Remembers where the last look stopped."""

    near_s = 0.0
    """Seconds before its deadline from which a unit is told of beside the oldest."""
    begin_at = START

    def choose(self, seen: Seen, room: int) -> list[str]:
        """Ids in the order of release, no more than there is room for."""
        chosen: list[str] = []
        left_of = dict(seen.room_of)
        for unit in sorted(seen.waiting, key=lambda unit: (unit.lane, -unit.waited_s, unit.id)):
            if len(chosen) < room and left_of.get(unit.tenant_id, 1) > 0:
                chosen.append(unit.id)
                if unit.tenant_id in left_of:
                    left_of[unit.tenant_id] -= 1
        return chosen

    def forget(self) -> None:
        """All that was ready has been released: nobody waits."""


def look(db: Database, stage: Stage, num_each: int, order: Order, max_running: int | None, *, is_limited: bool) -> Seen:
    """
    See who waits.

    Args:
        num_each: units of each group that are told of: as many as may be released now, so that no group is used up before.
        max_running: as `work.release` has it.
    """
    values = {
        "tenants": [tenant for tenant, _ in order.begin_at],
        "classes": [cost_class for _, cost_class in order.begin_at],
        "most": MAX_GROUPS,
        "each": num_each,
        "near": order.near_s,
        "max_running": max_running or 0,
    }
    statement = _statement(TABLES[stage], is_limited)
    rows = db.run_alone(statement, values)
    # A unit may be among the oldest and among those with a near deadline.
    waiting = {
        row.id: Waiting(row.id, row.lane, row.tenant_id, row.cost_s, row.waited_s, row.left_s, row.attempt) for row in rows if row.id
    }
    stopped_at = list(START)
    for row in rows:
        if row.id is None:
            stopped_at[row.lane] = (row.tenant_id, row.class_)
    return Seen(
        tuple(waiting.values()),
        {row.tenant_id: row.room for row in rows if row.room is not None},
        tuple(stopped_at),
        are_all=order.begin_at == START and tuple(stopped_at) == START,
    )


@functools.cache
def _statement(table: str, is_limited: bool) -> str:
    """
    A walk over the index: from each group to the next one by one descent, whatever the groups hold, then the first of each.

    No row is passed by but those that wait for another try (`not_before`).
    """
    ready = f"FROM {table} WHERE state = 'ready'"
    bounded = _BOUNDED if is_limited else "SELECT NULL::text AS tenant_id, NULL::bigint AS room WHERE false"
    told = "id, cost_s, created_at, deadline, attempt"
    return f"""
        WITH RECURSIVE walk (lane, tenant_id, class, place) AS (
            SELECT start.number - 1, first.tenant_id, first.class, 1
            FROM unnest(%(tenants)s::text[], %(classes)s::int[]) WITH ORDINALITY AS start (tenant_id, class, number)
            CROSS JOIN LATERAL (
                SELECT tenant_id, {COST_CLASS} AS class {ready}
                    AND lane = start.number - 1 AND (tenant_id, {COST_CLASS}) > (start.tenant_id, start.class)
                ORDER BY tenant_id, {COST_CLASS} LIMIT 1
            ) AS first
            UNION ALL
            SELECT walk.lane, next.tenant_id, next.class, walk.place + 1
            FROM walk CROSS JOIN LATERAL (
                SELECT tenant_id, {COST_CLASS} AS class {ready}
                    AND lane = walk.lane AND (tenant_id, {COST_CLASS}) > (walk.tenant_id, walk.class)
                ORDER BY tenant_id, {COST_CLASS} LIMIT 1
            ) AS next
            WHERE walk.place < %(most)s
        ), holder AS (SELECT DISTINCT lane, tenant_id FROM walk), bounded AS ({bounded}), unit AS (
            SELECT walk.lane, walk.tenant_id, oldest.*
            FROM walk CROSS JOIN LATERAL (
                SELECT {told} {ready}
                    AND lane = walk.lane AND tenant_id = walk.tenant_id AND {COST_CLASS} = walk.class
                    AND not_before <= statement_timestamp()
                ORDER BY created_at, id LIMIT %(each)s
            ) AS oldest
            UNION ALL
            SELECT holder.lane, holder.tenant_id, due.*
            FROM holder CROSS JOIN LATERAL (
                SELECT {told} {ready}
                    AND lane = holder.lane AND tenant_id = holder.tenant_id AND not_before <= statement_timestamp()
                    AND deadline > statement_timestamp() AND deadline <= statement_timestamp() + %(near)s * interval '1 s'
                    -- What cannot be in time any more, and soon expires, must not hide what can.
                    AND deadline >= statement_timestamp() + COALESCE(cost_s, 0) * interval '1 s'
                ORDER BY deadline LIMIT %(each)s
            ) AS due
        )
        SELECT
            unit.id, unit.lane, unit.tenant_id, unit.cost_s, NULL::int AS class_,
            extract(epoch FROM statement_timestamp() - unit.created_at)::float8 AS waited_s,
            extract(epoch FROM unit.deadline - statement_timestamp())::float8 AS left_s,
            unit.attempt, bounded.room
        FROM unit LEFT JOIN bounded ON bounded.tenant_id = unit.tenant_id
        UNION ALL
        SELECT NULL, lane, tenant_id, NULL, class, NULL, NULL, NULL, NULL FROM walk WHERE place = %(most)s
    """  # noqa: S608 - our own names


_BOUNDED = f"""
    SELECT tenant.id AS tenant_id, coalesce(tenant.max_running, %(max_running)s) - ({NUM_IN_HAND}) AS room
    FROM tenant WHERE tenant.id IN (SELECT tenant_id FROM holder) AND coalesce(tenant.max_running, %(max_running)s) > 0
"""  # noqa: S608 - our own names
