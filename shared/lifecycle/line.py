"""Who stands in line before a job: what each stage has waiting, added up in a few portions so that many jobs can be told from one look."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, union_all
from sqlalchemy.orm import Session

from shared.db import Database
from shared.states import Stage, WorkState
from shared.tables import Grid, Image

_MAX_COUNTED = 20_000
"""Units that are added up, those that come first; whoever stands behind them has long to wait."""
_PORTIONS = 32
"""Of each lane: how exactly the place within a lane is known."""


@dataclass(frozen=True)
class Portion:
    """Some units of one lane that stand behind one another, and the seconds of a worker that they will take."""

    lane: int
    first_at: datetime
    last_at: datetime
    cost_s: float


@dataclass(frozen=True)
class Line:
    """What a stage has waiting. `is_known`: of all of it the costs are known, and it was counted to its end."""

    portions: tuple[Portion, ...]
    is_known: bool

    def seconds_before(self, lane: int, created_at: datetime) -> float | None:
        """Seconds of one worker until work of this lane and age has its turn; None if that is not known."""
        if not self.is_known:
            return None
        ahead = sum(portion.cost_s for portion in self.portions if portion.lane < lane)
        for portion in self.portions:
            if portion.lane == lane and portion.last_at < created_at:
                ahead += portion.cost_s
            elif portion.lane == lane and portion.first_at < created_at:
                # Somewhere among them: as if they had come evenly.
                ahead += portion.cost_s * ((created_at - portion.first_at) / (portion.last_at - portion.first_at))
        return ahead


def read_line(db: Database, stage: Stage) -> Line:
    """The line of a stage as it is now."""
    row = Grid if stage is Stage.AR else Image
    columns = select(row.lane, row.created_at, row.cost_s)
    ready = columns.where(row.state == WorkState.READY).order_by(row.lane, row.created_at).limit(_MAX_COUNTED)
    waiting = union_all(ready, columns.where(row.state == WorkState.RELEASED).limit(_MAX_COUNTED)).subquery()
    portion = func.ntile(_PORTIONS).over(partition_by=waiting.c.lane, order_by=waiting.c.created_at).label("portion")
    placed = select(waiting, portion).subquery()
    query = (
        select(
            placed.c.lane,
            func.min(placed.c.created_at).label("first_at"),
            func.max(placed.c.created_at).label("last_at"),
            func.sum(placed.c.cost_s).label("cost_s"),
            func.count().label("num_units"),
            func.count(placed.c.cost_s).label("num_known"),
        )
        .group_by(placed.c.lane, placed.c.portion)
        .order_by(placed.c.lane, placed.c.portion)
    )

    def work(session: Session) -> Line:
        rows = session.execute(query).all()
        is_known = all(one.num_known == one.num_units for one in rows) and sum(one.num_units for one in rows) < _MAX_COUNTED
        portions = tuple(Portion(one.lane, one.first_at, one.last_at, one.cost_s or 0.0) for one in rows)
        return Line(portions, is_known)

    return db.run(work)
