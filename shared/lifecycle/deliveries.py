"""Webhook deliveries on their way: claim what is due, lane by lane, and write down how each attempt went."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.ending import database_now
from shared.lifecycle.endpoint_health import Health, after_failure, is_given_up
from shared.lifecycle.endpoints import give_up, health_of, lock_endpoints, set_health
from shared.lifecycle.letters import Letter
from shared.tables import WebhookAttempt, WebhookEndpoint
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


# Hop from queue to queue along the index, and take the first few of each: a million that wait for a dead host cost no more than four.
# statement_timestamp, not clock_timestamp: an index can be searched for it.
_CHOOSE = text("""
WITH RECURSIVE queue AS (
    (SELECT lane, kind FROM webhook_delivery WHERE state = 'pending' ORDER BY lane, kind LIMIT 1)
    UNION ALL
    SELECT following.lane, following.kind FROM queue CROSS JOIN LATERAL (
        SELECT lane, kind FROM webhook_delivery AS waiting
        WHERE state = 'pending' AND (waiting.lane, waiting.kind) > (queue.lane, queue.kind)
        ORDER BY waiting.lane, waiting.kind LIMIT 1
    ) AS following
),
room AS (SELECT * FROM unnest(CAST(:queues AS text[]), CAST(:queue_rooms AS integer[])) AS given (queue, size)),
tenant_room AS (SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:tenant_rooms AS integer[])) AS given (tenant_id, size)),
first AS (
    SELECT head.id, head.tenant_id, head.next_at, endpoint.breaker_until IS NOT NULL AND queue.kind <> 'test' AS is_probe,
           row_number() OVER (PARTITION BY queue.lane, queue.kind = 'test' ORDER BY queue.kind, head.next_at, head.id) AS of_lane
    FROM queue
    LEFT JOIN webhook_endpoint AS endpoint ON endpoint.id = queue.lane
    LEFT JOIN room ON room.queue = queue.lane || ' ' || queue.kind
    CROSS JOIN LATERAL (
        SELECT id, tenant_id, next_at FROM webhook_delivery AS due
        WHERE due.lane = queue.lane AND due.kind = queue.kind AND state = 'pending' AND next_at <= statement_timestamp()
            AND (lease_until IS NULL OR lease_until < statement_timestamp())
        ORDER BY next_at, id
        LIMIT coalesce(room.size, CASE queue.kind WHEN 'live' THEN :queue_room ELSE 1 END)
    ) AS head
    WHERE (endpoint.id IS NULL OR endpoint.status = 'enabled')
        AND (queue.kind = 'test' OR endpoint.breaker_until IS NULL OR endpoint.breaker_until <= statement_timestamp())
),
chosen AS (
    SELECT ranked.id, ranked.is_probe FROM (
        SELECT first.*, row_number() OVER (PARTITION BY tenant_id ORDER BY next_at, id) AS of_tenant
        FROM first WHERE NOT is_probe OR of_lane = 1
    ) AS ranked
    LEFT JOIN tenant_room USING (tenant_id)
    WHERE of_tenant <= coalesce(tenant_room.size, :tenant_room)
    ORDER BY next_at LIMIT :total
)
SELECT delivery.id, delivery.tenant_id, delivery.lane, delivery.kind, delivery.attempt, delivery.tries, delivery.endpoint_id, is_probe,
       coalesce(endpoint.url, delivery.url) AS url, delivery.body, delivery.lease_until IS NOT NULL AS was_held,
       coalesce(endpoint.secret, signer.secret, tenant.webhook_secret) AS secret,
       CASE WHEN endpoint.id IS NOT NULL THEN
                CASE WHEN endpoint.previous_secret_until > statement_timestamp() THEN endpoint.previous_secret END
            WHEN signer.id IS NOT NULL THEN
                CASE WHEN signer.previous_secret_until > statement_timestamp() THEN signer.previous_secret END
            WHEN tenant.previous_webhook_secret_until > statement_timestamp() THEN tenant.previous_webhook_secret END AS previous_secret,
       coalesce(endpoint.is_thin, false) AS is_thin,
       event.id AS event_id, event.type AS event_type, event.seq AS event_seq, event.data AS event_data,
       event.created_at AS event_created_at, CASE WHEN delivery.endpoint_id IS NULL THEN job.dialect END AS dialect, job.trace,
       statement_timestamp() AS now
FROM chosen
JOIN webhook_delivery AS delivery USING (id)
JOIN tenant ON tenant.id = delivery.tenant_id
JOIN event ON event.id = delivery.event_id
LEFT JOIN job ON job.id = event.job_id
LEFT JOIN webhook_endpoint AS endpoint ON endpoint.id = delivery.endpoint_id
-- Whose secret signs for a job's own URL, if the job names one; a deleted endpoint has none any more.
LEFT JOIN webhook_endpoint AS signer ON delivery.endpoint_id IS NULL AND signer.id = job.webhook->>'secret_id'
    AND signer.tenant_id = delivery.tenant_id AND signer.secret <> ''
-- Due once more, on the locked row: another sender may have claimed it since.
WHERE delivery.state = 'pending' AND (delivery.lease_until IS NULL OR delivery.lease_until < statement_timestamp())
ORDER BY delivery.next_at, delivery.id
FOR UPDATE OF delivery SKIP LOCKED
""")

# Whoever comes first sends the probe; as long as its answer may take, nobody else does.
_PROBE = text("""
UPDATE webhook_endpoint SET breaker_until = statement_timestamp() + CAST(:lease AS interval)
WHERE id = ANY(CAST(:ids AS text[])) AND breaker_until <= statement_timestamp()
RETURNING id
""")

# Rows are given as one JSON text: psycopg spells arrays in Python, byte by byte.
_HOLD = text("""
UPDATE webhook_delivery
SET attempt = attempt + 1, tries = tries + 1, lease_until = clock_timestamp() + CAST(:lease AS interval),
    body = coalesce(webhook_delivery.body, convert_to(claimed.body, 'UTF8'))
FROM json_to_recordset(CAST(:claimed AS json)) AS claimed (id text, body text)
WHERE webhook_delivery.id = claimed.id
""")

# All that an attempt which succeeds has to leave, in one statement. An endpoint's row is written only if it had failed before.
_FINISH = text("""
WITH result AS (
    SELECT * FROM json_to_recordset(CAST(:results AS json)) AS given (
        id text, attempt bigint, state text, retry_in_s double precision, url text, headers jsonb, status bigint, error text, reply text,
        latency_ms bigint
    )
),
written AS (
    UPDATE webhook_delivery AS delivery
    SET state = result.state, lease_until = NULL, next_at = clock_timestamp() + result.retry_in_s * interval '1 second',
        last_status = result.status, last_error = result.error,
        delivered_at = CASE result.state WHEN 'delivered' THEN clock_timestamp() ELSE delivered_at END
    FROM result
    WHERE delivery.id = result.id AND delivery.attempt = result.attempt AND delivery.state = 'pending'
    RETURNING delivery.id
),
logged AS (
    INSERT INTO webhook_attempt (delivery_id, attempt, url, headers, status, error, reply, latency_ms)
    SELECT id, attempt, url, headers, status, error, decode(reply, 'base64'), latency_ms FROM result JOIN written USING (id)
    -- One that was taken for lost may yet be finished, if the attempt after it was given back.
    ON CONFLICT DO NOTHING
),
recovered AS (
    UPDATE webhook_endpoint SET consecutive_failures = 0, failing_since = NULL, breaker_openings = 0, breaker_until = NULL
    WHERE id = ANY(CAST(:well AS text[])) AND consecutive_failures > 0
)
SELECT id FROM written
""")

_RELEASE = text("""
UPDATE webhook_delivery SET attempt = webhook_delivery.attempt - 1, tries = tries - 1, lease_until = NULL
FROM unnest(CAST(:ids AS text[]), CAST(:attempts AS bigint[])) AS mine (id, attempt)
WHERE webhook_delivery.id = mine.id AND webhook_delivery.attempt = mine.attempt AND state = 'pending'
""")

_CLOSE = text("""
UPDATE webhook_delivery SET state = 'exhausted', lease_until = NULL, last_error = 'the webhook endpoint was disabled or deleted'
WHERE id IN (
    SELECT waiting.id FROM webhook_endpoint AS endpoint
    CROSS JOIN LATERAL (
        SELECT id FROM webhook_delivery AS waiting WHERE lane = endpoint.id AND state = 'pending' LIMIT :limit
    ) AS waiting
    WHERE endpoint.status <> 'enabled'
    LIMIT :limit
)
AND state = 'pending' AND (lease_until IS NULL OR lease_until < statement_timestamp())
RETURNING id
""")


def claim_deliveries(db: Database, room: Room, lease_s: float, write: Callable[[Delivery], bytes | None]) -> list[Delivery]:
    """
    Claim what is due, the first of every queue, so that a queue that stands still is in nobody's way.

    Args:
        write: makes the body of a delivery that has none yet. It is stored by the same transaction that claims it, so whoever sends it
            next, after whatever crash, sends the same bytes.
    """
    lease = timedelta(seconds=lease_s)

    def work(session: Session) -> list[Delivery]:
        rows = session.execute(_CHOOSE, _room_values(room)).all()
        if not rows:
            return []
        probed = sorted({row.endpoint_id for row in rows if row.is_probe})
        won = set(session.scalars(_PROBE, {"ids": probed, "lease": lease})) if probed else set()
        claimed = [_as_claimed(row) for row in rows if not row.is_probe or row.endpoint_id in won]
        if not claimed:
            return []
        made: list[str | None] = []
        for delivery in claimed:
            is_new = delivery.body is None
            delivery.body = delivery.body or write(delivery)
            made.append(delivery.body.decode() if is_new and delivery.body else None)
        bodies = [{"id": delivery.id, "body": body} for delivery, body in zip(claimed, made, strict=True)]
        session.execute(_HOLD, {"claimed": to_json(bodies).decode(), "lease": lease})
        ids = {delivery.id for delivery in claimed}
        if lost := [_lost_attempt(row) for row in rows if row.was_held and row.id in ids]:
            session.execute(insert(WebhookAttempt).on_conflict_do_nothing(), lost)
        return claimed

    return db.run(work)


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
        written = set(session.scalars(_FINISH, values))
        if failed:
            now = database_now(session)
            for endpoint in lock_endpoints(session, sorted(failed)):
                _judge(session, endpoint, [pair for pair in of_endpoints[endpoint.id] if pair[0].id in written], now)
        return written

    return db.run(work)


def release_deliveries(db: Database, deliveries: Sequence[Delivery]) -> None:
    """Give claimed deliveries back untried, as a sender does that shuts down or has taken too many of a queue."""
    values = {"ids": [delivery.id for delivery in deliveries], "attempts": [delivery.attempt for delivery in deliveries]}
    db.run(lambda session: session.execute(_RELEASE, values))


def close_deliveries(db: Database, limit: int) -> int:
    """Give up what waits for endpoints that are disabled or deleted, so many at once; how many. A replay can bring it back."""
    return db.run(lambda session: len(session.execute(_CLOSE, {"limit": limit}).all()))


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


def _lost_attempt(row: Any) -> dict[str, Any]:
    error = "the sender ended before it could write down an answer"
    return {"delivery_id": row.id, "attempt": row.attempt, "url": row.url, "headers": {}, "error": error}


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
