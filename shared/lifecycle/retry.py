"""
Retry: a job that did not succeed begins another run, under the same id. What it has is kept; what failed or was dropped is done anew.

Its units keep their rows, so `attempt` goes on counting. Where equal work of another job exists meanwhile, the job takes part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.lifecycle.claims import start
from shared.lifecycle.ending import database_now, succeed
from shared.lifecycle.events import record_changes
from shared.lifecycle.past_attempts import keep_attempt
from shared.lifecycle.reuse import find_alive
from shared.lifecycle.work import lock_units
from shared.states import LIVE_WORK, RETRYABLE_JOB, TERMINAL_JOB, JobStatus, Priority, WorkState
from shared.tables import Grid, Image, Job, Output

_MAX_TRIES = 5
_UNIQUE_VIOLATION = "23505"


@dataclass(frozen=True)
class Retried:
    """
    A job that begins anew.

    Attributes:
        work_ids: of its units: their workers must not believe an older word to stop.
    """

    work_ids: tuple[str, ...]


def retry(db: Database, tenant_id: str, job_id: str, deadline: datetime | None = None) -> Retried | None:
    """
    Begin another run of a job.

    Args:
        deadline: of this run. None: as it was, or none at all if that has passed.
    Returns:
        None: this tenant has no such job.
    Raises:
        RequestError: `not_retryable`, the job is not over or has succeeded; `gone`, it was erased.
    """
    for left in range(_MAX_TRIES - 1, -1, -1):
        try:
            return db.run(lambda session: _Run(session, tenant_id, job_id, deadline).begin())
        except IntegrityError as error:
            # Equal work was submitted between the look for it and our writing: now it is found.
            if not left or getattr(error.orig, "sqlstate", None) != _UNIQUE_VIOLATION:
                raise
    raise AssertionError("unreachable")


class _Run:
    """The beginning of a run, within a transaction."""

    def __init__(self, session: Session, tenant_id: str, job_id: str, deadline: datetime | None) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._job_id = job_id
        self._lane = 0
        self._deadline = deadline
        self._is_any_running = False

    def begin(self) -> Retried | None:
        session = self._session
        mine = select(Output.image_id, Image.grid_id).join(Image, Image.id == Output.image_id).where(Output.job_id == self._job_id)
        rows = session.execute(mine.where(Image.tenant_id == self._tenant_id)).all()
        # Its units change only with the job's own runs, so they can be locked before it, in the order of every lock.
        grids = {grid.id: grid for grid in lock_units(session, Grid, {row.grid_id for row in rows})}
        images = {image.id: image for image in lock_units(session, Image, {row.image_id for row in rows})}
        job = session.scalars(select(Job).where(Job.id == self._job_id, Job.tenant_id == self._tenant_id).with_for_update()).one_or_none()
        if job is None:
            return None
        self._check(job)
        outputs = session.scalars(select(Output).where(Output.job_id == job.id).order_by(Output.index)).all()
        now = database_now(session)
        self._lane = list(Priority).index(Priority(job.priority))
        self._deadline = self._deadline or (job.deadline if job.deadline is not None and job.deadline > now else None)
        for output in outputs:
            image = images[output.image_id]
            self._resume(job, output, image, grids[image.grid_id], now)
        session.flush()
        # Only now: the job's row may not be written without its next version.
        job.status = JobStatus.QUEUED
        job.run += 1
        job.error = job.started_at = job.completed_at = job.expires_at = None
        job.deadline = self._deadline
        record_changes(session, [job], "job.queued")
        left = select(Output.job_id).join(Image, Image.id == Output.image_id).where(Output.job_id == job.id, Image.state != WorkState.DONE)
        if session.scalar(left.limit(1)) is None:
            succeed(session, job)
        elif self._is_any_running:
            start(session, [job])
        return Retried(tuple(sorted({*images, *grids})))

    def _check(self, job: Job) -> None:
        if job.erased_at is not None:
            raise RequestError("gone", "the job was erased")
        if job.status not in TERMINAL_JOB:
            raise RequestError("not_retryable", f"the job is {job.status}: there is nothing to retry yet")
        if job.status not in RETRYABLE_JOB:
            raise RequestError("not_retryable", "the job has succeeded; submit another one for other images")

    def _resume(self, job: Job, output: Output, image: Image, grid: Grid, now: datetime) -> None:
        """See to it that an output of the job is done or will be drawn."""
        if image.state == WorkState.DONE:
            return
        if image.state in LIVE_WORK:
            # Another job waits for it, and now this one does again.
            self._hurry(image, now)
            self._hurry(grid, now)
            self._is_any_running |= WorkState.RUNNING in (grid.state, image.state)
            return
        if (other := find_alive(self._session, Image, image.tenant_id, image.key, self._lane, self._deadline)) is not None:
            output.image_id = other.id
            output.is_cached = other.state == WorkState.DONE
            self._is_any_running |= other.state == WorkState.RUNNING
            return
        if grid.state in (WorkState.FAILED, WorkState.CANCELED):
            if (found := find_alive(self._session, Grid, grid.tenant_id, grid.key, self._lane, self._deadline)) is not None:
                image.grid_id = found.id
                grid = self._session.get_one(Grid, found.id, populate_existing=True)
            else:
                self._revive(grid, WorkState.READY, now)
                grid.wants_preview = job.wants_previews and grid.draft_token_ids is not None and grid.preview is None
        self._is_any_running |= grid.state == WorkState.RUNNING
        self._revive(image, WorkState.READY if grid.state == WorkState.DONE else WorkState.WAITING, now)

    def _hurry(self, unit: Grid | Image, now: datetime) -> None:
        """The more urgent of its jobs counts, and the earliest deadline that has not passed."""
        unit.lane = min(unit.lane, self._lane)
        if self._deadline is not None and (unit.deadline is None or unit.deadline <= now or unit.deadline > self._deadline):
            unit.deadline = self._deadline

    def _revive(self, unit: Grid | Image, state: WorkState, now: datetime) -> None:
        keep_attempt(unit, now)
        unit.state = state
        unit.lane = self._lane
        unit.deadline = self._deadline
        unit.num_lost = unit.num_errors = 0
        unit.worker_id = unit.error = unit.started_at = unit.finished_at = None
        unit.not_before = now
        # Other outputs of the job may be drawn from it, and look it up.
        self._session.flush()
