"""How work and jobs end for good, and what ends with them. Called inside the transactions of the other modules."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session

from shared.lifecycle.events import record_event
from shared.states import LIVE_WORK, TERMINAL_JOB, JobStatus, WorkState
from shared.tables import Grid, Image, Job


def database_now(session: Session) -> datetime:
    """The database's clock: the only one that decides."""
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return now


def live_jobs(unit: Grid | Image) -> Select[Job]:
    """The jobs that wait for this unit, locked, in order of id."""
    # A picture that is drawn already does not need its grid any more.
    needs = (Image.grid_id == unit.id, Image.state.in_(LIVE_WORK)) if isinstance(unit, Grid) else (Image.id == unit.id,)
    return (
        select(Job)
        .where(Job.id.in_(select(Image.job_id).where(*needs)), Job.status.not_in(TERMINAL_JOB))
        .order_by(Job.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def end_work(session: Session, unit: Grid | Image, error: dict[str, Any]) -> list[str]:
    """Fail a unit for good, and every job that waits for it. Returns the ids of other running work that nobody wants any more."""
    _close(session, unit, WorkState.FAILED, error)
    session.flush()
    return [work_id for job in session.scalars(live_jobs(unit)).all() for work_id in end_job(session, job, JobStatus.FAILED, error)]


def end_job(session: Session, job: Job, status: JobStatus, error: dict[str, Any] | None = None) -> list[str]:
    """
    End a job that this transaction has locked: what it still had to do is dropped, unless another job wants it too.

    Returns:
        The ids of the units that were running and are not wanted any more: their workers should hear of it soon.
    """
    stopped: list[str] = []
    images = session.scalars(select(Image).where(Image.job_id == job.id).order_by(Image.index).with_for_update()).all()
    for image in images:
        if image.state in LIVE_WORK:
            if image.state == WorkState.RUNNING:
                stopped.append(image.id)
            failed = status == JobStatus.FAILED
            _close(session, image, WorkState.FAILED if failed and image.state == WorkState.WAITING else WorkState.CANCELED, error)
    session.flush()
    grid_ids = {image.grid_id for image in images}
    # Locked first, judged by a second statement: a submit that found one of them holds it, and only a statement that begins after
    # that submit has committed sees the image which wants it.
    session.execute(select(Grid.id).where(Grid.id.in_(grid_ids)).order_by(Grid.id).with_for_update())
    wanted = exists().where(Image.grid_id == Grid.id, Image.state.in_(LIVE_WORK))
    unwanted = select(Grid).where(Grid.id.in_(grid_ids), Grid.state.in_(LIVE_WORK), ~wanted).execution_options(populate_existing=True)
    for grid in session.scalars(unwanted).all():
        if grid.state == WorkState.RUNNING:
            stopped.append(grid.id)
        _close(session, grid, WorkState.CANCELED, None)
    job.status = status
    job.error = error
    job.completed_at = database_now(session)
    job.version += 1
    record_event(session, job, f"job.{status}")
    return stopped


def _close(session: Session, unit: Grid | Image, state: WorkState, error: dict[str, Any] | None) -> None:
    unit.state = state
    unit.lease_until = unit.released_at = None
    unit.finished_at = database_now(session)
    unit.error = error if state == WorkState.FAILED else unit.error
