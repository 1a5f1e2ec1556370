"""Beside the stack that others use too (`tests/conftest.py`), one with the trained miniature, where words count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.checkpoint import TRAINED_MINIATURE
from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from tests.nursery import Nursery
from tests.stack import Stack, running_stack


@pytest.fixture(scope="module")
def trained_stack(
    nursery: Nursery, postgres_server: PostgresServer, redis_url: str, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Every role running, with the checkpoint that `glmq` runs unless another is named."""
    with running_stack(nursery, postgres_server, redis_url, s3, TRAINED_MINIATURE, tmp_path_factory.mktemp("trained")) as running:
        yield running
