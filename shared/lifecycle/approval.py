"""The customer's word on a draft: approve it, and its grid goes on; reject it, and another draft is made."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.lifecycle.ending import database_now
from shared.lifecycle.events import record_changes
from shared.lifecycle.new_job import NUM_SEEDS
from shared.lifecycle.past_attempts import keep_attempt
from shared.states import TERMINAL_JOB, WorkState
from shared.tables import Grid, Image, Job, Output

MAX_REJECTIONS = 20
"""Guess: who likes none of so many drafts should change the prompt. It bounds what one job can cost."""


def approve(db: Database, tenant_id: str, job_id: str) -> bool:
    """
    Let the grids of a job go on from their drafts.

    Returns:
        False: this tenant has no such job.
    Raises:
        RequestError: `already_terminal` or `not_awaiting_approval`.
    """

    def work(session: Session) -> bool:
        found = _lock_waiting(session, tenant_id, job_id)
        if found is None:
            return False
        job, grids = found
        for grid in grids:
            grid.needs_approval = False
            _go_on(session, grid)
        _decide(session, job, "job.approved")
        return True

    return db.run(work)


def reject(db: Database, tenant_id: str, job_id: str, layout_seed: int) -> bool:
    """
    Drop the drafts of a job and have others made, from `layout_seed` on.

    Returns:
        False: this tenant has no such job.
    Raises:
        RequestError: `already_terminal`, `not_awaiting_approval`, `too_many_drafts`, or `layout_seed` is the one that was rejected.
    """

    def work(session: Session) -> bool:
        found = _lock_waiting(session, tenant_id, job_id)
        if found is None:
            return False
        job, grids = found
        if grids[0].num_rejected >= MAX_REJECTIONS:
            raise RequestError("too_many_drafts", f"{MAX_REJECTIONS} drafts of this job were rejected; approve this one or cancel the job")
        if layout_seed == job.params["layout_seed"]:
            raise RequestError("invalid_request", "layout_seed: that is the layout that is being rejected", "layout_seed")
        _redraft(session, job, grids, layout_seed)
        # A new dictionary: the row's own would change unnoticed.
        job.params = {**job.params, "layout_seed": layout_seed}
        _decide(session, job, "job.rejected")
        return True

    return db.run(work)


def _lock_waiting(session: Session, tenant_id: str, job_id: str) -> tuple[Job, list[Grid]] | None:
    """
    A job whose drafts wait for its customer, and its grids by index, all locked.

    Raises:
        RequestError: `already_terminal` or `not_awaiting_approval`.
    """
    # A job's grids never change, so they can be locked before it, in the order of every lock.
    grid_ids = select(Image.grid_id).join(Output, Output.image_id == Image.id).where(Output.job_id == job_id, Image.tenant_id == tenant_id)
    grids = session.scalars(select(Grid).where(Grid.id.in_(grid_ids)).order_by(Grid.id).with_for_update()).all()
    job = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id).with_for_update()).one_or_none()
    if job is None:
        return None
    if job.erased_at is not None:
        raise RequestError("gone", "the job was erased")
    if job.status in TERMINAL_JOB:
        raise RequestError("already_terminal", f"the job is {job.status} and cannot change any more")
    if job.approval_deadline is None or any(grid.state != WorkState.HELD for grid in grids):
        raise RequestError("not_awaiting_approval", "no draft of this job waits for approval")
    if job.approval_deadline <= database_now(session):
        raise RequestError("not_awaiting_approval", "the time to decide is over; the job expires")
    return job, list(grids)


def _redraft(session: Session, job: Job, grids: list[Grid], layout_seed: int) -> None:
    outputs = (
        select(Image.grid_id, func.min(Output.index).label("first"))
        .join(Output, Output.image_id == Image.id)
        .where(Output.job_id == job.id)
    )
    first_index = {row.grid_id: row.first for row in session.execute(outputs.group_by(Image.grid_id))}
    for grid in grids:
        # Its key stays, and with it those of its images: they are the job's alone, and nothing has been drawn under them.
        grid.seed = (layout_seed + first_index[grid.id]) % NUM_SEEDS
        grid.num_rejected += 1
        grid.num_lost = grid.num_errors = 0
        grid.draft_token_ids = grid.preview = grid.preview_worker_id = grid.preview_lease_until = None
        grid.wants_preview = False
        _go_on(session, grid)


def _go_on(session: Session, grid: Grid) -> None:
    now = database_now(session)
    keep_attempt(grid, now)
    grid.state = WorkState.READY
    grid.worker_id = None
    grid.not_before = now


def _decide(session: Session, job: Job, event_type: str) -> None:
    job.approval_deadline = None
    record_changes(session, [job], event_type)
