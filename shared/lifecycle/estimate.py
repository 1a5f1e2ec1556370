"""What a job would have to run. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.grid import TokenGrid
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.new_rows import image_columns, new_layouts
from shared.lifecycle.reuse import Cache
from shared.states import RETRYABLE_JOB, WorkState
from shared.tables import Grid, Image, Job, Output


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


@dataclass(frozen=True)
class RetryPlan(Plan):
    """
    What would run for another run of a job.

    Attributes:
        deadline: of the job, passed or not.
        image_cost_s: seconds of a worker for each image; None: not known when it was submitted.
        num_sources: reference images.
    """

    deadline: datetime | None
    grid: TokenGrid
    image_cost_s: float | None
    num_sources: int


def plan_retry(db: Database, tenant_id: str, job_id: str) -> RetryPlan | None:
    """What a retry of this job would have to run now; None if nothing can be retried, or if a person would have to approve of it first."""

    def work(session: Session) -> RetryPlan | None:
        job = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)).one_or_none()
        if job is None or job.erased_at is not None or job.status not in RETRYABLE_JOB or job.approval_s is not None:
            return None
        mine = select(Image, Grid).join(Grid, Grid.id == Image.grid_id).join(Output, Output.image_id == Image.id)
        units = session.execute(mine.where(Output.job_id == job.id, Image.state != WorkState.DONE)).all()
        if not units:
            return None
        # Equal work of other jobs that was done meanwhile is taken.
        drawn = _done(session, Image, tenant_id, [image.key for image, _ in units])
        todo = [(image, grid) for image, grid in units if image.key not in drawn]
        written = _done(session, Grid, tenant_id, [grid.key for _, grid in todo])
        grids = {grid.id for _, grid in todo if grid.state != WorkState.DONE and grid.key not in written}
        image, grid = units[0]
        shape = TokenGrid(grid.token_h, grid.token_w)
        return RetryPlan(len(grids), len(todo), job.deadline, shape, image.cost_s, len(grid.source_file_ids))

    return db.run(work)


def _done(session: Session, row: type[Grid] | type[Image], tenant_id: str, keys: set[str] | list[str | None]) -> set[str | None]:
    query = select(row.key).where(row.tenant_id == tenant_id, row.key.in_([key for key in keys if key]), row.state == WorkState.DONE)
    return set(session.scalars(query))
