"""What a job would have to run. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.reuse import Cache
from shared.lifecycle.submit import NewJob, image_columns, new_layouts
from shared.states import WorkState
from shared.tables import Grid, Image


@dataclass(frozen=True)
class Plan:
    """What would run for a job: what is stored already would not, what runs for others counts."""

    num_grids: int
    num_images: int


def plan(db: Database, new: NewJob) -> Plan:
    """What would run for this job if it came now."""
    layouts = new_layouts(new)
    keys = [image_columns(new, layout, index)["key"] for index, layout in enumerate(layouts)]
    may_find = new.cache is Cache.USE and new.approval_s is None

    def work(session: Session) -> Plan:
        done = _done(session, Image, new.tenant_id, keys) if may_find else set()
        drawn = [layout for layout, key in zip(layouts, keys, strict=True) if key not in done]
        # Without a key each seed is a grid of its own.
        wanted = {layout.key or str(layout.seed) for layout in drawn}
        written = _done(session, Grid, new.tenant_id, wanted) if may_find else set()
        return Plan(len(wanted - written), len(drawn))

    return db.run(work)


def _done(session: Session, row: type[Grid] | type[Image], tenant_id: str, keys: set[str] | list[str | None]) -> set[str | None]:
    query = select(row.key).where(row.tenant_id == tenant_id, row.key.in_([key for key in keys if key]), row.state == WorkState.DONE)
    return set(session.scalars(query))
