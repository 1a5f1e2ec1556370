"""Webhook deliveries on their way: claim what is due, lane by lane, and write down how each attempt went."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal

from pydantic_core import to_json
from sqlalchemy.orm import Session

from shared.db import Database, read_rows
from shared.lifecycle.delivery_statements import CHOOSE, CLOSE, FINISH, HOLD, PROBE, RELEASE
from shared.lifecycle.ending import database_now
from shared.lifecycle.endpoint_health import Health, after_failure, is_given_up
from shared.lifecycle.endpoints import give_up, health_of, lock_endpoints, set_health
from shared.lifecycle.letters import Letter
from shared.tables import WebhookEndpoint
from shared.trace import TraceContext

Kind = Literal["live", "replay", "test"]


@dataclass(eq=False)
class Delivery(Letter):
    """A delivery that this sender holds until its lease ends. Not frozen: a thousand a second are made."""

    id: str
    lane: str
    kind: Kind
    attempt: int
    """1 at the first try; goes on counting through replays."""
    tries: int
    """Attempts of the present schedule, this one included."""
    is_probe: bool
    """Sent to find out whether an endpoint is well again."""
    body: bytes | None
    """What is posted, at every attempt. None: it could not be made."""

    @cached_property
    def queue(self) -> str:
        """Whom it waits behind."""
        return queue_name(self.lane, self.kind)


@dataclass(frozen=True)
class Outcome:
    """How an attempt went."""

    state: Literal["pending", "delivered", "exhausted"]
    retry_in_s: float = 0
    status: int | None = None
    error: str | None = None
    reply: bytes | None = None
    latency_ms: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the request, as the log keeps them."""
    is_gone: bool = False
    """The receiver wants to hear no more."""
    is_own_fault: bool = False
    """Nothing was posted, and the receiver is not to blame."""


@dataclass(frozen=True)
class Room:
    """
    How much a sender takes at once.

    Attributes:
        total: all together.
        queue: of each queue that `queues` does not name; of replays and tests, one.
        tenant: of each tenant that `tenants` does not name.
    """

    total: int
    queue: int
    tenant: int
    queues: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, int] = field(default_factory=dict)


def queue_name(lane: str, kind: Kind) -> str:
    """As `Room.queues` names it."""
    return f"{lane} {kind}"


def claim_deliveries(db: Database, room: Room, lease_s: float, write: Callable[[Delivery], bytes | None]) -> list[Delivery]:
    """
    Claim what is due, the first of every queue, so that a queue that stands still is in nobody's way.

    Args:
        write: makes the body of a delivery that has none yet. It is stored by the same statement that claims it, so whoever sends it
            next, after whatever crash, sends the same bytes.
    """
    lease = timedelta(seconds=lease_s)
    rows = db.run_alone(CHOOSE, _room_values(room))
    if probed := sorted({row.endpoint_id for row in rows if row.is_probe}):
        won = {row.id for row in db.run_alone(PROBE, {"ids": probed, "lease": lease})}
        rows = [row for row in rows if not row.is_probe or row.endpoint_id in won]
    if not rows:
        return []
    claimed: list[Delivery] = []
    chosen: list[dict[str, Any]] = []
    for row in rows:
        delivery = _as_claimed(row)
        is_new = delivery.body is None
        delivery.body = delivery.body or write(delivery)
        body = delivery.body.decode() if is_new and delivery.body else None
        claimed.append(delivery)
        chosen.append({"id": row.id, "attempt": row.attempt, "body": body, "lost_url": row.url if row.was_held else None})
    held = {row.id for row in db.run_alone(HOLD, {"chosen": to_json(chosen).decode(), "lease": lease})}
    return [delivery for delivery in claimed if delivery.id in held]


def finish_deliveries(db: Database, results: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
    """
    Write down attempts, all in one transaction, and what they mean for their endpoints.

    Returns:
        The ids that were written. The others took longer than their lease, and newer attempts hold them.
    """

    of_endpoints = _of_endpoints(results)
    failed = {name for name, found in of_endpoints.items() if any(outcome.state != "delivered" for _, outcome in found)}
    values = {"results": to_json([_result(*pair) for pair in results]).decode(), "well": sorted(set(of_endpoints) - failed)}

    def work(session: Session) -> set[str]:
        written = {row.id for row in read_rows(session, FINISH, values)}
        now = database_now(session)
        for endpoint in lock_endpoints(session, sorted(failed)):
            _judge(session, endpoint, [pair for pair in of_endpoints[endpoint.id] if pair[0].id in written], now)
        return written

    # Where all is well there is nothing more to do: one trip to Postgres instead of three.
    return db.run(work) if failed else {row.id for row in db.run_alone(FINISH, values)}


def release_deliveries(db: Database, deliveries: Sequence[Delivery]) -> None:
    """Give claimed deliveries back untried, as a sender does that shuts down or has taken too many of a queue."""
    values = {"ids": [delivery.id for delivery in deliveries], "attempts": [delivery.attempt for delivery in deliveries]}
    db.run(lambda session: session.execute(RELEASE, values))


def close_deliveries(db: Database, limit: int) -> int:
    """Give up what waits for endpoints that are disabled or deleted, so many at once; how many. A replay can bring it back."""
    return db.run(lambda session: len(session.execute(CLOSE, {"limit": limit}).all()))


def _room_values(room: Room) -> dict[str, Any]:
    return {
        "total": room.total,
        "queue_room": room.queue,
        "tenant_room": room.tenant,
        "queues": list(room.queues),
        "queue_rooms": list(room.queues.values()),
        "tenants": list(room.tenants),
        "tenant_rooms": list(room.tenants.values()),
    }


def _as_claimed(row: Any) -> Delivery:
    return Delivery(
        id=row.id,
        tenant_id=row.tenant_id,
        lane=row.lane,
        kind=row.kind,
        attempt=row.attempt + 1,
        tries=row.tries + 1,
        endpoint_id=row.endpoint_id,
        is_probe=row.is_probe,
        url=row.url,
        sealed_secrets=tuple(bytes(secret) for secret in (row.secret, row.previous_secret) if secret is not None),
        is_thin=row.is_thin,
        event_id=row.event_id,
        event_type=row.event_type,
        event_seq=row.event_seq,
        event_data=row.event_data,
        event_created_at=row.event_created_at,
        now=row.now,
        dialect=row.dialect,
        trace=TraceContext.from_headers(row.trace),
        body=row.body,
    )


def _result(delivery: Delivery, outcome: Outcome) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "attempt": delivery.attempt,
        "state": outcome.state,
        "retry_in_s": outcome.retry_in_s,
        "url": delivery.url,
        "headers": dict(outcome.headers),
        "status": outcome.status,
        "error": outcome.error,
        "reply": None if outcome.reply is None else base64.b64encode(outcome.reply).decode(),
        "latency_ms": outcome.latency_ms,
    }


def _of_endpoints(results: Sequence[tuple[Delivery, Outcome]]) -> dict[str, list[tuple[Delivery, Outcome]]]:
    """What counts for the health of each endpoint."""
    of_endpoints: dict[str, list[tuple[Delivery, Outcome]]] = {}
    for delivery, outcome in results:
        # A test tells its sender how it went; it counts for nothing unless it arrives.
        counts = outcome.state == "delivered" or outcome.is_gone or (delivery.kind != "test" and not outcome.is_own_fault)
        if delivery.endpoint_id is not None and counts:
            of_endpoints.setdefault(delivery.endpoint_id, []).append((delivery, outcome))
    return of_endpoints


def _judge(session: Session, endpoint: WebhookEndpoint, results: Sequence[tuple[Delivery, Outcome]], now: datetime) -> None:
    """Open or close the breaker of an endpoint that is locked, and disable it if it is gone or hopeless."""
    health = health_of(endpoint)
    for delivery, outcome in results:
        health = Health() if outcome.state == "delivered" else after_failure(health, now, delivery.is_probe)
    set_health(endpoint, health)
    if any(outcome.is_gone for _, outcome in results):
        give_up(session, endpoint, "gone")
    elif is_given_up(health, now):
        give_up(session, endpoint, "failing")
