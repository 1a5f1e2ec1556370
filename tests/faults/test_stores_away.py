"""A store is away: what was accepted waits or goes on, nothing new is believed without the ledger."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.embedded.ports import free_port
from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from tests.faults.conftest import SHORT
from tests.nursery import Nursery
from tests.stack import Stack, running_stack, wait_until


@pytest.fixture(scope="module")
def stack(
    nursery: Nursery, postgres_server: PostgresServer, s3: S3Server, miniature: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Every role running, and nobody at the address of Redis."""
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    with running_stack(nursery, postgres_server, nobody, s3, miniature, tmp_path_factory.mktemp("stack"), **SHORT) as running:
        yield running


def test_without_redis_everything_finishes(stack: Stack) -> None:
    """With Redis off for the whole run, jobs are accepted, done, and canceled within a heartbeat."""
    jobs = [stack.submit(prompt=f"job {number}", size="64x64", steps=2) for number in range(4)]
    assert [stack.wait(job)["status"] for job in jobs] == ["succeeded"] * 4
    slow = stack.submit(prompt="slow", size="512x512", steps=200)
    wait_until(lambda: stack.job(slow["id"])["stage"] == "decoder" and stack.job(slow["id"])["outputs"][0]["status"] == "running")
    stack.client.post(f"/v1/jobs/{slow['id']}/cancel").raise_for_status()
    started = time.monotonic()
    assert stack.wait(stack.submit(prompt="next", size="64x64", steps=1))["status"] == "succeeded"
    assert time.monotonic() - started < 30


def test_postgres_goes_and_comes_back(stack: Stack, postgres_server: PostgresServer) -> None:
    """Without Postgres nothing is accepted, and soon said so; a job that ran through the outage finishes once."""
    job = stack.submit(prompt="through the outage", size="512x512", steps=30)
    wait_until(lambda: stack.job(job["id"])["status"] == "running")
    postgres_server.stop()
    try:
        started = time.monotonic()
        answer = stack.client.post("/v1/jobs", json={"prompt": "now"})
        assert answer.status_code == 503
        assert answer.json()["retryable"] is True
        assert int(answer.headers["Retry-After"]) > 0
        assert time.monotonic() - started < 15
        assert stack.client.get("/readyz").status_code == 503
        assert stack.client.get("/healthz").status_code == 200
    finally:
        postgres_server.start()
    done = stack.wait(job, 90)
    assert done["status"] == "succeeded", done["error"]


@pytest.mark.parametrize("role", ["ar_worker", "decoder_worker", "dispatcher", "webhook_sender", "api"])
def test_every_role_ends_in_time_without_redis(stack: Stack, role: str) -> None:
    """SIGTERM ends a process within 10 s even while it looks for its broker in vain."""
    assert stack.kill(role, signal.SIGTERM) < 10
    stack.start(role)
    stack.wait_ready()
