"""Tenants: made, found, limited, and the files they own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.api_keys import ApiKeyText
from shared.db import Database
from shared.ids import new_id
from shared.lifecycle.paging import Page, read_page
from shared.lifecycle.quotas import OwnLimits, own_limits
from shared.states import Priority
from shared.tables import ApiKey, File, Tenant


@dataclass(frozen=True)
class Caller:
    """
    Who sent a request.

    Attributes:
        max_priority: the most urgent lane that the key's jobs may take.
        own_limits: of the tenant.
        num_queued: jobs of the tenant that were queued when the request came.
        stamp: changes with everything that the ledger says of the key and its tenant's limits.
        is_recalled: all this is as it was a moment ago; whoever writes anything for the caller has to check the stamp.
    """

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    max_priority: Priority = Priority.INTERACTIVE
    own_limits: OwnLimits = field(default_factory=OwnLimits)
    num_queued: int = 0
    stamp: str = ""
    is_recalled: bool = False


@dataclass(frozen=True)
class StoredFile:
    """A file of a tenant."""

    id: str
    storage_key: str
    sha256: str
    height_px: int
    width_px: int


@dataclass(frozen=True)
class TenantRecord:
    """A tenant as operators see it."""

    id: str
    name: str
    own_limits: OwnLimits
    created_at: datetime


def ensure_tenant(db: Database, name: str, sealed_webhook_secret: bytes) -> str:
    """The id of the tenant with this name, made if there is none; an existing tenant keeps its secret."""

    def work(session: Session) -> str:
        row = insert(Tenant).values(id=new_id("ten"), name=name, webhook_secret=sealed_webhook_secret)
        session.execute(row.on_conflict_do_nothing(index_elements=[Tenant.name]))
        return session.execute(select(Tenant.id).where(Tenant.name == name)).scalar_one()

    return db.run(work)


def create_tenant(db: Database, name: str, sealed_webhook_secret: bytes, limits: OwnLimits) -> TenantRecord | None:
    """A new tenant; None if there is one of that name."""

    def work(session: Session) -> TenantRecord | None:
        values = {"id": new_id("ten"), "name": name, "webhook_secret": sealed_webhook_secret, **asdict(limits)}
        added = insert(Tenant).values(values).on_conflict_do_nothing(index_elements=[Tenant.name]).returning(Tenant)
        row = session.scalars(added).one_or_none()
        return None if row is None else _record(row)

    return db.run(work)


def find_tenant(db: Database, id_or_name: str) -> TenantRecord | None:
    """The tenant with this id or name; an id goes before a name that looks like it."""

    def work(session: Session) -> TenantRecord | None:
        is_meant = or_(Tenant.id == id_or_name, Tenant.name == id_or_name)
        row = session.scalars(select(Tenant).where(is_meant).order_by((Tenant.id == id_or_name).desc()).limit(1)).one_or_none()
        return None if row is None else _record(row)

    return db.run(work)


def list_tenants(db: Database, page: Page) -> tuple[list[TenantRecord], bool]:
    """
    One page of tenants by time of creation, and whether more follow.

    Raises:
        RequestError: as `read_page`.
    """

    def work(session: Session) -> tuple[list[TenantRecord], bool]:
        query = select(Tenant)
        rows, has_more = read_page(session, query, Tenant, page, "tenant")
        return [_record(row) for (row,) in rows], has_more

    return db.run(work)


def limit_tenant(db: Database, tenant_id: str, changed: dict[str, int | float | None]) -> TenantRecord | None:
    """
    Change some of a tenant's limits. None if there is no such tenant.

    Args:
        changed: by the name of the field of `OwnLimits`.
    """

    def work(session: Session) -> TenantRecord | None:
        row = session.get(Tenant, tenant_id, with_for_update=True)
        if row is None:
            return None
        for name, value in changed.items():
            setattr(row, name, value)
        return _record(row)

    return db.run(work)


def ensure_api_key(db: Database, tenant_id: str, name: str, key: ApiKeyText, scopes: list[str]) -> None:
    """Store a key's hash; the same key, if it is there, gets these scopes, and one that was revoked stays revoked."""
    row = insert(ApiKey).values(id=key.id, tenant_id=tenant_id, name=name, secret_sha256=key.secret_sha256, scopes=scopes)
    is_same = (ApiKey.tenant_id == tenant_id) & (ApiKey.secret_sha256 == key.secret_sha256)
    db.run(lambda session: session.execute(row.on_conflict_do_update(index_elements=[ApiKey.id], set_={"scopes": scopes}, where=is_same)))


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


def _record(row: Tenant) -> TenantRecord:
    return TenantRecord(row.id, row.name, own_limits(row), row.created_at)
