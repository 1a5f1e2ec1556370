"""One running stack for the stories of a test run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from tests.stack import Stack, stack_environment


@pytest.fixture(scope="session")
def stack(
    postgres_server: PostgresServer, redis_url: str, s3: S3Server, miniature: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Every role running."""
    environment = stack_environment(postgres_server, redis_url, s3, miniature, f"e2e_{uuid.uuid4().hex}")
    running = Stack(tmp_path_factory.mktemp("stack"), environment)
    try:
        running.start_all()
        yield running
    finally:
        running.stop()
