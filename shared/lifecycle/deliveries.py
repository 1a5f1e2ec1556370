"""Webhook deliveries: claim what is due, few at a time per host, and write down how the attempt went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import case, func, or_, select, true, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.ending import database_now
from shared.tables import Event, Tenant, WebhookDelivery

_now = func.clock_timestamp


@dataclass(frozen=True)
class Delivery:
    """A delivery that this sender holds until its lease ends."""

    id: str
    attempt: int
    """1 at the first try."""
    url: str
    host: str
    sealed_secret: bytes
    event_id: str
    event_type: str
    event_seq: int
    event_data: dict[str, Any]
    event_created_at: datetime
    now: datetime
    """The database's clock, for the signature."""
    body: bytes | None
    """The bytes that were sent before, or None at the first try."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt went."""

    state: Literal["pending", "delivered", "exhausted"]
    retry_in_s: float = 0
    status: int | None = None
    error: str | None = None
    reply: bytes | None = None
    latency_ms: int | None = None


def claim_deliveries(db: Database, limit: int, lease_s: float, in_flight: Mapping[str, int], max_per_host: int) -> list[Delivery]:
    """
    Claim what is due, oldest first, so that no host has more than `max_per_host` in flight from this sender.

    Args:
        in_flight: deliveries that this sender is posting now, by host.
    """

    def work(session: Session) -> list[Delivery]:
        is_due = (
            WebhookDelivery.state == "pending",
            WebhookDelivery.next_at <= _now(),
            or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < _now()),
        )
        rank = func.row_number().over(partition_by=WebhookDelivery.host, order_by=(WebhookDelivery.next_at, WebhookDelivery.id))
        due = select(WebhookDelivery.id, WebhookDelivery.host, rank.label("rank")).where(*is_due).subquery()
        room = case(*((due.c.host == host, max_per_host - count) for host, count in in_flight.items()), (true(), max_per_host))
        chosen = (
            select(WebhookDelivery.id)
            .join(due, due.c.id == WebhookDelivery.id)
            # Due once more, on the locked row: another sender may have claimed it since the ranks were counted.
            .where(due.c.rank <= room, *is_due)
            .order_by(WebhookDelivery.next_at)
            .limit(limit)
            .with_for_update(skip_locked=True, of=WebhookDelivery)
            .cte("chosen")
        )
        claimed = session.scalars(
            update(WebhookDelivery)
            .where(WebhookDelivery.id.in_(select(chosen.c.id)))
            .values(attempt=WebhookDelivery.attempt + 1, lease_until=_now() + timedelta(seconds=lease_s))
            .returning(WebhookDelivery)
        ).all()
        now = database_now(session)
        deliveries = []
        for row in claimed:
            event = session.get_one(Event, row.event_id)
            deliveries.append(
                Delivery(
                    id=row.id,
                    attempt=row.attempt,
                    url=row.url,
                    host=row.host,
                    sealed_secret=session.get_one(Tenant, row.tenant_id).webhook_secret,
                    event_id=event.id,
                    event_type=event.type,
                    event_seq=event.seq,
                    event_data=event.data,
                    event_created_at=event.created_at,
                    now=now,
                    body=row.body,
                )
            )
        return deliveries

    return db.run(work)


def keep_body(db: Database, delivery_id: str, attempt: int, body: bytes) -> None:
    """Store the bytes before they are first sent: every later attempt sends the same."""
    mine = (WebhookDelivery.id == delivery_id, WebhookDelivery.attempt == attempt)
    db.run(lambda session: session.execute(update(WebhookDelivery).where(*mine).values(body=body)))


def finish_delivery(db: Database, delivery_id: str, attempt: int, outcome: Outcome) -> bool:
    """Write down an attempt. False: the lease had ended and a newer attempt holds the delivery."""

    def work(session: Session) -> bool:
        written = session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id == delivery_id, WebhookDelivery.attempt == attempt, WebhookDelivery.state == "pending")
            .values(
                state=outcome.state,
                lease_until=None,
                next_at=_now() + timedelta(seconds=outcome.retry_in_s),
                last_status=outcome.status,
                last_error=outcome.error,
                last_reply=outcome.reply,
                last_latency_ms=outcome.latency_ms,
                delivered_at=_now() if outcome.state == "delivered" else None,
            )
            .returning(WebhookDelivery.id)
        )
        return written.one_or_none() is not None

    return db.run(work)


def release_delivery(db: Database, delivery_id: str, attempt: int) -> None:
    """Give a claimed delivery back untried, as a sender does that shuts down."""
    mine = (WebhookDelivery.id == delivery_id, WebhookDelivery.attempt == attempt, WebhookDelivery.state == "pending")
    db.run(lambda session: session.execute(update(WebhookDelivery).where(*mine).values(attempt=attempt - 1, lease_until=None)))
