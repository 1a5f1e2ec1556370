"""What the service has to do and has done, in numbers, over all tenants. Reads only, each number along an index."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from shared.db import Database
from shared.states import JobStatus, Priority, Stage, WorkState
from shared.tables import Grid, Image, Job, Tenant, WebhookDelivery

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Waiting:
    """Layouts or images of a lane that could be begun, and for how long the first of them could."""

    stage: Stage
    lane: Priority
    count: int
    oldest_s: float


@dataclass(frozen=True)
class Counts:
    """
    Attributes:
        waiting: of each stage and lane.
        jobs: that came in the last 24 hours, by their status of now.
        num_deliveries: of webhooks, that are not delivered and not given up.
    """

    waiting: tuple[Waiting, ...]
    jobs: dict[JobStatus, int]
    num_deliveries: int


def read_counts(db: Database) -> Counts:
    """Count."""

    def work(session: Session) -> Counts:
        now = session.execute(select(func.clock_timestamp())).scalar_one()
        waiting = tuple(one for stage, row in ((Stage.AR, Grid), (Stage.DECODER, Image)) for one in _waiting(session, stage, row, now))
        # Tenant by tenant: that is how the index goes.
        own = select(Job.status, func.count().label("number")).where(Job.tenant_id == Tenant.id, Job.created_at > now - _DAY)
        by_tenant = own.group_by(Job.status).lateral()
        summed = select(by_tenant.c.status, func.sum(by_tenant.c.number)).select_from(Tenant).join(by_tenant, true())
        jobs = summed.group_by(by_tenant.c.status)
        found = {JobStatus(status): int(count) for status, count in session.execute(jobs)}
        pending = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.state == "pending")
        return Counts(waiting, {status: found.get(status, 0) for status in JobStatus}, session.execute(pending).scalar_one())

    return db.run(work)


def _waiting(session: Session, stage: Stage, row: type[Grid] | type[Image], now: datetime) -> list[Waiting]:
    ready = select(row.lane, func.count().label("number"), func.min(row.created_at).label("oldest")).where(row.state == WorkState.READY)
    found = {one.lane: one for one in session.execute(ready.group_by(row.lane))}
    return [
        Waiting(stage, lane, one.number, (now - one.oldest).total_seconds()) if (one := found.get(index)) else Waiting(stage, lane, 0, 0.0)
        for index, lane in enumerate(Priority)
    ]
