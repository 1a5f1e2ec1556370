"""Who is told of it, and how that went."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    UniqueConstraint,
    false,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base, insert_time


class WebhookEndpoint(Base):
    """A URL that a tenant registered for its events, and how it has been answering."""

    __tablename__ = "webhook_endpoint"
    __table_args__ = (
        CheckConstraint("status IN ('enabled', 'disabled', 'deleted')", name="status_known"),
        CheckConstraint("(status = 'disabled') = (disabled_reason IS NOT NULL)", name="disabled_has_reason"),
        CheckConstraint("disabled_reason IN ('manual', 'gone', 'failing')", name="disabled_reason_known"),
        CheckConstraint("cardinality(events) > 0", name="events_named"),
        Index("ix_webhook_endpoint_tenant", "tenant_id", "created_at", "id", postgresql_where=text("status <> 'deleted'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str] = mapped_column(server_default="")
    description: Mapped[str] = mapped_column(server_default="")
    url: Mapped[str]
    host: Mapped[str]
    """Host and port of the URL."""
    events: Mapped[list[str]]
    """Event types, kinds of types such as `job.*`, or `*`."""
    is_thin: Mapped[bool] = mapped_column(server_default=false())
    """It gets ids and versions, and fetches the rest."""
    request_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    secret: Mapped[bytes]
    """Signs its deliveries; sealed, and empty once the endpoint is deleted."""
    secret_hint: Mapped[str] = mapped_column(server_default="")
    """The end of the secret, for a person who has several."""
    previous_secret: Mapped[bytes | None]
    previous_secret_until: Mapped[datetime | None]
    """Until then deliveries are signed by the secret before this one, too."""
    status: Mapped[str]
    """A deleted endpoint stays as the owner of its deliveries; nobody sees it any more."""
    disabled_reason: Mapped[str | None]
    """`manual`, `gone` (it answered 410) or `failing` (nothing arrived for days)."""
    disabled_at: Mapped[datetime | None]
    consecutive_failures: Mapped[int] = mapped_column(server_default="0")
    failing_since: Mapped[datetime | None]
    """When the first of them was."""
    breaker_openings: Mapped[int] = mapped_column(server_default="0")
    """How often in a row the circuit breaker has opened."""
    breaker_until: Mapped[datetime | None]
    """Nothing is sent before; then one delivery at a time, until one arrives. NULL: closed."""
    created_at: Mapped[datetime] = insert_time()
    updated_at: Mapped[datetime] = insert_time()
    """When its owner last changed it."""


class WebhookDelivery(Base):
    """One event on its way to one URL; written in the transaction that wrote the event."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'exhausted')", name="state_known"),
        CheckConstraint("kind IN ('live', 'replay', 'test')", name="kind_known"),
        # One per event and endpoint, and one per event for the job's own URL.
        UniqueConstraint("event_id", "endpoint_id", postgresql_nulls_not_distinct=True),
        Index("ix_webhook_delivery_due", "lane", "kind", "next_at", "id", postgresql_where=text("state = 'pending'")),
        Index("ix_webhook_delivery_tenant", "tenant_id", "created_at", "id"),
        Index("ix_webhook_delivery_endpoint", "endpoint_id", "created_at", "id", postgresql_where=text("endpoint_id IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    event_id: Mapped[str] = mapped_column(ForeignKey("event.id"))
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoint.id"))
    """NULL: to the job's own URL."""
    url: Mapped[str]
    """Of the job's webhook; of an endpoint, what its URL was when the event happened."""
    lane: Mapped[str]
    """Whom it waits behind: its endpoint's id, or its tenant and the host of the job's URL."""
    kind: Mapped[str] = mapped_column(server_default="live")
    """Replays and tests wait in lanes of their own: a thousand replays hold up no new event."""
    state: Mapped[str] = mapped_column(server_default="pending")
    body: Mapped[bytes | None]
    """Made at the first claim and sent unchanged ever after."""
    attempt: Mapped[int] = mapped_column(server_default="0")
    """The fencing token, and the number of the attempt that the receiver is told."""
    tries: Mapped[int] = mapped_column(server_default="0")
    """Attempts of the present schedule; a replay begins a new one."""
    next_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    lease_until: Mapped[datetime | None]
    """Held by a sender until then."""
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    replayed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = insert_time()
    delivered_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """One post of a delivery, as it went; append-only."""

    __tablename__ = "webhook_attempt"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_delivery.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str]
    headers: Mapped[dict[str, Any]]
    """Of the request, without the signatures; its body is the delivery's."""
    status: Mapped[int | None]
    error: Mapped[str | None]
    reply: Mapped[bytes | None]
    """The first 2 KiB."""
    latency_ms: Mapped[int | None]
    created_at: Mapped[datetime] = insert_time()
    """When it was written down."""
