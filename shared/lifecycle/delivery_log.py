"""What became of a tenant's webhook deliveries, and sending them once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, insert, or_, select, true, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.ids import new_id
from shared.job_document import timestamp
from shared.lifecycle.ending import database_now
from shared.lifecycle.endpoints import check_enabled
from shared.lifecycle.events import EVENT_TYPES
from shared.lifecycle.paging import Page, read_page
from shared.tables import Event, Tenant, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from shared.webhooks import is_wanted

REPLAY_AT_ONCE = 1000
"""Of a range, by one call."""

Replayable = Literal["delivered", "exhausted", "missed"]


@dataclass(frozen=True)
class DeliveryFilter:
    """What a listing shows: all given conditions together."""

    endpoint_id: str | None = None
    job_id: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    states: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replay:
    """What a replay of a range has set going."""

    since: datetime
    until: datetime
    count: int
    has_more: bool


def list_deliveries(db: Database, tenant_id: str, wanted: DeliveryFilter, page: Page) -> tuple[list[dict[str, Any]], bool]:
    """
    One page of deliveries by time of creation, and whether more follow.

    Raises:
        RequestError: as `read_page`.
    """

    def work(session: Session) -> tuple[list[dict[str, Any]], bool]:
        conditions: list[ColumnElement[bool]] = [WebhookDelivery.tenant_id == tenant_id]
        for column, value in (
            (WebhookDelivery.endpoint_id, wanted.endpoint_id),
            (WebhookDelivery.event_id, wanted.event_id),
            (Event.job_id, wanted.job_id),
            (Event.type, wanted.event_type),
        ):
            if value is not None:
                conditions.append(column == value)
        if wanted.states:
            conditions.append(WebhookDelivery.state.in_(wanted.states))
        query = select(WebhookDelivery, Event).join(Event, Event.id == WebhookDelivery.event_id).where(*conditions)
        mine = WebhookDelivery.tenant_id == tenant_id
        rows, has_more = read_page(session, query, WebhookDelivery, page, "webhook delivery of yours", mine)
        return [_document(delivery, event) for delivery, event in rows], has_more

    return db.run(work)


def get_delivery(db: Database, tenant_id: str, delivery_id: str, endpoint_id: str | None = None) -> dict[str, Any] | None:
    """
    A delivery with its body and all its attempts, or None if this tenant has no such delivery.

    Args:
        endpoint_id: it must be one to this endpoint.
    """

    def work(session: Session) -> dict[str, Any] | None:
        query = select(WebhookDelivery, Event).join(Event, Event.id == WebhookDelivery.event_id)
        found = session.execute(query.where(*_is(tenant_id, delivery_id, endpoint_id))).one_or_none()
        if found is None:
            return None
        delivery, event = found
        log = select(WebhookAttempt).where(WebhookAttempt.delivery_id == delivery_id).order_by(WebhookAttempt.attempt)
        return {
            **_document(delivery, event),
            "request_body": None if delivery.body is None else delivery.body.decode(),
            "attempts": [_attempt_document(row) for row in session.scalars(log)],
        }

    return db.run(work)


def replay_delivery(db: Database, tenant_id: str, delivery_id: str, endpoint_id: str | None = None) -> dict[str, Any] | None:
    """
    Send a delivery once more, with the same id and bytes, by a schedule of its own; its document, or None if there is no such delivery.

    One that still waits goes now. One that is on its way stays on it.

    Raises:
        RequestError: `endpoint_disabled`.
    """

    def work(session: Session) -> dict[str, Any] | None:
        query = select(WebhookDelivery).where(*_is(tenant_id, delivery_id, endpoint_id)).with_for_update()
        delivery = session.scalars(query).one_or_none()
        if delivery is None:
            return None
        if delivery.endpoint_id is not None:
            check_enabled(session.get_one(WebhookEndpoint, delivery.endpoint_id))
        now = database_now(session)
        if delivery.lease_until is None or delivery.lease_until < now:
            delivery.state, delivery.kind, delivery.tries = "pending", "replay", 0
            delivery.next_at = delivery.replayed_at = now
        session.flush()
        return _document(delivery, session.get_one(Event, delivery.event_id))

    return db.run(work)


def replay_range(
    db: Database, tenant_id: str, endpoint_id: str, since: datetime, until: datetime | None, which: Sequence[Replayable]
) -> Replay | None:
    """
    Send an endpoint the events from `since` to `until` once more, `REPLAY_AT_ONCE` of them at most, oldest first.

    Asked again for the same range, it goes on where it stopped, and in the end does nothing: what has been replayed after the end of the
    range is not replayed by it again.

    Args:
        until: None is now.
        which: `missed` are those it would have got had it been there, and enabled.
    Returns:
        None if this tenant has no such endpoint.
    Raises:
        RequestError: `endpoint_disabled`.
    """

    def work(session: Session) -> Replay | None:
        chosen = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.tenant_id == tenant_id)
        # Locked: two requests for the same range must not count the same deliveries.
        endpoint = session.scalars(chosen.where(WebhookEndpoint.status != "deleted").with_for_update(key_share=True)).one_or_none()
        if endpoint is None:
            return None
        check_enabled(endpoint)
        now = database_now(session)
        end = min(until or now, now)
        first, last = _first_seq(session, tenant_id, since), _first_seq(session, tenant_id, end)
        in_range = (Event.tenant_id == tenant_id, Event.seq >= first, Event.seq < last)
        count = _replay_sent(session, endpoint_id, in_range, end, now, [state for state in which if state != "missed"])
        if "missed" in which and count <= REPLAY_AT_ONCE:
            count += _send_missed(session, endpoint, in_range, now, REPLAY_AT_ONCE + 1 - count)
        # One more than is promised shows that there is more; it goes out, too.
        return Replay(since, end, count, count > REPLAY_AT_ONCE)

    return db.run(work)


def _replay_sent(
    session: Session, endpoint_id: str, in_range: Sequence[ColumnElement[bool]], end: datetime, now: datetime, states: Sequence[str]
) -> int:
    if not states:
        return 0
    sent = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.event_id == Event.id,
            _goes_to(endpoint_id),
            WebhookDelivery.kind != "test",
            WebhookDelivery.state.in_(states),
            or_(WebhookDelivery.replayed_at.is_(None), WebhookDelivery.replayed_at <= end),
        )
        # Changes nothing, but that each event is asked for its delivery, and not each delivery for its event.
        .offset(0)
        .lateral()
    )
    chosen = select(sent.c.id).select_from(Event).join(sent, true()).where(*in_range).order_by(Event.seq).limit(REPLAY_AT_ONCE + 1)
    ids = session.scalars(chosen).all()
    if ids:
        again = {"state": "pending", "kind": "replay", "tries": 0, "next_at": now, "replayed_at": now}
        # By their state, too: what was sent once more meanwhile is on its way.
        session.execute(update(WebhookDelivery).where(WebhookDelivery.id.in_(ids), WebhookDelivery.state.in_(states)).values(again))
    return len(ids)


def _send_missed(session: Session, endpoint: WebhookEndpoint, in_range: Sequence[ColumnElement[bool]], now: datetime, limit: int) -> int:
    types = [name for name in EVENT_TYPES if name != "endpoint.test" and is_wanted(name, endpoint.events)]
    had = select(WebhookDelivery.id).where(WebhookDelivery.event_id == Event.id, _goes_to(endpoint.id))
    missed = select(Event.id).where(*in_range, Event.type.in_(types), ~had.exists()).order_by(Event.seq).limit(limit)
    rows = [
        {
            "id": new_id("whd"),
            "tenant_id": endpoint.tenant_id,
            "event_id": event_id,
            "endpoint_id": endpoint.id,
            "url": endpoint.url,
            "lane": endpoint.id,
            "kind": "replay",
            "next_at": now,
            "replayed_at": now,
        }
        for event_id in session.scalars(missed)
    ]
    if rows:
        session.execute(insert(WebhookDelivery), rows)
    return len(rows)


def _goes_to(endpoint_id: str) -> ColumnElement[bool]:
    """
    Of an event's deliveries, that to one endpoint; in words that no index of endpoints answers.

    Of a tenant that it has no statistics of, Postgres expects a handful of deliveries to the endpoint, and would look through all of them
    for every event.
    """
    return WebhookDelivery.endpoint_id.concat("") == endpoint_id


def _first_seq(session: Session, tenant_id: str, at: datetime) -> int:
    """
    The number of the tenant's first event at or after a moment; of the next event, if there is none.

    By bisection: a tenant's events are numbered without gaps in the order of their times, and an index on the times would cost every event.
    """
    oldest = select(func.min(Event.seq)).where(Event.tenant_id == tenant_id)
    low = session.execute(oldest).scalar_one() or 0
    high = session.get_one(Tenant, tenant_id).event_seq + 1
    while low < high:
        middle = (low + high) // 2
        found = select(Event.created_at).where(Event.tenant_id == tenant_id, Event.seq == middle)
        moment = session.execute(found).scalar_one_or_none()
        if moment is not None and moment < at:
            low = middle + 1
        else:
            high = middle
    return low


def _is(tenant_id: str, delivery_id: str, endpoint_id: str | None) -> list[ColumnElement[bool]]:
    conditions = [WebhookDelivery.id == delivery_id, WebhookDelivery.tenant_id == tenant_id]
    return conditions if endpoint_id is None else [*conditions, WebhookDelivery.endpoint_id == endpoint_id]


def _document(row: WebhookDelivery, event: Event) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "webhook_delivery",
        "event_id": row.event_id,
        "event_type": event.type,
        "event_seq": event.seq,
        "job_id": event.job_id,
        "endpoint_id": row.endpoint_id,
        "url": row.url,
        "status": row.state,
        "kind": row.kind,
        "num_attempts": row.attempt,
        "next_attempt_at": timestamp(row.next_at) if row.state == "pending" else None,
        "last_status_code": row.last_status,
        "last_error": row.last_error,
        "created_at": timestamp(row.created_at),
        "delivered_at": timestamp(row.delivered_at),
        "replayed_at": timestamp(row.replayed_at),
    }


def _attempt_document(row: WebhookAttempt) -> dict[str, Any]:
    return {
        "attempt": row.attempt,
        "url": row.url,
        "request_headers": row.headers,
        "status_code": row.status,
        "error": row.error,
        # A receiver may answer with anything.
        "response_body": None if row.reply is None else row.reply.decode("utf-8", "replace"),
        "latency_ms": row.latency_ms,
        "finished_at": timestamp(row.created_at),
    }
