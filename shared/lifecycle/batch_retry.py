"""
What failed in a batch is tried once more: its jobs begin another run, its lines without a job are judged anew.

The request writes one moment into the batch's row; the clerk looks for what had failed by then, a little at a time. A crash between two of
its steps leaves the moment, and what has begun anew has not failed before it any more.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.lifecycle.batch_values import BatchDocument
from shared.lifecycle.batches import count_one_more, lock_tenant
from shared.lifecycle.ending import database_now
from shared.lifecycle.quotas import Limits
from shared.states import RETRYABLE_JOB, BatchStatus
from shared.tables import Batch, BatchItem, Job

_REOPEN_AT_ONCE = 2000
_ENDED = (BatchStatus.COMPLETED, BatchStatus.CANCELED, BatchStatus.EXPIRED)


def retry_batch(db: Database, tenant_id: str, batch_id: str, window_s: int, limits: Limits) -> tuple[bool, int | None]:
    """
    Have what failed in a batch tried again. Where nothing can be, the batch stays as it is.

    Args:
        window_s: seconds that a batch which has ended gets.
    Returns:
        Whether the tenant has such a batch; and how many of its batches have not ended, if this one was brought back to life.
    Raises:
        RequestError: `not_retryable`: nothing of it was ever run, or it is being canceled.
        TooManyBatchesError
    """

    def work(session: Session) -> tuple[bool, int | None]:
        # Before the batch's own row, as whoever makes a batch locks it.
        lock_tenant(session, tenant_id)
        mine = select(Batch).where(Batch.id == batch_id, Batch.tenant_id == tenant_id)
        row = session.scalars(mine.with_for_update()).one_or_none()
        if row is None:
            return False, None
        if row.status in (BatchStatus.FAILED, BatchStatus.VALIDATING, BatchStatus.CANCELING):
            raise RequestError("not_retryable", f"the batch is {_named(row.status)}: there is nothing to retry")
        now = database_now(session)
        if not session.scalar(select(_failed_jobs(batch_id, now).exists() | _open_errors(batch_id, now).exists())):
            return True, None
        num_live = None
        if row.status in _ENDED:
            num_live = count_one_more(session, tenant_id, limits)
            row.expires_at = now + timedelta(seconds=window_s)
            row.canceling_at = row.completed_at = row.counts = row.usage = row.output_file_id = row.error_file_id = None
        row.status = BatchStatus.RUNNING
        row.finalizing_at = None
        row.retried_at = now
        return True, num_live

    return db.run(work)


def _named(status: str) -> str:
    return "being canceled" if status == BatchStatus.CANCELING else status


def reopen_lines(db: Database, batch: BatchDocument) -> int:
    """Some of the lines that became no job wait for their turn again; how many. To be repeated until there are none."""
    some = _open_errors(batch.id, batch.retried_at).order_by(BatchItem.line).limit(_REOPEN_AT_ONCE).with_for_update()
    reopened = update(BatchItem).where(BatchItem.id.in_(some)).values(error=None, failed_at=None).returning(BatchItem.id)
    return db.run(lambda session: len(session.execute(reopened.execution_options(synchronize_session=False)).all()))


def jobs_to_retry(db: Database, batch: BatchDocument, limit: int) -> list[str]:
    """The next jobs that had not succeeded when the retry was asked for, by the order of their lines."""
    some = _failed_jobs(batch.id, batch.retried_at).order_by(BatchItem.line).limit(limit)
    return db.run(lambda session: [job_id for job_id in session.scalars(some) if job_id is not None])


def _failed_jobs(batch_id: str, by: object) -> Select[str | None]:
    """One that has begun another run has not ended, or later."""
    failed = (Job.status.in_(RETRYABLE_JOB), Job.erased_at.is_(None), Job.completed_at <= by)
    return (
        select(BatchItem.job_id)
        .join(Job, Job.id == BatchItem.job_id)
        .where(BatchItem.batch_id == batch_id, Job.batch_id == batch_id, *failed)
    )


def _open_errors(batch_id: str, by: object) -> Select[str]:
    is_earlier = or_(BatchItem.failed_at.is_(None), BatchItem.failed_at <= by)
    may_succeed = func.coalesce(BatchItem.error["retryable"].as_boolean(), True)
    return select(BatchItem.id).where(BatchItem.batch_id == batch_id, BatchItem.error.is_not(None), is_earlier, may_succeed)
