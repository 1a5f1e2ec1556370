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

    needs: tuple[str, ...] = ()
    """Counts in that answer's `checks` that must be above zero."""

    @property
    def origin(self) -> str:
        """What it runs, in words for a person."""
        return self.command[-1]


def stack_roles(api_port: int, ar_workers: int = 1, decoder_workers: int = 1) -> tuple[Role, ...]:
    """The roles of a stack whose API listens on `api_port`: one process each, and as many workers as are asked for."""
    # The API by itself is ready without workers, since jobs wait well; a whole stack is not.
    needs = ("ar_workers", "decoder_workers")
    more_workers = (
        Role(f"{name}_{number}", _module(name))
        for name, count in (("ar_worker", ar_workers), ("decoder_worker", decoder_workers))
        for number in range(2, count + 1)
    )
    return (
        Role("api", _module("api"), api_port, ready_url=f"http://127.0.0.1:{api_port}/readyz", needs=needs),
        *(Role(name, _module(name)) for name in ("dispatcher", "ar_worker", "decoder_worker", "webhook_sender")),
        Role("batch_clerk", _module("api.batch_clerk")),
        *more_workers,
    )


def _module(name: str) -> tuple[str, ...]:
    return sys.executable, "-m", f"services.{name}"
