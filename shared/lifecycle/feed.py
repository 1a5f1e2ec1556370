"""
Reading events: those of a job and those of a tenant, in the order of `seq`, of which none is ever skipped.

A tenant's events are numbered under the lock of its row, which is held until they are committed: whoever sees number N sees every number
before it. So the last number that a reader has looked up to is all it has to remember.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.events import JOB_ENDS
from shared.tables import Event, Image, Job, Output, Tenant


@dataclass(frozen=True)
class StoredEvent:
    """An event as its row has it: `data` is the job with storage keys instead of URLs."""

    id: str
    seq: int
    type: str
    created_at: datetime
    data: dict[str, Any]


@dataclass(frozen=True)
class EventPage:
    """
    Some events, oldest first.

    Attributes:
        looked_to: every event up to this number was looked at; what comes next is after it.
        has_more: there were more than asked for.
    """

    events: tuple[StoredEvent, ...]
    looked_to: int
    has_more: bool


@dataclass(frozen=True)
class Kept:
    """The numbers of the events that a tenant has: the oldest one that is still kept, and the newest one. Of none: 1 and 0."""

    oldest: int
    newest: int

    def knows(self, cursor: int) -> bool:
        """Is everything after this number there?"""
        return self.oldest - 1 <= cursor <= self.newest


def kept_events(db: Database, tenant_id: str) -> Kept:
    """Which events of a tenant there are."""

    def work(session: Session) -> Kept:
        newest = _newest(session, tenant_id)
        oldest = session.scalar(select(func.min(Event.seq)).where(Event.tenant_id == tenant_id))
        return Kept(newest + 1 if oldest is None else oldest, newest)

    return db.run(work)


def read_events(db: Database, tenant_id: str, after: int, limit: int, types: Sequence[str] = (), job_id: str | None = None) -> EventPage:
    """The next events after a number, of these types if any are named, and of one job if it is."""

    def work(session: Session) -> EventPage:
        # Read first: what is committed meanwhile has a greater number, and is not said to have been looked at.
        newest = _newest(session, tenant_id)
        query = select(Event).where(Event.tenant_id == tenant_id, Event.seq > after)
        if types:
            query = query.where(Event.type.in_(types))
        if job_id is not None:
            query = query.where(Event.job_id == job_id)
        rows = session.scalars(query.order_by(Event.seq).limit(limit + 1)).all()
        found = tuple(StoredEvent(row.id, row.seq, row.type, row.created_at, row.data) for row in rows[:limit])
        last = found[-1].seq if found else after
        has_more = len(rows) > limit
        return EventPage(found, last if has_more else max(last, newest, after), has_more)

    return db.run(work)


def last_event(db: Database, tenant_id: str, job_id: str, ends_only: bool = False) -> int:
    """The number of the newest event of a job, or of the newest one that is an end; 0 if there is none."""
    query = select(func.max(Event.seq)).where(Event.tenant_id == tenant_id, Event.job_id == job_id)
    if ends_only:
        query = query.where(Event.type.in_(JOB_ENDS))
    return db.run(lambda session: session.scalar(query) or 0)


def work_ids(db: Database, tenant_id: str, job_id: str) -> list[str]:
    """The ids of the grids and images of a job, under which workers tell of its progress."""

    def work(session: Session) -> list[str]:
        units = select(Image.id, Image.grid_id).join(Output, Output.image_id == Image.id).join(Job, Job.id == Output.job_id)
        found = session.execute(units.where(Job.id == job_id, Job.tenant_id == tenant_id)).all()
        return sorted({unit_id for row in found for unit_id in row})

    return db.run(work)


def _newest(session: Session, tenant_id: str) -> int:
    return session.scalars(select(Tenant.event_seq).where(Tenant.id == tenant_id)).one()
