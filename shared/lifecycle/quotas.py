"""What a tenant may use, and what it has used. Knows rows and numbers; the API decides what to refuse, the dispatcher what to hold back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, exists, func, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.settings import QuotaSettings
from shared.states import LIVE_WORK, TERMINAL_JOB, JobStatus, WorkState
from shared.tables import Grid, Image, Job, Output, Tenant, Usage


@dataclass(frozen=True)
class Limits:
    """
    What a tenant may use; None: as much as it likes.

    Attributes:
        max_queued: jobs that were accepted and have not begun.
        max_running: layouts and images of its jobs that workers may have in hand at once; more wait. A job of n images has up to n of each.
        requests_per_minute: requests that make jobs, accepted or not.
        gpu_seconds_per_day: seconds of a worker, of either kind, from midnight to midnight UTC.
        live_batches: batches that have not ended.
    """

    max_queued: int | None = None
    max_running: int | None = None
    requests_per_minute: int | None = None
    gpu_seconds_per_day: float | None = None
    results_kept_s: int | None = None
    live_batches: int | None = None


def default_limits(settings: QuotaSettings) -> Limits:
    """What holds for tenants without limits of their own."""
    return Limits(
        max_queued=settings.quota_max_queued or None,
        max_running=settings.quota_max_running or None,
        requests_per_minute=settings.quota_requests_per_minute or None,
        gpu_seconds_per_day=settings.quota_gpu_seconds_per_day or None,
        results_kept_s=settings.results_kept_s or None,
        live_batches=settings.quota_live_batches or None,
    )


@dataclass(frozen=True)
class OwnLimits:
    """A tenant's own limits, as its row has them: None is the service's default, 0 is none at all."""

    max_queued: int | None = None
    max_running: int | None = None
    requests_per_minute: int | None = None
    gpu_seconds_per_day: float | None = None
    results_kept_s: int | None = None
    live_batches: int | None = None

    def over(self, defaults: Limits) -> Limits:
        """What holds for the tenant."""
        owns = {name: getattr(self, name) for name in LIMITS}
        return Limits(**{name: getattr(defaults, name) if own is None else own or None for name, own in owns.items()})


LIMITS = tuple(field.name for field in fields(OwnLimits))
"""The names of the limits, which are those of the columns."""


def own_limits(row: Any) -> OwnLimits:
    """Those of a tenant's row, or of one that has its columns."""
    return OwnLimits(*(getattr(row, name) for name in LIMITS))


@dataclass(frozen=True)
class TenantUsage:
    """
    What a tenant has and has had today.

    Attributes:
        num_in_hand: layouts and images that workers have now or are about to get.
        gpu_seconds: that finished work of this day took.
        predicted_s: of work that is not done yet, as far as it is known.
        day_began_at, day_ends_at: midnights UTC around now.
    """

    num_queued: int
    num_running: int
    num_in_hand: int
    gpu_seconds: float
    predicted_s: float
    day_began_at: datetime
    day_ends_at: datetime


_ANY_LIMITED = select(exists().where(Tenant.max_running > 0))
_DAY = func.date_trunc("day", func.clock_timestamp())
_SPENT = select(func.coalesce(func.sum(Usage.seconds), 0.0)).where(Usage.tenant_id == bindparam("tenant"), Usage.created_at >= _DAY)
_LIVE_IMAGES = (
    select(Output.image_id)
    .join(Job, Job.id == Output.job_id)
    .where(Job.tenant_id == bindparam("tenant"), Job.status.in_([status for status in JobStatus if status not in TERMINAL_JOB]))
)
_TO_COME = (
    select(func.coalesce(func.sum(Image.cost_s), 0.0)).where(Image.id.in_(_LIVE_IMAGES), Image.state.in_(LIVE_WORK)).scalar_subquery()
    + select(func.coalesce(func.sum(Grid.cost_s), 0.0))
    .where(Grid.id.in_(select(Image.grid_id).where(Image.id.in_(_LIVE_IMAGES))), Grid.state.in_(LIVE_WORK))
    .scalar_subquery()
)
_HELD = (WorkState.RELEASED, WorkState.RUNNING)
_IN_HAND = (
    select(func.count()).where(Grid.tenant_id == bindparam("tenant"), Grid.state.in_(_HELD)).scalar_subquery()
    + select(func.count()).where(Image.tenant_id == bindparam("tenant"), Image.state.in_(_HELD)).scalar_subquery()
)
_NUM_QUEUED = select(Tenant.num_queued).where(Tenant.id == bindparam("tenant"))
_RUNNING = select(func.count()).where(Job.tenant_id == bindparam("tenant"), Job.status == JobStatus.RUNNING).scalar_subquery()
_USED = select(
    Tenant.num_queued,
    _RUNNING.label("num_running"),
    _IN_HAND.label("num_in_hand"),
    _SPENT.scalar_subquery().label("gpu_seconds"),
    _TO_COME.label("predicted_s"),
    _DAY.label("day_began_at"),
).where(Tenant.id == bindparam("tenant"))


def is_running_limited(db: Database) -> bool:
    """Does any tenant have a limit of its own for what runs at once?"""
    row = db.fetch_one(_ANY_LIMITED, {})
    return row is not None and bool(row[0])


def queue_room(db: Database, tenant_id: str, limits: Limits) -> int | None:
    """How many more jobs of this tenant may be queued; None: any number."""
    if limits.max_queued is None:
        return None
    row = db.fetch_one(_NUM_QUEUED, {"tenant": tenant_id})
    return max(0, limits.max_queued - (0 if row is None else row.num_queued))


@dataclass(frozen=True)
class Budget:
    """
    What a tenant has of its seconds of workers for this day.

    Attributes:
        left_s: after what was used and what is predicted for live work; negative: it was more than predicted.
        new_in_s: until midnight UTC, when there are new ones.
    """

    most_s: float
    left_s: float
    new_in_s: float


def read_budget(db: Database, tenant_id: str, limits: Limits) -> Budget | None:
    """What is left of the day's seconds; None: there is no limit. What is under way counts as far as it is known how long it will take."""
    most_s = limits.gpu_seconds_per_day
    if most_s is None:
        return None
    used = tenant_usage(db, tenant_id)
    return Budget(most_s, most_s - used.gpu_seconds - used.predicted_s, (used.day_ends_at - datetime.now(UTC)).total_seconds())


def tenant_usage(db: Database, tenant_id: str) -> TenantUsage:
    """What this tenant has and has had today."""
    return db.run(lambda session: usage_in(session, tenant_id))


def usage_in(session: Session, tenant_id: str) -> TenantUsage:
    """`tenant_usage` within a transaction of the caller's."""
    row = session.execute(_USED, {"tenant": tenant_id}).one()
    return TenantUsage(
        num_queued=row.num_queued,
        num_running=row.num_running,
        num_in_hand=row.num_in_hand,
        gpu_seconds=row.gpu_seconds,
        predicted_s=row.predicted_s,
        day_began_at=row.day_began_at,
        day_ends_at=row.day_began_at + timedelta(days=1),
    )
