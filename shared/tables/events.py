"""What happened."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ForeignKey,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base, insert_time


class Event(Base):
    """
    Something that happened to a job, or to a tenant's webhook endpoint; gap-free by `seq` within its tenant.

    Never changed but for an erased job's, and deleted only by `shared/lifecycle/retention.py`, oldest first.
    """

    __tablename__ = "event"
    __table_args__ = (
        UniqueConstraint("tenant_id", "seq"),
        Index("ix_event_job", "job_id", "seq"),
        # Exactly one end per run of a job is a constraint, not a hope.
        Index(
            "uq_event_end",
            "job_id",
            "run",
            unique=True,
            postgresql_where=text("type IN ('job.succeeded', 'job.failed', 'job.canceled', 'job.expired')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    seq: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    """NULL: the event is not about a job."""
    type: Mapped[str]
    run: Mapped[int] = mapped_column(server_default="1")
    """Of the job."""
    data: Mapped[dict[str, Any]]
    """What the event is about as it was at that moment, without presigned URLs."""
    created_at: Mapped[datetime] = insert_time()
