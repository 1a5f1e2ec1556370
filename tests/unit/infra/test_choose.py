"""Choosing servers; none is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.embedded.choose import choose_servers
from infra.embedded.memory import Memory
from infra.embedded.server import ExternalServer, Server, ServerError

S3 = {"GLMQ_S3_ENDPOINT": "http://127.0.0.1:9000", "GLMQ_S3_ACCESS_KEY": "key", "GLMQ_S3_SECRET_KEY": "secret"}


def choose(tmp_path: Path, environ: dict[str, str]) -> list[Server]:
    return choose_servers(tmp_path, tmp_path, Memory(tmp_path / "memory.json"), {"PATH": "/nonexistent", **environ})


def test_the_environment_comes_first(tmp_path: Path) -> None:
    """A server named in the environment is used as it is, and said to be."""
    settings = {"GLMQ_DATABASE_URL": "postgresql://u:p@db.example/glmq", "GLMQ_REDIS_URL": "redis://cache.example:7000/1", **S3}

    servers = choose(tmp_path, settings)

    assert all(isinstance(server, ExternalServer) for server in servers)
    assert [server.port for server in servers] == [5432, 7000, 9000]
    assert [server.origin for server in servers] == [
        f"{name} in the environment" for name in ("GLMQ_DATABASE_URL", "GLMQ_REDIS_URL", "GLMQ_S3_ENDPOINT")
    ]
    env = {name: value for server in servers for name, value in server.env().items()}
    assert env == {**settings, "GLMQ_S3_BUCKET": "glmq"}


def test_each_server_is_chosen_by_itself(tmp_path: Path) -> None:
    """Naming one server leaves the others embedded."""
    postgres, redis, s3 = choose(tmp_path, {"GLMQ_REDIS_URL": "redis://cache.example"})

    assert postgres.origin.startswith("wheel")
    assert redis.origin == "GLMQ_REDIS_URL in the environment"
    assert s3.origin.startswith("wheel")


@pytest.mark.parametrize("missing", ["GLMQ_S3_ACCESS_KEY", "GLMQ_S3_SECRET_KEY"])
def test_an_s3_without_credentials_is_refused(tmp_path: Path, missing: str) -> None:
    """An endpoint alone is a mistake, and is told before anything starts."""
    with pytest.raises(ServerError, match=missing):
        choose(tmp_path, {name: value for name, value in S3.items() if name != missing})


def test_an_absent_external_server_is_named(tmp_path: Path) -> None:
    """When nothing answers at a named address, the message names the address and the variable."""
    _, redis, _ = choose(tmp_path, {"GLMQ_REDIS_URL": "redis://127.0.0.1:1"})

    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1, which GLMQ_REDIS_URL names"):
        redis.start()
