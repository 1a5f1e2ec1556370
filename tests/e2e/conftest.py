"""Running stacks for the stories of a test run: one with random weights for all, and one with the trained miniature where words count."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from cli.checkpoint import TRAINED_MINIATURE
from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from tests.adapter_files import write_adapter
from tests.stack import Stack, stack_environment


@pytest.fixture(scope="session")
def stack(
    postgres_server: PostgresServer, redis_url: str, s3: S3Server, miniature: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Every role running, with random weights. The workers know the adapter `ink`, for both halves, and `torn`, which is broken."""
    adapters = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    write_adapter(miniature, "ar", adapters / "ink", LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    write_adapter(miniature, "decoder", adapters / "ink", LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_v"]))
    (adapters / "torn" / "ar").mkdir(parents=True)
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(postgres_server, redis_url, s3, miniature, folder, GLMQ_LORA_DIR=str(adapters)) as running:
        yield running


@pytest.fixture(scope="module")
def trained_stack(
    postgres_server: PostgresServer, redis_url: str, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Every role running, with the checkpoint that `glmq` runs unless another is named."""
    with running_stack(postgres_server, redis_url, s3, TRAINED_MINIATURE, tmp_path_factory.mktemp("trained")) as running:
        yield running


@contextmanager
def running_stack(
    postgres_server: PostgresServer, redis_url: str, s3: S3Server, checkpoint: Path, folder: Path, **environment: str
) -> Iterator[Stack]:
    """Every role running with this checkpoint, logs in `folder`."""
    running = Stack(folder, stack_environment(postgres_server, redis_url, s3, checkpoint, f"e2e_{uuid.uuid4().hex}") | environment)
    try:
        running.start_all()
        yield running
    finally:
        running.stop()
