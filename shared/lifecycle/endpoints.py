"""
Webhook endpoints: what tenants register, change and delete, and how they are disabled.

Rows are locked in the order endpoint, tenant. The tenant's row counts the enabled ones, for `events.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.ids import new_id
from shared.lifecycle.ending import database_now
from shared.lifecycle.endpoint_health import Health
from shared.lifecycle.events import record_event, record_test
from shared.lifecycle.paging import Page, read_page
from shared.tables import Tenant, WebhookEndpoint

MAX_ENDPOINTS = 50
"""Per tenant: every event looks through them."""

DisabledReason = Literal["manual", "gone", "failing"]


@dataclass(frozen=True)
class NewEndpoint:
    """What a tenant registers. The URL is checked, the secret sealed."""

    url: str
    host: str
    events: list[str]
    secret: bytes
    secret_hint: str
    name: str = ""
    description: str = ""
    is_thin: bool = False
    metadata: dict[str, str] = field(default_factory=dict)


def add_endpoint(db: Database, tenant_id: str, new: NewEndpoint) -> dict[str, Any]:
    """
    Register an endpoint; every event from now on is delivered to it. Returns its document.

    Raises:
        RequestError: `too_many_endpoints`.
    """

    def work(session: Session) -> dict[str, Any]:
        row = WebhookEndpoint(
            id=new_id("we"),
            tenant_id=tenant_id,
            name=new.name,
            description=new.description,
            url=new.url,
            host=new.host,
            events=new.events,
            is_thin=new.is_thin,
            request_metadata=new.metadata,
            secret=new.secret,
            secret_hint=new.secret_hint,
            status="enabled",
        )
        session.add(row)
        session.flush()
        # The tenant's row is locked from here on, so two requests cannot both be the last one that is allowed.
        _count(session, tenant_id)
        existing = select(func.count()).where(WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.status != "deleted")
        if session.execute(existing).scalar_one() > MAX_ENDPOINTS:
            raise RequestError("too_many_endpoints", f"there are {MAX_ENDPOINTS} webhook endpoints already; delete one first")
        session.refresh(row)
        return endpoint_document(row)

    return db.run(work)


def get_endpoint(db: Database, tenant_id: str, endpoint_id: str) -> dict[str, Any] | None:
    """The document of an endpoint of this tenant, or None."""

    def work(session: Session) -> dict[str, Any] | None:
        row = session.scalars(_of_tenant(tenant_id, endpoint_id)).one_or_none()
        return None if row is None else endpoint_document(row)

    return db.run(work)


def list_endpoints(db: Database, tenant_id: str, page: Page) -> tuple[list[dict[str, Any]], bool]:
    """
    One page of endpoints by time of creation, and whether more follow.

    Raises:
        RequestError: as `read_page`.
    """

    def work(session: Session) -> tuple[list[dict[str, Any]], bool]:
        query = select(WebhookEndpoint).where(WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.status != "deleted")
        rows, has_more = read_page(
            session, query, WebhookEndpoint, page, "webhook endpoint of yours", WebhookEndpoint.tenant_id == tenant_id
        )
        return [endpoint_document(row) for (row,) in rows], has_more

    return db.run(work)


def change_endpoint(db: Database, tenant_id: str, endpoint_id: str, changes: dict[str, Any]) -> dict[str, Any] | None:
    """
    Change columns of an endpoint; its document, or None if this tenant has no such endpoint.

    Deliveries that wait go to the new URL. Enabled again, it is as if it had never failed.

    Args:
        changes: by column of `WebhookEndpoint`; of the status, `enabled` or `disabled`.
    """
    changes = dict(changes)
    status = changes.pop("status", None)

    def change(session: Session, row: WebhookEndpoint) -> None:
        old = {name: getattr(row, name) for name in changes}
        for name, value in changes.items():
            setattr(row, name, value)
        is_changed = old != changes or status not in (None, row.status)
        if old.get("url", row.url) != row.url:
            # Its failures were another receiver's.
            set_health(row, Health())
        if status == "disabled" and row.status == "enabled":
            _disable(session, row, "manual")
        elif status == "enabled":
            row.status, row.disabled_reason, row.disabled_at = "enabled", None, None
            set_health(row, Health())
        if is_changed:
            row.updated_at = database_now(session)

    return change_row(db, tenant_id, endpoint_id, change)


def delete_endpoint(db: Database, tenant_id: str, endpoint_id: str) -> bool:
    """Delete an endpoint and its secrets; False if this tenant has no such endpoint. What waits for it is not sent."""

    def change(_: Session, row: WebhookEndpoint) -> None:
        row.status, row.disabled_reason = "deleted", None
        row.secret, row.previous_secret, row.previous_secret_until = b"", None, None

    return change_row(db, tenant_id, endpoint_id, change) is not None


def add_test(db: Database, tenant_id: str, endpoint_id: str, event_type: str) -> str | None:
    """
    Have an `endpoint.test` delivered to an endpoint, once, whatever it listens to and even if its breaker is open.

    Args:
        event_type: the type that the receiver is to see.
    Returns:
        The delivery's id, or None if this tenant has no such endpoint.
    Raises:
        RequestError: `endpoint_disabled`.
    """

    def work(session: Session) -> str | None:
        row = session.scalars(_of_tenant(tenant_id, endpoint_id)).one_or_none()
        if row is None:
            return None
        check_enabled(row)
        about = {"id": row.id, "object": "webhook_endpoint.test", "event_type": event_type, "name": row.name}
        return record_test(session, row, about)

    return db.run(work)


def check_enabled(row: WebhookEndpoint) -> None:
    """
    Raises:
        RequestError: `endpoint_disabled`.
    """
    if row.status != "enabled":
        raise RequestError("endpoint_disabled", f"the webhook endpoint is disabled ({row.disabled_reason}); enable it first")


def give_up(session: Session, row: WebhookEndpoint, reason: DisabledReason) -> None:
    """Disable an endpoint that this transaction has locked, and tell the tenant's other endpoints."""
    _disable(session, row, reason)
    session.flush()
    _count(session, row.tenant_id)
    record_event(session, row.tenant_id, "endpoint.disabled", endpoint_document(row))


def endpoint_document(row: WebhookEndpoint) -> dict[str, Any]:
    """An endpoint as its owner sees it: as OpenAI's clients know it, so times are seconds since 1970, and with how it is doing."""
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "name": row.name,
        "description": row.description,
        "url": row.url,
        "event_types": row.events,
        "thin": row.is_thin,
        "metadata": row.request_metadata,
        "status": row.status,
        "disabled_reason": row.disabled_reason,
        "disabled_at": _seconds(row.disabled_at),
        "consecutive_failures": row.consecutive_failures,
        "failing_since": _seconds(row.failing_since),
        "breaker_until": _seconds(row.breaker_until),
        "signing_secret_hint": row.secret_hint,
        "previous_secret_until": _seconds(row.previous_secret_until),
        "created_at": _seconds(row.created_at),
        "updated_at": _seconds(row.updated_at),
    }


def health_of(row: WebhookEndpoint) -> Health:
    """How it has been answering."""
    return Health(row.consecutive_failures, row.failing_since, row.breaker_openings, row.breaker_until)


def lock_endpoints(session: Session, ids: Sequence[str]) -> list[WebhookEndpoint]:
    """Enabled endpoints, locked in order of id; not so hard that an event could not name them meanwhile."""
    chosen = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(ids), WebhookEndpoint.status == "enabled").order_by(WebhookEndpoint.id)
    return list(session.scalars(chosen.with_for_update(key_share=True).execution_options(populate_existing=True)))


def set_health(row: WebhookEndpoint, health: Health) -> None:
    """Write down how it has been answering."""
    row.consecutive_failures, row.failing_since = health.failures, health.failing_since
    row.breaker_openings, row.breaker_until = health.openings, health.breaker_until


def change_row(db: Database, tenant_id: str, endpoint_id: str, change: Callable[[Session, WebhookEndpoint], None]) -> dict[str, Any] | None:
    """Change the locked row of an endpoint; its document, or None if this tenant has no such endpoint."""

    def work(session: Session) -> dict[str, Any] | None:
        row = session.scalars(_of_tenant(tenant_id, endpoint_id).with_for_update(key_share=True)).one_or_none()
        if row is None:
            return None
        status = row.status
        change(session, row)
        session.flush()
        if row.status != status:
            _count(session, tenant_id)
        return endpoint_document(row)

    return db.run(work)


def _disable(session: Session, row: WebhookEndpoint, reason: DisabledReason) -> None:
    row.status, row.disabled_reason, row.disabled_at = "disabled", reason, database_now(session)


def _count(session: Session, tenant_id: str) -> None:
    """Count the tenant's enabled endpoints anew. Its row is locked first, so that no other count can be under way."""
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))
    enabled = select(func.count()).where(WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.status == "enabled")
    session.execute(update(Tenant).where(Tenant.id == tenant_id).values(num_endpoints=enabled.scalar_subquery()))


def _of_tenant(tenant_id: str, endpoint_id: str) -> Select[WebhookEndpoint]:
    return select(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id, WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.status != "deleted"
    )


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
