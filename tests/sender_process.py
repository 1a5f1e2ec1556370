"""Sender processes for tests, beside a real ledger; those still there at the end are killed."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.nursery import Child, Nursery

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"""What senders of tests unseal secrets with."""


class SenderProcesses:
    """Starts `python -m services.webhook_sender`, each with a log of its own; a context manager."""

    def __init__(self, nursery: Nursery, database_url: str, folder: Path) -> None:
        self._nursery = nursery
        self._database_url = database_url
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def start(self, **changes: str) -> tuple[Child, Path]:
        """A sender, and its log. Redis and S3 are away, so that nothing but its own polls wakes it."""
        settings = {
            "GLMQ_DATABASE_URL": self._database_url,
            "GLMQ_REDIS_URL": "redis://127.0.0.1:1/0",
            "GLMQ_S3_ENDPOINT": "http://127.0.0.1:1",
            "GLMQ_S3_ACCESS_KEY": "key",
            "GLMQ_S3_SECRET_KEY": "secret",
            "GLMQ_SECRET_KEY": KEY,
            "GLMQ_EGRESS_ALLOW": "127.0.0.1",
            **changes,
        }
        path = self._folder / f"{uuid.uuid4().hex}.log"
        process = self._nursery.start("services.webhook_sender", {**os.environ, **settings}, path)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process, path
