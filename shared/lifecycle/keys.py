"""API keys: made, listed, revoked, and found by what a request carries. Of a key's secret only the hash is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Text, bindparam, func, literal_column, select, update
from sqlalchemy.orm import Session

from shared.api_keys import ApiKeyText, new_api_key
from shared.db import Database
from shared.lifecycle.paging import Page, read_page
from shared.lifecycle.quotas import LIMITS, own_limits
from shared.lifecycle.tenants import Caller
from shared.states import Priority
from shared.tables import ApiKey, Tenant

_now = func.clock_timestamp

_TOUCH_S = 60
"""Once a minute is enough to know whether a key is in use, and spares a write per request."""

STAMP = f"""md5(ROW(
    api_key.tenant_id, api_key.secret_sha256, api_key.scopes, api_key.max_priority, api_key.revoked_at,
    {", ".join(f"tenant.{name}" for name in LIMITS)}
)::text)"""
"""SQL over a key joined with its tenant: of all that `Caller` tells, but for how many jobs are queued."""

# Built once, and of columns: every request begins with it.
_FIND: Any = select(
    ApiKey.id,
    literal_column(STAMP).label("stamp"),
    ApiKey.tenant_id,
    ApiKey.secret_sha256,
    ApiKey.scopes,
    ApiKey.max_priority,
    func.coalesce(ApiKey.last_used_at < _now() - func.make_interval(0, 0, 0, 0, 0, 0, _TOUCH_S), True).label("is_untouched"),
    *(getattr(Tenant, name) for name in LIMITS),
    Tenant.num_queued,
).join(Tenant, Tenant.id == ApiKey.tenant_id)
_IS_ONE = ApiKey.id == func.any(bindparam("key_ids", type_=ARRAY(Text)))
_FIND_ALIVE = _FIND.where(_IS_ONE, ApiKey.revoked_at.is_(None))
_TOUCH = update(ApiKey).where(_IS_ONE).values(last_used_at=_now()).returning(ApiKey.id)


@dataclass(frozen=True)
class KeyRecord:
    """A key as its tenant may see it."""

    id: str
    name: str
    scope: str
    """The widest of its scopes; it implies the others."""
    max_priority: Priority
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


def create_key(db: Database, tenant_id: str, name: str, scope: str, max_priority: Priority) -> tuple[KeyRecord, str]:
    """A new key, and its text, which cannot be had again."""
    text = new_api_key()
    key = ApiKeyText.parse(text)
    if key is None:
        raise AssertionError("a new key has the form of a key")

    def work(session: Session) -> KeyRecord:
        row = ApiKey(id=key.id, tenant_id=tenant_id, name=name, secret_sha256=key.secret_sha256, scopes=[scope], max_priority=max_priority)
        session.add(row)
        session.flush()
        return _record(row)

    return db.run(work), text


def get_key(db: Database, tenant_id: str, key_id: str) -> KeyRecord | None:
    """A key of this tenant, or None."""

    def work(session: Session) -> KeyRecord | None:
        row = session.scalars(select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id)).one_or_none()
        return None if row is None else _record(row)

    return db.run(work)


def list_keys(db: Database, tenant_id: str, page: Page) -> tuple[list[KeyRecord], bool]:
    """
    One page of keys by time of creation, revoked ones too, and whether more follow.

    Raises:
        RequestError: as `read_page`.
    """

    def work(session: Session) -> tuple[list[KeyRecord], bool]:
        query = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
        rows, has_more = read_page(session, query, ApiKey, page, "key of yours", ApiKey.tenant_id == tenant_id)
        return [_record(row) for (row,) in rows], has_more

    return db.run(work)


def revoke_key(db: Database, tenant_id: str, key_id: str) -> KeyRecord | None:
    """From now on the key opens nothing. None if this tenant has no such key; a key that was revoked before stays so."""

    def work(session: Session) -> KeyRecord | None:
        row = session.scalars(select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id).with_for_update()).one_or_none()
        if row is None:
            return None
        if row.revoked_at is None:
            row.revoked_at = session.scalar(select(_now()))
        return _record(row)

    return db.run(work)


def find_callers(db: Database, keys: Sequence[ApiKeyText]) -> list[Caller | None]:
    """Who holds each of these keys; None for one that is unknown, wrong or revoked."""
    rows = {row.id: row for row in db.run_statement(_FIND_ALIVE, {"key_ids": sorted({key.id for key in keys})})}
    found = [row if (row := rows.get(key.id)) is not None and key.matches(row.secret_sha256) else None for key in keys]
    if untouched := {row.id for row in found if row is not None and row.is_untouched}:
        db.run_statement(_TOUCH, {"key_ids": sorted(untouched)})
    return [None if row is None else _caller(row) for row in found]


def _caller(row: Any) -> Caller:
    return Caller(
        tenant_id=row.tenant_id,
        key_id=row.id,
        scopes=frozenset(row.scopes),
        max_priority=Priority(row.max_priority),
        own_limits=own_limits(row),
        num_queued=row.num_queued,
        stamp=row.stamp,
    )


def _record(row: ApiKey) -> KeyRecord:
    scope = next(scope for scope in ("operator", "admin", "submit", "read") if scope in row.scopes)
    return KeyRecord(row.id, row.name, scope, Priority(row.max_priority), row.created_at, row.last_used_at, row.revoked_at)
