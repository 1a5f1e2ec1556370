"""Requests that may come again: by their keys, or by the number of the try."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base, insert_time


class IdempotencyKey(Base):
    """A key that a customer sent with a POST, and the job it made."""

    __tablename__ = "idempotency_key"
    __table_args__ = (Index("ix_idempotency_key_created", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    """SHA-256 of the request's meaning; another one with the same key is refused."""
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    created_at: Mapped[datetime] = insert_time()


class StoredAnswer(Base):
    """A key that a customer sent with a POST that makes no job, and the answer that the request got; or that it is being worked on."""

    __tablename__ = "stored_answer"
    __table_args__ = (
        CheckConstraint("(answer IS NULL) = (lease_until IS NOT NULL)", name="lease_iff_no_answer"),
        CheckConstraint("(answer IS NULL) = (scope IS NULL)", name="scope_iff_answer"),
        Index("ix_stored_answer_created", "created_at"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    """SHA-256 of the request's meaning; another one with the same key is refused."""
    lease_until: Mapped[datetime | None]
    """Until then a request is being worked on; who finds it later may do the work again."""
    scope: Mapped[str | None]
    """Whose holder may have the answer."""
    answer: Mapped[bytes | None]
    """Status, headers and body; sealed, since secrets that are shown once are in some of them."""
    created_at: Mapped[datetime] = insert_time()


class ClientTry(Base):
    """
    A request of a client that numbers its tries but names them by no key, and the job it made.

    A later try with the same content is the same request, if no other try of its number has taken this row already.
    """

    __tablename__ = "client_try"
    __table_args__ = (
        Index("ix_client_try_request", "tenant_id", "fingerprint", "created_at"),
        Index("ix_client_try_created", "created_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    fingerprint: Mapped[str]
    num_retries: Mapped[int]
    """The number of the last try that belongs to it; the first one is 0."""
    answered_at: Mapped[datetime | None]
    """When an answer was made; whether it arrived is not known."""
    created_at: Mapped[datetime] = insert_time()
