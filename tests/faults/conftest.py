"""A stack with short leases, so that a death is noticed within seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from tests.nursery import Nursery
from tests.stack import Stack, running_stack, shared_stacks

SHORT = {"GLMQ_LEASE_S": "3", "GLMQ_HEARTBEAT_S": "0.5", "GLMQ_POLL_S": "0.5", "GLMQ_RESCUE_S": "0.5"}


@pytest.fixture(scope="session")
def stack(
    nursery: Nursery,
    postgres_server: PostgresServer,
    redis_url: str,
    s3: S3Server,
    miniature: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """Every role running, to be broken; each test leaves it whole."""
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(nursery, postgres_server, redis_url, s3, miniature, folder, redis_number=2, **SHORT) as running:
        shared_stacks["faults"] = running
        yield running
