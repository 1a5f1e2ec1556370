"""Objects in S3: those of tenants, and those that are to go."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base, insert_time


class File(Base):
    """An object of a tenant in S3: a normalised source image, or a file that was uploaded as it is or made by a batch."""

    __tablename__ = "file"
    __table_args__ = (
        CheckConstraint("purpose IN ('source', 'batch', 'batch_output', 'vision', 'user_data', 'assistants')", name="purpose_known"),
        Index("ix_file_tenant", "tenant_id", "created_at", "id", postgresql_where=text("purpose <> 'source' AND deleted_at IS NULL")),
        Index("ix_file_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND deleted_at IS NULL")),
        CheckConstraint("size_bytes >= 0", name="size_not_negative"),
        CheckConstraint("purpose <> 'source' OR (height_px > 0 AND width_px > 0)", name="source_has_size"),
        # The same picture sent twice is stored once.
        Index("uq_file_source", "tenant_id", "sha256", unique=True, postgresql_where=text("purpose = 'source'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    purpose: Mapped[str]
    storage_key: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    content_type: Mapped[str]
    height_px: Mapped[int | None]
    width_px: Mapped[int | None]
    filename: Mapped[str | None]
    """As it was uploaded; sources have none."""
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """The row stays for the batches that name it; the object is gone."""
    created_at: Mapped[datetime] = insert_time()


class DoomedObject(Base):
    """Objects in S3 that belong to nobody any more, and are to be deleted."""

    __tablename__ = "doomed_object"
    __table_args__ = (Index("ix_doomed_object_due", "due_at"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    prefix: Mapped[str]
    """Every object whose key begins so."""
    due_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    """Not before: a worker that has not heard yet may still write there."""
