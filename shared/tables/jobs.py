"""What customers ask for, and which images they get."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.states import JobStatus, Priority
from shared.tables.base import Base, insert_time, one_of


class Job(Base):
    """What a customer asked for. `version` grows by one at every change."""

    __tablename__ = "job"
    __table_args__ = (
        one_of("status", JobStatus),
        one_of("priority", Priority),
        CheckConstraint("num_images BETWEEN 1 AND 10", name="num_images_in_range"),
        CheckConstraint("(completed_at IS NULL) = (status IN ('queued', 'running'))", name="completed_iff_final"),
        CheckConstraint("status <> 'failed' OR error IS NOT NULL", name="failure_has_reason"),
        CheckConstraint("approval_deadline IS NULL OR approval_s IS NOT NULL", name="approval_deadline_if_approval"),
        CheckConstraint("erased_at IS NULL OR completed_at IS NOT NULL", name="erased_is_over"),
        Index("ix_job_tenant", "tenant_id", "created_at", "id"),
        Index("ix_job_tenant_status", "tenant_id", "status", "created_at", "id"),
        Index("ix_job_deadline", "deadline", postgresql_where=text("deadline IS NOT NULL AND status IN ('queued', 'running')")),
        Index(
            "ix_job_approval",
            "approval_deadline",
            postgresql_where=text("approval_deadline IS NOT NULL AND status IN ('queued', 'running')"),
        ),
        Index("ix_job_live", "priority", "created_at", postgresql_where=text("status = 'queued'")),
        Index("ix_job_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND erased_at IS NULL")),
        Index("ix_job_batch", "batch_id", "created_at", "id", postgresql_where=text("batch_id IS NOT NULL")),
        Index("ix_job_custom", "tenant_id", "custom_id", "created_at", "id", postgresql_where=text("custom_id IS NOT NULL")),
        Index(
            "ix_job_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where=text("metadata <> '{}'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batch.id"))
    status: Mapped[str]
    priority: Mapped[str]
    version: Mapped[int] = mapped_column(server_default="1")
    input: Mapped[dict[str, Any]]
    """The request as it was sent."""
    params: Mapped[dict[str, Any]]
    """The request with every default and seed filled in; what the engines follow."""
    model: Mapped[dict[str, Any]]
    """`{name, revision}` of the checkpoint that the defaults came from."""
    num_images: Mapped[int]
    webhook: Mapped[dict[str, Any] | None]
    """`{url, events}` of the per-job callback."""
    request_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    custom_id: Mapped[str | None]
    warnings: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    """What its writer should know about the request; `Notice` in shared/quoting/reading.py."""
    deadline: Mapped[datetime | None]
    expires_in_s: Mapped[int | None]
    """How long its results are kept after its end; NULL: until they are deleted."""
    expires_at: Mapped[datetime | None]
    """When its results are erased; NULL before its end, and if they are kept."""
    wants_previews: Mapped[bool] = mapped_column(server_default=false())
    approval_s: Mapped[float | None]
    """How long its drafts wait for approval; NULL: they need none."""
    approval_deadline: Mapped[datetime | None]
    """The job expires if nobody has decided on its drafts by then. NULL while none wait."""
    trace: Mapped[dict[str, Any] | None]
    """The trace context of the request that made it, as `shared/trace.py` hands it on."""
    dialect: Mapped[dict[str, Any] | None]
    """What the interface that the job came by needs to answer in its own words; NULL: the native one."""
    redecode_of: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    """The job whose layouts it draws once more."""
    error: Mapped[dict[str, Any] | None]
    run: Mapped[int] = mapped_column(server_default="1")
    """1, and one more with every retry. Each run ends once."""
    erased_at: Mapped[datetime | None]
    """Its owner had it erased, or its time was up: nothing is left of what was asked and drawn, and nobody may read it."""
    created_at: Mapped[datetime] = insert_time()
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]


class Output(Base):
    """Image `index` of a job, which other jobs may have too."""

    __tablename__ = "output"
    __table_args__ = (Index("ix_output_image", "image_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("image.id"))
    is_cached: Mapped[bool] = mapped_column(server_default=false())
    """The image was done before the job came; it cost the job nothing."""
