"""
Files that customers upload as they are, and those that batches make. Reference images of jobs are not among them.

The object comes before the row, and the row goes before the object: a row that is not deleted always has its object.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.paging import Page, read_page
from shared.tables import DoomedObject, File

_now = func.clock_timestamp


@dataclass(frozen=True)
class PlainFile:
    """A file of a tenant."""

    id: str
    purpose: str
    filename: str
    storage_key: str
    size_bytes: int
    content_type: str
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True)
class NewFile:
    """A file whose object is stored already."""

    id: str
    tenant_id: str
    purpose: str
    filename: str
    storage_key: str
    sha256: str
    size_bytes: int
    content_type: str
    expires_s: int | None = None


def add_file(db: Database, new: NewFile) -> PlainFile:
    """Record a file."""
    return db.run(lambda session: _plain(add_file_in(session, new)))


def add_file_in(session: Session, new: NewFile) -> File:
    """`add_file` within a transaction of the caller's."""
    now = session.scalar(select(_now()))
    row = File(
        id=new.id,
        tenant_id=new.tenant_id,
        purpose=new.purpose,
        filename=new.filename,
        storage_key=new.storage_key,
        sha256=new.sha256,
        size_bytes=new.size_bytes,
        content_type=new.content_type,
        created_at=now,
        expires_at=None if new.expires_s is None or now is None else now + timedelta(seconds=new.expires_s),
    )
    session.add(row)
    session.flush()
    return row


def get_file(db: Database, tenant_id: str, file_id: str) -> PlainFile | None:
    """A file of this tenant, or None."""

    def work(session: Session) -> PlainFile | None:
        row = session.scalars(select(File).where(*_is_there(tenant_id), File.id == file_id)).one_or_none()
        return None if row is None else _plain(row)

    return db.run(work)


def known_pictures(db: Database, tenant_id: str, file_ids: Collection[str]) -> set[str]:
    """Those of these ids that name a picture of the tenant's: one that a job brought, or that was uploaded as a file of its own."""
    if not file_ids:
        return set()
    is_upload = and_(*_is_there(tenant_id), File.purpose.not_in(("batch", "batch_output")))
    known = select(File.id).where(File.tenant_id == tenant_id, File.id.in_(file_ids), or_(File.purpose == "source", is_upload))
    return db.run(lambda session: set(session.scalars(known)))


def list_files(db: Database, tenant_id: str, purpose: str | None, page: Page) -> tuple[list[PlainFile], bool]:
    """
    One page of files by time of creation, and whether more follow.

    Raises:
        RequestError: as `read_page`.
    """

    def work(session: Session) -> tuple[list[PlainFile], bool]:
        query = select(File).where(*_is_there(tenant_id))
        if purpose is not None:
            query = query.where(File.purpose == purpose)
        rows, has_more = read_page(session, query, File, page, "file of yours", File.tenant_id == tenant_id)
        return [_plain(row) for (row,) in rows], has_more

    return db.run(work)


def delete_file(db: Database, tenant_id: str, file_id: str) -> bool:
    """Take a file away; its object is doomed with it. False: there is no such file."""
    return db.run(lambda session: _delete(session, *_is_there(tenant_id), File.id == file_id)) > 0


def delete_expired_files(db: Database, limit: int) -> int:
    """Take away files whose time is up; how many there were."""

    def work(session: Session) -> int:
        late = select(File.id).where(File.expires_at < _now(), File.deleted_at.is_(None)).limit(limit).with_for_update(skip_locked=True)
        return _delete(session, File.id.in_(late))

    return db.run(work)


def _delete(session: Session, *which: ColumnElement[bool]) -> int:
    keys = session.scalars(update(File).where(*which).values(deleted_at=_now()).returning(File.storage_key)).all()
    session.add_all(DoomedObject(prefix=key) for key in keys)
    return len(keys)


def _is_there(tenant_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        File.tenant_id == tenant_id,
        File.purpose != "source",
        File.deleted_at.is_(None),
        or_(File.expires_at.is_(None), File.expires_at > _now()),
    )


def _plain(row: File) -> PlainFile:
    return PlainFile(
        row.id, row.purpose, row.filename or row.id, row.storage_key, row.size_bytes, row.content_type, row.created_at, row.expires_at
    )
