"""Tenants, their API keys, and the files they own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.api_keys import ApiKeyText
from shared.db import Database
from shared.ids import new_id
from shared.tables import ApiKey, File, Tenant

_now = func.clock_timestamp


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class StoredFile:
    """A file of a tenant."""

    id: str
    storage_key: str
    sha256: str
    height_px: int
    width_px: int


def ensure_tenant(db: Database, name: str, sealed_webhook_secret: bytes) -> str:
    """The id of the tenant with this name, made if there is none; an existing tenant keeps its secret."""

    def work(session: Session) -> str:
        row = insert(Tenant).values(id=new_id("ten"), name=name, webhook_secret=sealed_webhook_secret)
        session.execute(row.on_conflict_do_nothing(index_elements=[Tenant.name]))
        return session.execute(select(Tenant.id).where(Tenant.name == name)).scalar_one()

    return db.run(work)


def ensure_api_key(db: Database, tenant_id: str, name: str, key: ApiKeyText, scopes: list[str]) -> None:
    """Store a key's hash; a key that is there is left as it is."""
    row = insert(ApiKey).values(id=key.id, tenant_id=tenant_id, name=name, secret_sha256=key.secret_sha256, scopes=scopes)
    db.run(lambda session: session.execute(row.on_conflict_do_nothing()))


def find_caller(db: Database, key: ApiKeyText) -> Caller | None:
    """Who holds this key; None if it is unknown, wrong or revoked."""

    def work(session: Session) -> Caller | None:
        row = session.get(ApiKey, key.id)
        if row is None or row.revoked_at is not None or not key.matches(row.secret_sha256):
            return None
        # Once a minute is enough to know whether a key is in use, and spares a write per request.
        stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < _now() - timedelta(minutes=1))
        session.execute(update(ApiKey).where(ApiKey.id == key.id, stale).values(last_used_at=_now()))
        return Caller(row.tenant_id, row.id, frozenset(row.scopes))

    return db.run(work)


def get_webhook_secret(db: Database, tenant_id: str) -> bytes:
    """The sealed secret that signs this tenant's per-job webhooks."""
    return db.run(lambda session: session.get_one(Tenant, tenant_id).webhook_secret)


def add_source(db: Database, tenant_id: str, storage_key: str, sha256: str, size_bytes: int, height_px: int, width_px: int) -> StoredFile:
    """Record a stored source image; the same picture keeps the id it had."""

    def work(session: Session) -> StoredFile:
        row = insert(File).values(
            id=new_id("file"),
            tenant_id=tenant_id,
            purpose="source",
            storage_key=storage_key,
            sha256=sha256,
            size_bytes=size_bytes,
            content_type="image/png",
            height_px=height_px,
            width_px=width_px,
        )
        session.execute(row.on_conflict_do_nothing())
        found = select(File).where(File.tenant_id == tenant_id, File.sha256 == sha256, File.purpose == "source")
        return _stored(session.scalars(found).one())

    return db.run(work)


def get_source(db: Database, tenant_id: str, file_id: str) -> StoredFile | None:
    """A source image of this tenant, or None."""
    query = select(File).where(File.id == file_id, File.tenant_id == tenant_id, File.purpose == "source")

    def work(session: Session) -> StoredFile | None:
        row = session.scalars(query).one_or_none()
        return None if row is None else _stored(row)

    return db.run(work)


def _stored(row: File) -> StoredFile:
    # A check of the table says that sources have a size.
    return StoredFile(row.id, row.storage_key, row.sha256, row.height_px or 0, row.width_px or 0)
