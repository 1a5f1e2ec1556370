"""Many jobs submitted as one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.states import BatchStatus
from shared.tables.base import Base, insert_time, one_of

_BATCH_IS_LIVE = "status IN ('validating', 'running', 'finalizing', 'canceling')"


class Batch(Base):
    """
    Many jobs submitted as one: first its lines are checked, then they become jobs, then their results become files.

    A crash leaves it in any of these steps, and each of them may be done again. `BatchStatus` says what each status means.
    """

    __tablename__ = "batch"
    __table_args__ = (
        one_of("status", BatchStatus),
        CheckConstraint(f"(completed_at IS NULL) = ({_BATCH_IS_LIVE})", name="completed_iff_final"),
        Index("ix_batch_tenant", "tenant_id", "created_at", "id"),
        Index("ix_batch_live", "created_at", postgresql_where=text(_BATCH_IS_LIVE)),
        UniqueConstraint("tenant_id", "idempotency_key"),
        Index("ix_batch_keyed", "created_at", postgresql_where=text("idempotency_key IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    status: Mapped[str]
    input_file_id: Mapped[str | None] = mapped_column(ForeignKey("file.id"))
    request_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str | None]
    """Of the request that made it."""
    num_retries: Mapped[int] = mapped_column(server_default="0")
    """The number of the last try of that request, as clients count that send no key."""
    endpoint: Mapped[str | None]
    """The route whose bodies its lines hold."""
    name: Mapped[str | None]
    """Its owner's."""
    defaults: Mapped[dict[str, Any] | None]
    """Of a batch without an input file: members of a job request that its lines inherit."""
    is_sealed: Mapped[bool] = mapped_column(server_default=true())
    """It gets no more lines. Until then it does not end, unless its time is up."""
    paused_at: Mapped[datetime | None]
    """Since then no line of it becomes a job, and none of its work begins. NULL: it goes on."""
    resumed_at: Mapped[datetime | None]
    """When it last went on."""
    max_failures: Mapped[int | None]
    """It is paused when so many of its lines have failed since it went on. NULL: it never is."""
    holds_work: Mapped[bool] = mapped_column(server_default=false())
    """Work of its jobs is being held back, or has been: before it goes on, that is to be let go."""
    retried_at: Mapped[datetime | None]
    """Lines that had failed by then are tried again."""
    completion_window: Mapped[str | None]
    output_expires_s: Mapped[int | None]
    """How long its files are kept after they are made; NULL: until they are deleted."""
    num_items: Mapped[int] = mapped_column(server_default="0")
    counts: Mapped[dict[str, Any] | None]
    """`{completed, failed, items}`, once it has ended; until then they are counted. `items`, by status, is not in those of before."""
    usage: Mapped[dict[str, Any] | None]
    """What all its jobs cost, once it has ended."""
    errors: Mapped[list[dict[str, Any]] | None]
    """What was wrong with which line, if nothing was run because of it."""
    output_file_id: Mapped[str | None] = mapped_column(ForeignKey("file.id"))
    error_file_id: Mapped[str | None] = mapped_column(ForeignKey("file.id"))
    created_at: Mapped[datetime] = insert_time()
    expires_at: Mapped[datetime | None]
    """Its jobs' deadline."""
    started_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    canceling_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    """When it ended, however it ended."""


class BatchItem(Base):
    """
    A line of a batch. It becomes a job, or has an error, once and in one transaction.

    `line` counts from 1, blank lines too, so that it is the line of the customer's file.
    """

    __tablename__ = "batch_item"
    __table_args__ = (
        CheckConstraint("job_id IS NULL OR error IS NULL", name="one_outcome"),
        UniqueConstraint("batch_id", "custom_id"),
        UniqueConstraint("batch_id", "line"),
        Index("ix_batch_item_pending", "batch_id", "line", postgresql_where=text("job_id IS NULL AND error IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.id"))
    line: Mapped[int]
    custom_id: Mapped[str]
    request: Mapped[dict[str, Any]]
    """The body of the request, as it was sent."""
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    error: Mapped[dict[str, Any] | None]
    """`{code, message, param, status}`: why it did not become a job."""
    failed_at: Mapped[datetime | None]
    """When that was noted; NULL also for the errors of before."""
