"""Fixtures of the tests against real servers: a migrated database per test, its tenant, and a way to submit."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from infra.migrate import migrate_database
from shared.db import Database
from shared.grid import TokenGrid
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.tenants import ensure_tenant
from shared.storage import Storage
from tests.stored import make_storage


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """Name of a migrated, empty database; a copy of it costs a tenth of a migration."""
    name = f"template_{uuid.uuid4().hex}"
    migrate_database(postgres_server.create_database(name))
    return name


@pytest.fixture
def ledger_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """URL of a fresh database with all tables."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name, template=migrated_template)
    postgres_server.drop_database(name)


@pytest.fixture
def db(ledger_url: str) -> Iterator[Database]:
    """A pool on a fresh database with all tables."""
    database = Database(ledger_url)
    yield database
    database.close()


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
