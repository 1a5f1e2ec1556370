"""`glmq keys` and `glmq tenants` against a running API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from services.api.settings import ApiSettings
from shared.checkpoint import ModelInfo
from tests.integration.api.conftest import Account
from tests.integration.api.test_server import Server
from tests.nursery import Nursery


@pytest.fixture
def server(nursery: Nursery, settings: ApiSettings, account: Account, model: ModelInfo, tmp_path: Path) -> Iterator[Server]:
    running = Server(nursery, settings, tmp_path / "log")
    yield running
    running.stop()


def glmq(server: Server, key: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"GLMQ_URL": server.url, "GLMQ_API_KEY": key, "COLUMNS": "200"})


def status_with(server: Server, key: str) -> int:
    return httpx.get(f"{server.url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code


def test_keys_from_the_command_line(server: Server, account: Account) -> None:
    """A key is made, printed alone on stdout, listed without its secret, revoked; an operator does the same for a new tenant."""
    # Given an admin's key, make one
    admin = account.keys["admin"]
    made = glmq(server, admin, "keys", "create", "--scope", "read", "--name", "web shop")
    key = made.stdout.strip()
    assert made.exit_code == 0
    assert status_with(server, key) == 200
    # Then it is listed, without its secret
    listed = glmq(server, admin, "keys", "list").stdout
    assert "web shop" in listed
    assert key.rpartition("_")[0] in listed
    assert key.rpartition("_")[2] not in listed
    # When it is revoked, named by itself, it opens nothing
    assert glmq(server, admin, "keys", "revoke", key).exit_code == 0
    assert status_with(server, key) == 401
    assert "revoked" in glmq(server, admin, "keys", "list").stdout
    # Given an operator's key, make a tenant, its limits and its first key
    operator = account.keys["operator"]
    assert glmq(server, operator, "tenants", "create", "globex").exit_code == 0
    limited = glmq(server, operator, "tenants", "limit", "globex", "--max-queued", "5", "--gpu-seconds-per-day", "1.5").stdout
    assert "globex" in limited
    assert " 5 " in limited
    assert "default" in limited
    first = glmq(server, operator, "keys", "create", "--scope", "admin", "--tenant", "globex").stdout.strip()
    assert status_with(server, first) == 200
    assert "acme" in glmq(server, operator, "tenants", "list").stdout
    # What is refused is a sentence and an exit code
    for key, arguments, sentence in (
        (admin, ["tenants", "list"], "lacks the scope operator"),
        (admin, ["keys", "create", "--scope", "god"], "scope"),
        (operator, ["tenants", "limit", "nobody", "--max-queued", "5"], "there is no tenant nobody"),
        (operator, ["tenants", "limit", "globex", "--max-queued", "many"], "should be a number"),
        (operator, ["keys", "revoke", "key_000000000000"], "there is no such key"),
    ):
        refused = glmq(server, key, *arguments)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert sentence in refused.stderr
