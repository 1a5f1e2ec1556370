"""What became of the lines of a batch: counted by status, listed, and with the documents of their jobs. Writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.lifecycle.jobs import job_documents
from shared.lifecycle.paging import Page
from shared.states import TERMINAL_JOB, JobStatus
from shared.tables import BatchItem, Job

EXPIRED, CANCELED = "batch_expired", "batch_cancelled"
"""Why a line has no job: codes of its error, as OpenAI spells them."""

PENDING = "pending"
"""The line has no job yet, and may get one."""
ITEM_STATUSES = (PENDING, *map(str, JobStatus))
"""Of a line: its job's, and the one of before."""
ENDED = tuple(sorted(map(str, TERMINAL_JOB)))

_ERASED = {"code": "gone", "message": "the job was erased", "param": None, "status": 410}
_OF_ERROR = {CANCELED: str(JobStatus.CANCELED), EXPIRED: str(JobStatus.EXPIRED)}


@dataclass(frozen=True)
class Outcome:
    """What became of a line: a job's document, or an error; neither, and it waits to become a job."""

    item_id: str
    line: int
    custom_id: str
    request: dict[str, Any]
    document: dict[str, Any] | None
    error: dict[str, Any] | None

    @property
    def status(self) -> str:
        """One of `ITEM_STATUSES`; what was erased counts as failed."""
        if self.document is not None:
            return str(self.document["status"])
        return PENDING if self.error is None else _OF_ERROR.get(self.error["code"], "failed")


@dataclass(frozen=True)
class ItemRow:
    """A line as a list shows it; `error` is its own or its job's."""

    id: str
    line: int
    custom_id: str
    status: str
    job_id: str | None
    error: dict[str, Any] | None


def outcomes(db: Database, batch_id: str, after_line: int, limit: int) -> list[Outcome]:
    """What became of the lines behind `after_line`, in their order."""

    def work(session: Session) -> list[Outcome]:
        query = select(BatchItem).where(BatchItem.batch_id == batch_id, BatchItem.line > after_line)
        return _with_documents(session, session.scalars(query.order_by(BatchItem.line).limit(limit)).all())

    return db.run(work)


def ended_outcomes(db: Database, batch_id: str, after_line: int, limit: int) -> list[Outcome]:
    """The same of those that have ended."""

    def work(session: Session) -> list[Outcome]:
        query = _joined(select(BatchItem), batch_id).where(BatchItem.line > after_line, _status().in_(ENDED))
        return _with_documents(session, session.scalars(query.order_by(BatchItem.line).limit(limit)).all())

    return db.run(work)


def list_outcomes(db: Database, batch_id: str, statuses: Collection[str], page: Page) -> tuple[list[Outcome], bool]:
    """
    One page of lines with their jobs, and whether more follow.

    Raises:
        RequestError: the cursor is no line of the batch.
    """

    def work(session: Session) -> tuple[list[Outcome], bool]:
        rows, has_more = _page(session, _joined(select(BatchItem), batch_id), batch_id, statuses, page)
        return _with_documents(session, [row for (row,) in rows]), has_more

    return db.run(work)


def list_items(db: Database, batch_id: str, statuses: Collection[str], page: Page) -> tuple[list[ItemRow], bool]:
    """
    One page of lines, and whether more follow.

    Args:
        statuses: any of these; empty: all.
    Raises:
        RequestError: the cursor is no line of the batch.
    """

    def work(session: Session) -> tuple[list[ItemRow], bool]:
        query = _joined(select(BatchItem, _status().label("status"), Job.error.label("job_error"), Job.erased_at), batch_id)
        rows, has_more = _page(session, query, batch_id, statuses, page)
        found = [
            ItemRow(row.id, row.line, row.custom_id, status, row.job_id, _ERASED if erased_at else row.error or job_error)
            for row, status, job_error, erased_at in rows
        ]
        return found, has_more

    return db.run(work)


def count_items(session: Session, batch_id: str) -> dict[str, int]:
    """How many lines have which status; all statuses are there."""
    status = _status().label("status")
    query = _joined(select(status, func.count().label("number")), batch_id).group_by(status)
    found = {row.status: row.number for row in session.execute(query)}
    return {name: found.get(name, 0) for name in ITEM_STATUSES}


def _status() -> ColumnElement[str]:
    of_error = case(_OF_ERROR, value=BatchItem.error["code"].astext, else_="failed")
    return case(
        (BatchItem.error.is_not(None), of_error),
        (BatchItem.job_id.is_(None), PENDING),
        # Nothing is left of what it was.
        (Job.erased_at.is_not(None), "failed"),
        else_=Job.status,
    )


def _joined(query: Select[*tuple[Any, ...]], batch_id: str) -> Select[*tuple[Any, ...]]:
    return query.select_from(BatchItem).outerjoin(Job, Job.id == BatchItem.job_id).where(BatchItem.batch_id == batch_id)


def _page(session: Session, query: Select[Any], batch_id: str, statuses: Collection[str], page: Page) -> tuple[Sequence[Any], bool]:
    """By line, which is the order in which they came; ids of one request may stand in any."""
    if page.after is not None:
        line = session.scalar(select(BatchItem.line).where(BatchItem.batch_id == batch_id, BatchItem.id == page.after))
        if line is None:
            raise RequestError("invalid_request", "after: names no item of the batch", "after")
        query = query.where(BatchItem.line < line if page.newest_first else BatchItem.line > line)
    if statuses:
        query = query.where(_status().in_(list(statuses)))
    order = BatchItem.line.desc() if page.newest_first else BatchItem.line.asc()
    rows = session.execute(query.order_by(order).limit(page.limit + 1)).all()
    return rows[: page.limit], len(rows) > page.limit


def _with_documents(session: Session, items: Sequence[BatchItem]) -> list[Outcome]:
    job_ids = [item.job_id for item in items if item.job_id]
    jobs = session.scalars(select(Job).where(Job.id.in_(job_ids), Job.erased_at.is_(None))).all()
    documents = {document["id"]: document for document in job_documents(session, jobs, lambda _: {})}
    found = []
    for item in items:
        document = documents.get(item.job_id or "")
        error = _ERASED if item.job_id and document is None else item.error
        found.append(Outcome(item.id, item.line, item.custom_id, item.request, document, error))
    return found
