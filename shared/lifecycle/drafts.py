"""A grid half-way: its draft is written, to be shown, or to wait for approval. Every write is fenced by the attempt."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import StaleAttemptError
from shared.lifecycle.ending import database_now, live_jobs
from shared.lifecycle.events import count_change, record_changes
from shared.lifecycle.work import held_unit
from shared.states import Stage, WorkState
from shared.tables import Grid, Image, Output, Usage


def record_draft(db: Database, grid_id: str, attempt: int, draft_token_ids: Sequence[int]) -> None:
    """
    The draft is written: whoever runs the grid next goes on from it, and a preview of it is drawn if a job wants one. May be repeated.

    Raises:
        StaleAttemptError: this attempt does not hold the grid any more.
    """

    def work(session: Session) -> None:
        grid = held_unit(session, Stage.AR, grid_id, attempt)
        if not isinstance(grid, Grid):
            raise StaleAttemptError(f"{grid_id}: attempt {attempt} is over")
        _keep_draft(session, grid, draft_token_ids)

    db.run(work)


def hold_grid(db: Database, grid_id: str, attempt: int, draft_token_ids: Sequence[int]) -> None:
    """
    The draft of a grid that needs approval is written: the grid waits, and with its last grid the job asks for approval.

    Raises:
        StaleAttemptError: this attempt does not hold the grid any more.
    """

    def work(session: Session) -> None:
        grid = held_unit(session, Stage.AR, grid_id, attempt)
        if not isinstance(grid, Grid):
            held = session.get(Grid, grid_id)
            is_same = held is not None and held.attempt == attempt and held.draft_token_ids == list(draft_token_ids)
            if held is not None and held.state == WorkState.HELD and is_same:
                return  # an unknown commit is being repeated
            raise StaleAttemptError(f"{grid_id}: attempt {attempt} is over")
        _keep_draft(session, grid, draft_token_ids)
        grid.state = WorkState.HELD
        grid.lease_until = grid.error = None
        now = database_now(session)
        _record_usage(session, grid, len(draft_token_ids), now)
        session.flush()
        for job in session.scalars(live_jobs(grid)).all():
            # Asked after the job is locked: of two grids that are held together, the second one sees the first.
            grid_ids = select(Image.grid_id).join(Output, Output.image_id == Image.id).where(Output.job_id == job.id)
            if session.scalar(select(exists().where(Grid.id.in_(grid_ids), Grid.state != WorkState.HELD))):
                count_change(session, job)
                continue
            decide_by = now + timedelta(seconds=job.approval_s or 0)
            job.approval_deadline = decide_by if job.deadline is None else min(decide_by, job.deadline)
            record_changes(session, [job], "job.awaiting_approval")

    db.run(work)


def _keep_draft(session: Session, grid: Grid, draft_token_ids: Sequence[int]) -> None:
    grid.draft_token_ids = list(draft_token_ids)
    session.flush()
    if grid.preview is None:
        grid.wants_preview = any(job.wants_previews for job in session.scalars(live_jobs(grid)).all())


def _record_usage(session: Session, grid: Grid, num_tokens: int, now: datetime) -> None:
    seconds = (now - grid.started_at) / timedelta(seconds=1) if grid.started_at else 0.0
    session.add(Usage(tenant_id=grid.tenant_id, stage=Stage.AR, work_id=grid.id, units=num_tokens, seconds=seconds))
