"""What customers and deadlines do to jobs: read, list, cancel, expire. Every read is filtered by tenant here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.job_document import WATCHED_WORK, Progress, has_image, job_document
from shared.lifecycle.claims import StoredArtifact, finished_artifact
from shared.lifecycle.drawn import read_drawn
from shared.lifecycle.ending import end_canceled, end_jobs
from shared.lifecycle.paging import Page, read_page
from shared.states import TERMINAL_JOB, JobStatus
from shared.tables import Grid, Image, Job, Output

_EXPIRE_BATCH = 50

ReadProgress = Callable[[list[str]], Mapping[str, Progress]]
"""Live progress by work id, from Redis; empty when Redis is away."""


@dataclass(frozen=True)
class JobFilter:
    """What a listing shows: all given conditions together."""

    statuses: tuple[JobStatus, ...] = ()
    batch_id: str | None = None
    custom_id: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True)
class StoredResult:
    """A finished image in S3."""

    artifact: StoredArtifact
    format: str
    renditions: Mapping[str, tuple[str, str]]
    """Storage key and format of its other files, by name."""


def get_job(db: Database, tenant_id: str, job_id: str, read_progress: ReadProgress) -> dict[str, Any] | None:
    """
    The job's document, or None if this tenant has no such job.

    Raises:
        RequestError: `gone`, it was erased.
    """

    def work(session: Session) -> dict[str, Any] | None:
        job = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)).one_or_none()
        if job is not None and job.erased_at is not None:
            raise RequestError("gone", "the job was erased, or its time was up")
        return None if job is None else job_documents(session, [job], read_progress)[0]

    return db.run(work)


def get_dialect(db: Database, tenant_id: str, job_id: str) -> dict[str, Any] | None:
    """What the interface that the job came by has noted for itself; None for native jobs, and for what is no job of this tenant."""
    return db.run(lambda session: session.scalar(select(Job.dialect).where(Job.id == job_id, Job.tenant_id == tenant_id)))


def get_dialects(db: Database, tenant_id: str, job_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """The same of several jobs; native ones are left out."""
    query = select(Job.id, Job.dialect).where(Job.id.in_(job_ids), Job.tenant_id == tenant_id, Job.dialect.is_not(None))
    return db.run(lambda session: {row.id: row.dialect for row in session.execute(query)})


def list_jobs(
    db: Database, tenant_id: str, wanted: JobFilter, page: Page, read_progress: ReadProgress
) -> tuple[list[dict[str, Any]], bool]:
    """
    One page of jobs by time of creation, and whether more follow.

    Raises:
        RequestError: as `read_page`.
    """

    def work(session: Session) -> tuple[list[dict[str, Any]], bool]:
        query = select(Job).where(Job.tenant_id == tenant_id, Job.erased_at.is_(None))
        if wanted.statuses:
            query = query.where(Job.status.in_(wanted.statuses))
        if wanted.batch_id is not None:
            query = query.where(Job.batch_id == wanted.batch_id)
        if wanted.custom_id is not None:
            query = query.where(Job.custom_id == wanted.custom_id)
        if wanted.metadata:
            # The index has the second condition.
            query = query.where(Job.request_metadata.contains(dict(wanted.metadata)), text("job.metadata <> '{}'"))
        if wanted.created_after is not None:
            query = query.where(Job.created_at > wanted.created_after)
        if wanted.created_before is not None:
            query = query.where(Job.created_at < wanted.created_before)
        rows, has_more = read_page(session, query, Job, page, "job of yours", Job.tenant_id == tenant_id)
        return job_documents(session, [job for (job,) in rows], read_progress), has_more

    return db.run(work)


def cancel(db: Database, tenant_id: str, job_id: str) -> list[str] | None:
    """
    Cancel a job: it ends now, and whatever runs for it alone is dropped.

    Returns:
        The ids of running work whose workers should stop; None if this tenant has no such job.
    Raises:
        RequestError: `already_terminal`, the job ended before.
    """

    def work(session: Session) -> list[str] | None:
        job = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id).with_for_update()).one_or_none()
        if job is None:
            return None
        if job.erased_at is not None:
            raise RequestError("gone", "the job was erased")
        if job.status in TERMINAL_JOB:
            raise RequestError("already_terminal", f"the job is {job.status} and cannot change any more")
        return end_canceled(session, [job])

    return db.run(work)


def expire(db: Database) -> list[str]:
    """End the jobs whose deadline, or that of their approval, has passed. Returns the ids of running work whose workers should stop."""

    def work(session: Session) -> list[str]:
        now = func.clock_timestamp()
        late = session.scalars(
            select(Job)
            .where(or_(Job.deadline < now, Job.approval_deadline < now), Job.status.not_in(TERMINAL_JOB))
            .order_by(func.least(Job.deadline, Job.approval_deadline))
            .limit(_EXPIRE_BATCH)
            .with_for_update(skip_locked=True)
        ).all()
        return [work_id for job in late for work_id in end_jobs(session, [job], JobStatus.EXPIRED, _lateness(job))]

    return db.run(work)


def get_result(db: Database, tenant_id: str, job_id: str, index: int) -> StoredResult | None:
    """A finished image of this tenant's job, or None."""

    def work(session: Session) -> StoredResult | None:
        wanted = select(Job, Image).join(Output, Output.job_id == Job.id).join(Image, Image.id == Output.image_id)
        found = session.execute(wanted.where(Job.id == job_id, Job.tenant_id == tenant_id, Output.index == index)).one_or_none()
        if found is None or not has_image(*found):
            return None
        image = found[1]
        formats = {wanted["name"]: wanted["format"] for wanted in image.renditions}
        renditions = {name: (file["storage_key"], formats[name]) for name, file in image.rendition_files.items()}
        return StoredResult(finished_artifact(image), image.format, renditions)

    return db.run(work)


def known_results(db: Database, tenant_id: str, names: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of these job ids and indices that name a finished image of this tenant's."""
    if not names:
        return set()

    def work(session: Session) -> set[tuple[str, int]]:
        wanted = select(Job, Image, Output.index).join(Output, Output.job_id == Job.id).join(Image, Image.id == Output.image_id)
        rows = session.execute(wanted.where(Job.id.in_({job_id for job_id, _ in names}), Job.tenant_id == tenant_id))
        return {(job.id, index) for job, image, index in rows if has_image(job, image)}

    return db.run(work)


def _lateness(job: Job) -> dict[str, Any]:
    # The earlier one of the two: approval may take no longer than the job.
    if job.approval_deadline is not None and job.approval_deadline != job.deadline:
        return {"code": "approval_expired", "message": "nobody approved the draft in time"}
    return {"code": "deadline_exceeded", "message": "the deadline passed before the last image was stored"}


def job_documents(session: Session, jobs: Sequence[Job], read_progress: ReadProgress) -> list[dict[str, Any]]:
    """The documents of these jobs, within a transaction of the caller's."""
    drawn = read_drawn(session, [job.id for job in jobs])
    units: list[Grid | Image] = [*(image.row for of_job in drawn.images.values() for image in of_job), *drawn.grids.values()]
    watched = sorted({unit.id for unit in units if unit.state in WATCHED_WORK})
    progress = read_progress(watched) if watched else {}
    return [job_document(job, drawn.images[job.id], drawn.grids, progress) for job in jobs]
