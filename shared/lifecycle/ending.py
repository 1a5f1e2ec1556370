"""How work and jobs end for good, and what ends with them. Called inside the transactions of the other modules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session

from shared.db import note_changes, read_rows
from shared.lifecycle.drawn import just_drawn, read_drawn
from shared.lifecycle.events import record_changes, record_success
from shared.states import LIVE_WORK, TERMINAL_JOB, JobStatus, WorkState
from shared.tables import Grid, Image, Job, Output

_COUNT_CHANGES = "UPDATE job SET version = version + 1 WHERE id = ANY(%(jobs)s::text[]) RETURNING id"


def database_now(session: Session) -> datetime:
    """The database's clock: the only one that decides."""
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return now


def live_jobs(unit: Grid | Image) -> Select[Job]:
    """The jobs that wait for this unit, locked, in order of id."""
    # A picture that is drawn already does not need its grid any more.
    needs = (Image.grid_id == unit.id, Image.state.in_(LIVE_WORK)) if isinstance(unit, Grid) else (Image.id == unit.id,)
    waiting = select(Output.job_id).join(Image, Image.id == Output.image_id).where(*needs)
    return (
        select(Job)
        .where(Job.id.in_(waiting), Job.status.not_in(TERMINAL_JOB))
        .order_by(Job.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def end_work(session: Session, unit: Grid | Image, error: dict[str, Any]) -> list[str]:
    """Fail a unit for good, and every job that waits for it. Returns the ids of other running work that nobody wants any more."""
    _close(session, unit, WorkState.FAILED, error)
    session.flush()
    return end_jobs(session, session.scalars(live_jobs(unit)).all(), JobStatus.FAILED, error)


def succeed(session: Session, job: Job) -> None:
    """End a job that this transaction has locked and that has all its images: it leaves nothing to be dropped."""
    job.status = JobStatus.SUCCEEDED
    _complete(job, database_now(session))
    record_changes(session, [job], "job.succeeded")


def succeed_if_complete(session: Session, jobs: Sequence[Job], image: Any) -> None:
    """
    Another image of these jobs is stored: those have succeeded that wait for no more.

    Args:
        jobs: running, of one tenant, locked by this transaction; not the session's own rows, and changed here to what they become.
        image: as `just_drawn` wants it.
    """
    if all(job.num_images == 1 for job in jobs):
        drawn = just_drawn(image, [job.id for job in jobs])
    else:
        # Read after the jobs are locked: of two images that end together, the second one sees the first, and has the later time.
        drawn = read_drawn(session, [job.id for job in jobs])
    waiting = {job.id for job in jobs if any(image.row.state in LIVE_WORK for image in drawn.images[job.id])}
    if waiting:
        read_rows(session, _COUNT_CHANGES, {"jobs": sorted(waiting)})
        note_changes(session, waiting)
    ended = [job for job in jobs if job.id not in waiting]
    if ended and drawn.read_at is not None:
        for job in ended:
            job.status = JobStatus.SUCCEEDED
            job.version += 1
            _complete(job, drawn.read_at)
        record_success(session, ended, drawn)


def end_canceled(session: Session, jobs: Sequence[Job], why: str = "the job was canceled") -> list[str]:
    """`end_jobs` because the customer wants them no more."""
    return end_jobs(session, jobs, JobStatus.CANCELED, {"code": "canceled_by_user", "message": why})


def end_jobs(session: Session, jobs: Sequence[Job], status: JobStatus, error: dict[str, Any] | None = None) -> list[str]:
    """
    End jobs of one tenant, which this transaction has locked, before they have succeeded: what they still had to do is dropped, unless
    another job wants it too.

    Returns:
        The ids of the units that were running and are not wanted any more: their workers should hear of it soon.
    """
    stopped = _drop_work(session, [job.id for job in jobs], status, error)
    now = database_now(session)
    for job in jobs:
        job.status = status
        job.error = error
        job.approval_deadline = None
        _complete(job, now)
    record_changes(session, jobs, f"job.{status}")
    return stopped


def _complete(job: Job, now: datetime) -> None:
    job.completed_at = now
    job.expires_at = None if job.expires_in_s is None else now + timedelta(seconds=job.expires_in_s)


def _drop_work(session: Session, job_ids: list[str], status: JobStatus, error: dict[str, Any] | None) -> list[str]:
    """Close the images of these jobs that no other job waits for, and then the grids that no image waits for."""
    images = session.scalars(
        select(Image)
        .where(Image.id.in_(select(Output.image_id).where(Output.job_id.in_(job_ids))))
        .order_by(Image.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    # Judged by a statement that begins after the images are locked: a submit that found one of them holds it until its job is written.
    others = (
        select(Output.image_id)
        .join(Job, Job.id == Output.job_id)
        .where(Output.image_id.in_([image.id for image in images]), Job.id.not_in(job_ids), Job.status.not_in(TERMINAL_JOB))
    )
    wanted = set(session.scalars(others))
    stopped = []
    for image in images:
        if image.state in LIVE_WORK and image.id not in wanted:
            if image.state == WorkState.RUNNING:
                stopped.append(image.id)
            failed = status == JobStatus.FAILED
            _close(session, image, WorkState.FAILED if failed and image.state == WorkState.WAITING else WorkState.CANCELED, error)
    session.flush()
    return stopped + _drop_grids(session, {image.grid_id for image in images})


def _drop_grids(session: Session, grid_ids: set[str]) -> list[str]:
    # Locked first, judged by a second statement: a submit that found one of them holds it, and only a statement that begins after
    # that submit has committed sees the image which wants it.
    session.execute(select(Grid.id).where(Grid.id.in_(grid_ids)).order_by(Grid.id).with_for_update())
    wanted = exists().where(Image.grid_id == Grid.id, Image.state.in_(LIVE_WORK))
    unwanted = select(Grid).where(Grid.id.in_(grid_ids), Grid.state.in_(LIVE_WORK), ~wanted).execution_options(populate_existing=True)
    stopped = []
    for grid in session.scalars(unwanted).all():
        if grid.state == WorkState.RUNNING:
            stopped.append(grid.id)
        _close(session, grid, WorkState.CANCELED, None)
    return stopped


def _close(session: Session, unit: Grid | Image, state: WorkState, error: dict[str, Any] | None) -> None:
    unit.state = state
    unit.lease_until = unit.released_at = None
    unit.finished_at = database_now(session)
    unit.error = error if state == WorkState.FAILED else unit.error
    if isinstance(unit, Grid):
        unit.wants_preview = False
