"""Who works, and what it cost."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ForeignKey,
    Identity,
    Index,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.states import Stage
from shared.tables.base import Base, insert_time, one_of


class Worker(Base):
    """A GPU worker that reported in: what it loaded, and when it was last seen."""

    __tablename__ = "worker"
    __table_args__ = (one_of("stage", Stage), Index("ix_worker_seen", "stage", "seen_at"))

    id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    slots: Mapped[int]
    model: Mapped[dict[str, Any]]
    """What it loaded: of an AR worker its `ModelInfo`, of a decoder worker the revision and the size of the DiT."""
    speed: Mapped[dict[str, Any] | None]
    """How fast it was lately, as `Speed` in shared/cost.py has it."""
    started_at: Mapped[datetime] = insert_time()
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    stopped_at: Mapped[datetime | None]


class Usage(Base):
    """What a finished unit of work cost; append-only."""

    __tablename__ = "usage"
    __table_args__ = (one_of("stage", Stage), Index("ix_usage_tenant", "tenant_id", "created_at"), Index("ix_usage_work", "work_id"))

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    stage: Mapped[str]
    work_id: Mapped[str]
    units: Mapped[int]
    """AR: tokens sampled. Decoder: denoising steps."""
    seconds: Mapped[float]
    """Wall time of the winning attempt."""
    created_at: Mapped[datetime] = insert_time()
