"""The processes of glmq itself, in the order in which they are started: the table that docker-compose.yml repeats."""

from __future__ import annotations

import sys
from dataclasses import dataclass

MIGRATE = (sys.executable, "-m", "infra.migrate")
"""Runs once, before the roles: tables, bucket, the first API key."""


@dataclass(frozen=True)
class Role:
    """A process that runs as long as the stack does."""

    name: str
    command: tuple[str, ...]
    port: int | None = None
    ready_url: str | None = None
    """Answers 200 once the role can be used; without one, running is all that is asked."""


def stack_roles(api_port: int) -> tuple[Role, ...]:
    """The five roles of a stack whose API listens on `api_port`."""
    return (
        _module("api", port=api_port, ready_url=f"http://127.0.0.1:{api_port}/readyz"),
        _module("dispatcher"),
        _module("ar_worker"),
        _module("decoder_worker"),
        _module("webhook_sender"),
    )


def _module(name: str, port: int | None = None, ready_url: str | None = None) -> Role:
    return Role(name, (sys.executable, "-m", f"services.{name}"), port, ready_url)
