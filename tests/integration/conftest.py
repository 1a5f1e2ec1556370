"""
Fixtures of the tests against real servers: a ledger that is empty when a test begins, a tenant, and a way to submit.

All tests of an xdist worker have the same database and the same pool: a new engine compiles every statement anew, and a new database
takes Postgres longer than most tests.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from infra.migrate import migrate_database
from shared.db import Database
from shared.grid import TokenGrid
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.tenants import ensure_tenant
from shared.storage import Storage
from shared.tables import Base
from tests.stored import make_storage


@dataclass(frozen=True)
class Ledger:
    """A database with all tables, and a pool on it."""

    url: str
    db: Database

    def clear(self) -> None:
        """Delete all rows but those that the migrations wrote. Faster than TRUNCATE, which makes a new file for every index."""
        deletes = "".join(f"DELETE FROM {name};" for name in Base.metadata.tables)
        # Without triggers, of which one keeps events for their time, and with patience for what an earlier test left running.
        settings = {"session_replication_role": "replica", "lock_timeout": "60s", "statement_timeout": "60s"}
        given = text("SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items()))

        def work(session: Session) -> None:
            session.execute(given)
            session.execute(text(f"DO $$ BEGIN {deletes} END $$"))

        self.db.run(work)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """Name of a migrated, empty database; a copy of it costs a tenth of a migration."""
    name = f"template_{uuid.uuid4().hex}"
    migrate_database(postgres_server.create_database(name))
    return name


@pytest.fixture(scope="session")
def ledger(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Ledger]:
    """The database that all tests share; most want `db`."""
    url = postgres_server.create_database(f"ledger_{uuid.uuid4().hex}", template=migrated_template)
    database = Database(url)
    yield Ledger(url, database)
    database.close()


@pytest.fixture
def ledger_url(ledger: Ledger) -> str:
    """URL of the ledger, which is empty."""
    ledger.clear()
    return ledger.url


@pytest.fixture
def db(ledger: Ledger, ledger_url: str) -> Database:
    """A pool on the ledger, which is empty."""
    return ledger.db


@pytest.fixture
def tenant_id(db: Database) -> str:
    """A tenant."""
    return ensure_tenant(db, "acme", b"sealed")


@pytest.fixture
def storage(s3: S3Server) -> Iterator[Storage]:
    """A bucket, empty at the end."""
    storage = make_storage(s3, s3.endpoint)
    storage.ensure_bucket()
    yield storage
    storage.delete_all("t/")


@pytest.fixture
def new_job(tenant_id: str) -> NewJob:
    """A request for one small picture."""
    return plain_job(tenant_id)


def plain_job(tenant_id: str) -> NewJob:
    """A request for one small picture, by any tenant."""
    return NewJob(
        tenant_id=tenant_id,
        input={"prompt": "A cat"},
        prompt="A cat",
        height_px=64,
        width_px=96,
        grid=TokenGrid(2, 3),
        num_images=1,
        seed=1,
        layout_seed=1,
        same_layout=False,
        steps=4,
        guidance_scale=1.5,
        temperature=0.9,
        top_p=0.75,
        format="png",
        quality=None,
        sources=(),
        model_name="m",
        model_revision="r1",
        webhook={"url": "https://example.com/hook", "events": ["job.succeeded", "job.failed", "job.canceled"]},
    )
