"""
What has been kept for long enough is deleted: events, the log of deliveries, idempotency keys. In small steps, oldest first.

Results go with their job (`erasing.py`). A job's row stays, and so does what was used.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Select, delete, func, select, text, tuple_, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.tables import Batch, ClientTry, Event, IdempotencyKey, StoredAnswer, Tenant, WebhookAttempt, WebhookDelivery

_TENANTS = 20
"""In one step. Each of them costs an index look-up or two."""

_now = func.clock_timestamp


def prune_events(db: Database, kept_s: float, limit: int) -> int:
    """
    Delete events that are older than this, with what is left of their deliveries; how many.

    The oldest of a tenant first, by number: what is left has no gap. A delivery that is replayed so late and fails goes with its event.
    """
    oldest = select(Event.created_at).where(Event.tenant_id == Tenant.id).order_by(Event.seq).limit(1).scalar_subquery()

    def work(session: Session) -> int:
        before = _before(session, kept_s)
        ids: list[str] = []
        for tenant_id in session.scalars(select(Tenant.id).where(oldest < before).limit(_TENANTS)).all():
            # The first ones by number, then those of them that are old: a condition on the time alone would look at all there are.
            first = select(Event.id, Event.created_at).where(Event.tenant_id == tenant_id).order_by(Event.seq).limit(limit - len(ids))
            for event_id, created_at in session.execute(first):
                if created_at >= before:
                    break
                ids.append(event_id)
            if len(ids) >= limit:
                break
        if ids:
            _delete_deliveries(session, select(WebhookDelivery.id).where(WebhookDelivery.event_id.in_(ids)))
            # A trigger keeps events from being deleted by anybody else.
            session.execute(text("SET LOCAL glmq.prunes_events = 'yes'"))
            session.execute(delete(Event).where(Event.id.in_(ids)))
        return len(ids)

    return db.run(work)


def prune_deliveries(db: Database, kept_s: float, limit: int) -> int:
    """Delete deliveries that are over and older than this, with their attempts; how many."""
    of_tenant = (WebhookDelivery.tenant_id == Tenant.id, WebhookDelivery.state != "pending")
    oldest = select(WebhookDelivery.created_at).where(*of_tenant).order_by(WebhookDelivery.created_at).limit(1).scalar_subquery()

    def work(session: Session) -> int:
        before = _before(session, kept_s)
        late = select(Tenant.id).where(oldest < before).limit(_TENANTS)
        old = select(WebhookDelivery.id).where(
            WebhookDelivery.tenant_id.in_(session.scalars(late).all()),
            WebhookDelivery.created_at < before,
            WebhookDelivery.state != "pending",
        )
        return _delete_deliveries(session, old.limit(limit).with_for_update(skip_locked=True))

    return db.run(work)


def prune_keys(db: Database, kept_s: float, limit: int) -> int:
    """Forget the idempotency keys, the answers and the tries of requests that are older than this; how many."""

    def work(session: Session) -> int:
        before = _before(session, kept_s)
        num_gone = 0
        for row in (IdempotencyKey, StoredAnswer):
            key = (row.tenant_id, row.route, row.key)
            old = select(*key).where(row.created_at < before).order_by(row.created_at).limit(limit).with_for_update(skip_locked=True)
            found = [tuple(one) for one in session.execute(old)]
            num_gone += len(found)
            session.execute(delete(row).where(tuple_(*key).in_(found)))
        tries = select(ClientTry.job_id).where(ClientTry.created_at < before).order_by(ClientTry.created_at).limit(limit)
        job_ids = session.scalars(tries.with_for_update(skip_locked=True)).all()
        session.execute(delete(ClientTry).where(ClientTry.job_id.in_(job_ids)))
        keyed = (
            select(Batch.id).where(Batch.idempotency_key.is_not(None), Batch.created_at < before).order_by(Batch.created_at).limit(limit)
        )
        batch_ids = session.scalars(keyed.with_for_update(skip_locked=True)).all()
        session.execute(update(Batch).where(Batch.id.in_(batch_ids)).values(idempotency_key=None))
        return num_gone + len(job_ids) + len(batch_ids)

    return db.run(work)


def _before(session: Session, kept_s: float) -> Any:
    return session.execute(select(_now() - timedelta(seconds=kept_s))).scalar_one()


def _delete_deliveries(session: Session, which: Select[Any]) -> int:
    ids = session.scalars(which).all()
    session.execute(delete(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(ids)))
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(ids)))
    return len(ids)
