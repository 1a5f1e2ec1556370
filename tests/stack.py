"""The whole service for tests: every role a real process, on throw-away servers, with the miniature."""

from __future__ import annotations

import base64
import copy
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from infra.embedded.ports import free_port
from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from tests.nursery import Child, Nursery

ROLES = ("api", "dispatcher", "ar_worker", "decoder_worker", "webhook_sender")
"""What every story needs."""
BATCH_CLERK = "api.batch_clerk"
"""What those with batches need besides."""
API_KEY = "glmq_testtesttest_" + "t" * 43
_READY_S = 240
"""A worker imports and loads for 10 s on a quiet machine, and for minutes on one that is full."""
_STOP_S = 12


shared_stacks: dict[str, Stack] = {}
"""Those that the tests of several files share, by the name under which these run in one process (`tests/conftest.py`)."""


def wait_until(condition: Callable[[], Any], timeout_s: float = 60, pause_s: float = 0.05) -> Any:
    """The first true value of `condition`; fails after `timeout_s`."""
    give_up_at = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up_at, f"waited {timeout_s} s in vain"
        time.sleep(pause_s)
    return value


class Stack:
    """Processes of all roles with one environment; each can be killed and started again."""

    def __init__(self, nursery: Nursery, folder: Path, environment: Mapping[str, str]) -> None:
        self._nursery = nursery
        self._folder = folder
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "GLMQ_API_PORT": str(port),
            "GLMQ_PUBLIC_URL": self.url,
            "GLMQ_SECRET_KEY": base64.b64encode(bytes(range(32))).decode(),
            "GLMQ_BOOTSTRAP_API_KEY": API_KEY,
            "GLMQ_EGRESS_ALLOW": "127.0.0.1/32",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.processes: dict[str, Child] = {}
        self._clients: list[httpx.Client] = []
        self.api_key = API_KEY
        self.client = self._client(API_KEY)

    def migrate(self) -> None:
        """Make tables, bucket, tenant and key."""
        status = self._nursery.start("infra.migrate", self.environment, self._folder / "migrate.log").wait(_READY_S)
        assert status == 0, self.log("migrate")

    def as_tenant(self, name: str) -> Self:
        """The stack as another customer sees it, who shares no grid with the first."""
        made = self.client.post("/v1/tenants", json={"name": name})
        assert made.status_code in (201, 409), made.text
        key = self.client.post("/v1/api_keys", json={"tenant": name, "scope": "admin"})
        assert key.status_code == 201, key.text
        theirs = copy.copy(self)
        theirs.api_key = key.json()["key"]
        theirs.client = self._client(theirs.api_key)
        return theirs

    def _client(self, key: str) -> httpx.Client:
        client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        self._clients.append(client)
        return client

    def start(self, name: str, role: str | None = None, **environment: str) -> None:
        """Start a process; `name` tells several of one role apart."""
        log = self._folder / f"{name}.log"
        self.processes[name] = self._nursery.start(f"services.{role or name}", {**self.environment, **environment}, log)

    def start_all(self, *more: str) -> None:
        """Migrate, start every role and `more`, and wait until the service is ready."""
        self.migrate()
        for role in (*ROLES, *more):
            self.start(role)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the API says that it is ready."""

        def is_ready() -> bool:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)[-3000:]}"
            try:
                return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, _READY_S, 0.2)

    def log(self, name: str) -> str:
        """What a process wrote."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str, number: int = signal.SIGKILL) -> float:
        """Signal a process and wait for its end; seconds that took."""
        process = self.processes.pop(name)
        started = time.monotonic()
        os.killpg(process.pid, number)
        process.wait(_STOP_S)
        return time.monotonic() - started

    def stop(self) -> None:
        """End every process."""
        for client in self._clients:
            client.close()
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGTERM)
        for name in list(self.processes):
            process = self.processes.pop(name)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def submit(self, client: httpx.Client | None = None, **request: Any) -> dict[str, Any]:
        """POST a job; its document."""
        answer = (client or self.client).post("/v1/jobs", json=request)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def job(self, job_id: str, client: httpx.Client | None = None, wait_s: float = 0) -> dict[str, Any]:
        """GET a job; after `wait_s` at the latest, if it has to end first."""
        answer = (client or self.client).get(f"/v1/jobs/{job_id}", params={"wait": wait_s} if wait_s else None)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait(self, job: Mapping[str, Any], timeout_s: float = 60, client: httpx.Client | None = None) -> dict[str, Any]:
        """The job once it has ended."""
        ended = ("succeeded", "failed", "canceled", "expired")
        return dict(wait_until(lambda: found if (found := self.job(job["id"], client, 1))["status"] in ended else None, timeout_s))

    def result(self, job: Mapping[str, Any], index: int = 0) -> bytes:
        """The bytes of a finished image, through its presigned URL."""
        answer = httpx.get(job["outputs"][index]["url"], timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.content

    def objects(self) -> tuple[Any, str]:
        """A client of the stack's S3, and the bucket that it uses."""
        # Here, so that most tests need not wait for boto3.
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.environment["GLMQ_S3_ENDPOINT"],
            aws_access_key_id=self.environment["GLMQ_S3_ACCESS_KEY"],
            aws_secret_access_key=self.environment["GLMQ_S3_SECRET_KEY"],
            region_name="us-east-1",
        )
        return client, self.environment["GLMQ_S3_BUCKET"]


@contextmanager
def running_stack(
    nursery: Nursery,
    server: PostgresServer,
    redis_url: str,
    s3: S3Server,
    checkpoint: Path,
    folder: Path,
    *more: str,
    redis_number: int = 1,
    **environment: str,
) -> Iterator[Stack]:
    """Every role and `more` running with this checkpoint, logs in `folder`."""
    stores = stack_environment(server, redis_url, s3, checkpoint, f"stack_{uuid.uuid4().hex}", redis_number)
    running = Stack(nursery, folder, stores | environment)
    try:
        running.start_all(*more)
        yield running
    finally:
        running.stop()


def stack_environment(
    server: PostgresServer, redis_url: str, s3: S3Server, checkpoint: Path, name: str, redis_number: int = 1
) -> dict[str, str]:
    """The stores of one stack: a database and a bucket called `name` of its own, and a numbered database of Redis, on shared servers."""
    return {
        "GLMQ_DATABASE_URL": server.create_database(name),
        # Not 0, which other tests have: the workers of a stack that is still running would take their messages.
        "GLMQ_REDIS_URL": f"{redis_url.removesuffix('/0')}/{redis_number}",
        "GLMQ_S3_ENDPOINT": s3.endpoint,
        "GLMQ_S3_ACCESS_KEY": s3.access_key,
        "GLMQ_S3_SECRET_KEY": s3.secret_key,
        "GLMQ_S3_BUCKET": name.replace("_", "-"),
        "GLMQ_CHECKPOINT": str(checkpoint),
    }
