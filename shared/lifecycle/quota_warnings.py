"""A tenant has used most of what it may use: an event, at most once a day for each limit."""

from __future__ import annotations

from datetime import date

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.ids import named_id
from shared.lifecycle.events import QUOTA_WARNING, record_event
from shared.tables import Event, Tenant

WARN_AT = 0.8
"""Share of a limit from which on its tenant is warned."""


def warn(db: Database, tenant_id: str, limit: str, used: float, most: float, day: date) -> bool:
    """
    Record the warning of this day, unless it is there.

    Args:
        limit: as `Limits` names it.
    """
    # By its name, so that nobody has to look through a day's events for it.
    event_id = named_id("evt", f"{QUOTA_WARNING} {tenant_id} {limit} {day}")

    def work(session: Session) -> bool:
        # The row that every event takes its number from: of many who notice at once, one tells.
        session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))
        if session.get(Event, event_id) is not None:
            return False
        data = {"id": tenant_id, "object": "quota", "limit": limit, "used": round(used, 3), "most": most}
        record_event(session, tenant_id, QUOTA_WARNING, data, event_id)
        return True

    return db.run(work)
