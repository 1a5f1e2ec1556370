"""
Which Postgres, Redis and S3 a stack uses: one named in the environment, else a program on PATH, else a wheel's. Starts none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from infra.embedded.find import postgres_programs, redis_program, weed_program
from infra.embedded.memory import Memory
from infra.embedded.postgres import PostgresServer
from infra.embedded.redis import RedisServer
from infra.embedded.s3 import S3Server
from infra.embedded.server import ExternalServer, Server, ServerError

_S3_SETTINGS = ("GLMQ_S3_ENDPOINT", "GLMQ_S3_ACCESS_KEY", "GLMQ_S3_SECRET_KEY")


def choose_servers(data: Path, logs: Path, memory: Memory, environ: Mapping[str, str] = os.environ) -> list[Server]:
    """
    The three servers, in the order in which to start them.

    Args:
        data: each embedded server gets a folder of its own in it.
        logs: each gets a file in it.
        environ: `GLMQ_DATABASE_URL`, `GLMQ_REDIS_URL`, `GLMQ_S3_…` and PATH decide.
    Raises:
        ServerError: one of them is nowhere to be found.
    """
    return [_postgres(data, logs, memory, environ), _redis(data, logs, memory, environ), _s3(data, logs, memory, environ)]


def _postgres(data: Path, logs: Path, memory: Memory, environ: Mapping[str, str]) -> Server:
    if url := environ.get("GLMQ_DATABASE_URL"):
        return ExternalServer("postgres", "GLMQ_DATABASE_URL", {"GLMQ_DATABASE_URL": url}, default_port=5432)
    return PostgresServer(data / "postgres", memory, logs / "postgres.log", postgres_programs(environ.get("PATH")))


def _redis(data: Path, logs: Path, memory: Memory, environ: Mapping[str, str]) -> Server:
    if url := environ.get("GLMQ_REDIS_URL"):
        return ExternalServer("redis", "GLMQ_REDIS_URL", {"GLMQ_REDIS_URL": url}, default_port=6379)
    return RedisServer(data / "redis", memory, logs / "redis.log", redis_program(environ.get("PATH")))


def _s3(data: Path, logs: Path, memory: Memory, environ: Mapping[str, str]) -> Server:
    if endpoint := environ.get("GLMQ_S3_ENDPOINT"):
        missing = [name for name in _S3_SETTINGS if not environ.get(name)]
        if missing:
            raise ServerError(f"GLMQ_S3_ENDPOINT is set, but {' and '.join(missing)} not: set them too, or unset GLMQ_S3_ENDPOINT")
        bucket = environ.get("GLMQ_S3_BUCKET", "glmq")
        settings = {name: environ[name] for name in _S3_SETTINGS} | {"GLMQ_S3_BUCKET": bucket}
        default_port = 443 if endpoint.startswith("https:") else 80
        return ExternalServer("s3", "GLMQ_S3_ENDPOINT", settings, default_port)
    return S3Server(data / "s3", memory, logs / "s3.log", weed_program(environ.get("PATH")))
