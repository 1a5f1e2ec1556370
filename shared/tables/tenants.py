"""Customers and their keys."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base, insert_time


class Tenant(Base):
    """
    A customer. `event_seq` is the number of its last event: taking the next one locks this row, so numbers have no gaps.

    A limit that is NULL is the service's default; 0 is none at all. `shared/lifecycle/quotas.py` says what they mean.
    """

    __tablename__ = "tenant"
    __table_args__ = tuple(
        CheckConstraint(f"{name} >= 0", name=f"{name}_not_negative")
        for name in ("max_queued", "max_running", "requests_per_minute", "gpu_seconds_per_day", "results_kept_s", "live_batches")
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    event_seq: Mapped[int] = mapped_column(server_default="0")
    webhook_secret: Mapped[bytes]
    """Signs deliveries to per-job URLs; sealed by `shared/sealing.py`."""
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    gpu_seconds_per_day: Mapped[float | None]
    results_kept_s: Mapped[int | None]
    """Of jobs that do not say it themselves; what holds when a job is written stays with the job."""
    live_batches: Mapped[int | None]
    num_queued: Mapped[int] = mapped_column(server_default="0")
    """Jobs with the status `queued`; kept by the statement that takes `event_seq`."""
    previous_webhook_secret: Mapped[bytes | None]
    previous_webhook_secret_until: Mapped[datetime | None]
    """Until then deliveries are signed by the secret before this one, too."""
    num_endpoints: Mapped[int] = mapped_column(server_default="0")
    """How many webhook endpoints are enabled: whoever records an event learns with its number whether there is anybody to look up."""
    created_at: Mapped[datetime] = insert_time()


class ApiKey(Base):
    """A key of a tenant. The secret half is stored as a hash only."""

    __tablename__ = "api_key"
    __table_args__ = (
        CheckConstraint("scopes <@ ARRAY['read', 'submit', 'admin', 'operator'] AND cardinality(scopes) > 0", name="scopes_known"),
        CheckConstraint("max_priority IN ('interactive', 'standard', 'bulk')", name="max_priority_known"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """The public half of the key."""
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[bytes]
    scopes: Mapped[list[str]]
    max_priority: Mapped[str] = mapped_column(server_default="interactive")
    """The most urgent lane that its jobs may take."""
    created_at: Mapped[datetime] = insert_time()
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
