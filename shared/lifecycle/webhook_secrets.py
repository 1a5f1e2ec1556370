"""
The secrets that sign webhooks, rotated: an endpoint's own, and a tenant's default one for the URLs of its jobs. Sealed, as they are kept.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.ending import database_now
from shared.lifecycle.endpoints import change_row
from shared.tables import Tenant, WebhookEndpoint


def rotate_endpoint_secret(
    db: Database, tenant_id: str, endpoint_id: str, secret: bytes, secret_hint: str, overlap_s: float
) -> dict[str, Any] | None:
    """
    Give an endpoint another secret; the one it had signs beside it for `overlap_s` more seconds.

    Returns:
        The endpoint's document, or None if this tenant has no such endpoint.
    """

    def change(session: Session, row: WebhookEndpoint) -> None:
        now = database_now(session)
        row.previous_secret, row.previous_secret_until = _until(row.secret, now, overlap_s)
        row.secret, row.secret_hint, row.updated_at = secret, secret_hint, now

    return change_row(db, tenant_id, endpoint_id, change)


def rotate_default_secret(db: Database, tenant_id: str, secret: bytes, overlap_s: float) -> datetime | None:
    """
    Give a tenant another secret for the webhooks of its jobs; the one it had signs beside it for `overlap_s` more seconds.

    Returns:
        When the old one stops to sign, None if at once.
    """

    def work(session: Session) -> datetime | None:
        tenant = session.scalars(select(Tenant).where(Tenant.id == tenant_id).with_for_update(key_share=True)).one()
        previous, until = _until(tenant.webhook_secret, database_now(session), overlap_s)
        tenant.previous_webhook_secret, tenant.previous_webhook_secret_until = previous, until
        tenant.webhook_secret = secret
        return until

    return db.run(work)


def _until(secret: bytes, now: datetime, overlap_s: float) -> tuple[bytes | None, datetime | None]:
    return (secret, now + timedelta(seconds=overlap_s)) if overlap_s > 0 else (None, None)
