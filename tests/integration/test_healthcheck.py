"""The health check of the containers, against a real Postgres."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "docker" / "healthcheck.py"


@pytest.fixture(scope="module")
def healthcheck() -> ModuleType:
    """The script as a module: it stands alone in its image, so it is in no package."""
    spec = spec_from_file_location("healthcheck", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(database_url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env={**os.environ, "GLMQ_DATABASE_URL": database_url}, capture_output=True, text=True, check=False
    )


def test_nobody_beside_the_check_is_unhealthy(database_url: str) -> None:
    """Without another connection the check fails with its reason: its own does not count."""
    ended = run(database_url)

    assert ended.returncode == 1
    assert ended.stderr == "no word with the database for 30 s\n"


def test_a_process_that_speaks_is_healthy(database_url: str) -> None:
    """A connection that was used just now makes the check succeed, though it is idle at this moment."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT 1")

        assert run(database_url).returncode == 0


def test_a_process_that_fell_silent_is_unhealthy(database_url: str, healthcheck: ModuleType) -> None:
    """A connection that stays open without being used does not count for long."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT 1")
        with psycopg.connect(database_url) as clock:
            clock.execute("SELECT pg_sleep(0.3)")

        assert healthcheck.has_spoken(database_url, within_s=30)
        assert not healthcheck.has_spoken(database_url, within_s=0.2)


def test_a_dead_database_is_unhealthy_and_its_password_stays_secret() -> None:
    """Without a database the check fails, and does not print the URL."""
    ended = run("postgresql://glmq:hush@127.0.0.1:1/glmq")

    assert ended.returncode == 1
    assert ended.stderr == "database: OperationalError\n"
