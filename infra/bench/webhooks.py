"""
Webhooks: a thousand to one receiver, claimed, signed, posted and recorded by a sender process on a real ledger, against a bare aiohttp
loop that posts the same bodies to the same receiver, one after the other. What the loop reaches with as many in flight as a sender is
told, too.

Before a figure counts, every event has arrived at least once, with an id of its own, verifies with the public library, and has its
attempt in the log.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psycopg
from standardwebhooks import Webhook

from infra.bench.figures import Figure, show
from infra.embedded.find import postgres_programs, redis_program
from infra.embedded.memory import Memory
from infra.embedded.ports import free_port
from infra.embedded.postgres import PostgresServer
from infra.embedded.redis import RedisServer
from infra.migrate import migrate_database
from shared.db import Database
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint
from shared.lifecycle.tenants import ensure_tenant
from shared.progress import LiveState
from shared.sealing import Sealer
from shared.wakeup import Topic
from shared.webhooks import new_secret

_COUNT = 1000
_REPEATS = 7
_WARM_UP = 2
_IN_FLIGHT = 4
"""What a sender posts to one endpoint at once by default."""
_TARGET = 0.5
_TIMEOUT_S = 60.0
_LOOK_S = 0.02
_KEY = base64.b64encode(bytes(32)).decode()

_DOCUMENT = """
{"id": "job_01m8cz0000000000000000000a", "object": "job", "status": "succeeded", "stage": null, "version": 6, "seed": 7, "batch_id": null,
 "progress": {"phase": "upload", "done": 1, "total": 1}, "model": {"name": "miniature", "revision": "sha256:0123456789abcdef"},
 "input": {"prompt": "a poster with the words \\"NUMBER ONE\\" on a blue ground", "size": "1024x768"},
 "params": {"prompt": "a poster with the words \\"NUMBER ONE\\" on a blue ground", "size": "1024x768", "seed": 7, "layout_seed": 7,
            "steps": 50, "guidance_scale": 1.5,
            "temperature": 0.9, "top_p": 0.75, "n": 1, "format": "png", "cache": "use", "quality": "exact"},
 "outputs": [{"id": "img_01m8cz0000000000000000000a", "index": 0, "status": "succeeded", "cached": false, "url": null,
              "storage_key": "t/ten_1/img_1/1.png", "width": 1024, "height": 768, "generated_width": 1024, "generated_height": 768,
              "format": "png", "bytes": 1234567, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "seed": 7,
              "layout_seed": 7, "previews": []}],
 "error": null, "usage": {"ar_tokens": 1025, "decoder_steps": 50, "images": 1}, "attempts": [], "metadata": {}, "custom_id": null,
 "priority": "standard", "deadline": null, "approval_deadline": null, "created_at": "2026-11-26T20:00:00.000Z",
 "started_at": "2026-11-26T20:00:01.000Z", "completed_at": "2026-11-26T20:00:09.000Z", "redecode_of": null,
 "urls": {"self": "/v1/jobs/job_1", "cancel": "/v1/jobs/job_1/cancel", "images": "/v1/jobs/job_1/images"}}
"""
"""As a job of one image has it, with a result to be presigned."""

_ADD_JOB = """
INSERT INTO job (id, tenant_id, status, priority, input, params, model, num_images)
VALUES ('job_1', %s, 'queued', 'standard', '{}', '{}', '{}', 1)
"""
_ADD_EVENTS = """
INSERT INTO event (id, tenant_id, seq, job_id, type, data)
SELECT 'evt_' || %(round)s || 'x' || n, %(tenant)s, %(round)s * 10000 + n, 'job_1', 'job.tokens_ready', %(document)s
FROM generate_series(1, %(count)s) AS n
"""
_ADD_DELIVERIES = """
INSERT INTO webhook_delivery (id, tenant_id, event_id, endpoint_id, url, lane)
SELECT 'whd_' || %(round)s || 'x' || n, %(tenant)s, 'evt_' || %(round)s || 'x' || n, %(endpoint)s, %(url)s, %(endpoint)s
FROM generate_series(1, %(count)s) AS n
"""
_LEFT = "SELECT count(*) FROM webhook_delivery WHERE state = 'pending'"
_RECORDED = """
SELECT count(*) FROM webhook_delivery AS delivery JOIN webhook_attempt AS log ON log.delivery_id = delivery.id
WHERE delivery.id LIKE %s AND delivery.state = 'delivered' AND log.status = 204
"""


def measure() -> list[Figure]:
    """Webhooks per second, and what share of the bare loop's rate that is."""
    with tempfile.TemporaryDirectory(prefix="glmq-bench-") as name, _scene(Path(name)) as scene:
        rates = [_round(scene, number) for number in range(_WARM_UP + _REPEATS)][_WARM_UP:]
    note = f"{_COUNT} to one endpoint; each arrived, verified and is in the log"
    return [
        Figure("webhooks/s against a bare aiohttp POST loop", [sent / loop for loop, _, sent in rates], _TARGET, note=note),
        Figure(f"… against {_IN_FLIGHT} such loops in one process", [sent / loops for _, loops, sent in rates]),
        Figure("… webhooks/s, signed and recorded", [sent for *_, sent in rates], unit="/s"),
        Figure("… bare POSTs/s", [loop for loop, *_ in rates], unit="/s", note="the same bodies, the same receiver"),
        Figure(f"… bare POSTs/s, {_IN_FLIGHT} in flight", [loops for _, loops, _ in rates], unit="/s"),
    ]


def _round(scene: _Scene, number: int) -> tuple[float, float, float]:
    """Rates of one loop, of several, and of the sender."""
    return scene.bare(1), scene.bare(_IN_FLIGHT), scene.sent(number)


class _Scene:
    """A ledger, a sender process, and a receiver process."""

    def __init__(self, database_url: str, redis_url: str, receiver_url: str) -> None:
        self._database_url = database_url
        self._url = f"{receiver_url}/hook"
        self._taken = httpx.Client(base_url=receiver_url, trust_env=False, transport=httpx.HTTPTransport(retries=8))
        # The transport knocks until the receiver has started.
        self._forget()
        self._live = LiveState(redis_url)
        self._secret = new_secret()
        self._bodies: list[bytes] = []
        sealer = Sealer(_KEY)
        db = Database(database_url, pool_size=1)
        self._tenant_id = ensure_tenant(db, "bench", sealer.seal(new_secret()))
        new = NewEndpoint(url=self._url, host=self._url.split("/")[2], events=["*"], secret=sealer.seal(self._secret), secret_hint="")
        self._endpoint_id = str(add_endpoint(db, self._tenant_id, new)["id"])
        db.close()
        with psycopg.connect(database_url) as connection:
            connection.execute(_ADD_JOB, (self._tenant_id,))

    def bare(self, in_flight: int) -> float:
        """POSTs per second of loops that know nothing."""
        bodies = self._bodies or [_DOCUMENT.encode()] * _COUNT
        rate = asyncio.run(_post_all(self._url, bodies, in_flight))
        self._forget()
        return rate

    def sent(self, number: int) -> float:
        """Webhooks per second, from the commit of the events to the last attempt's."""
        values = {"round": number, "tenant": self._tenant_id, "endpoint": self._endpoint_id, "url": self._url, "count": _COUNT}
        with psycopg.connect(self._database_url) as connection:
            connection.execute(_ADD_EVENTS, {**values, "document": _DOCUMENT})
            connection.execute(_ADD_DELIVERIES, values)
        started = time.perf_counter()
        self._live.ring(Topic.DELIVERIES_DUE)
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            while left := _count(connection, _LEFT):
                if time.perf_counter() - started > _TIMEOUT_S:
                    raise TimeoutError(f"{left} of {_COUNT} webhooks were not delivered")
                time.sleep(_LOOK_S)
            took = time.perf_counter() - started
            if (recorded := _count(connection, _RECORDED, f"whd_{number}x%")) < _COUNT:
                raise RuntimeError(f"{recorded} of {_COUNT} deliveries are in the log")
        self._check(number)
        return _COUNT / took

    def _check(self, number: int) -> None:
        """Raises unless every event has come, once or more, and verifies."""
        taken = [(headers, base64.b64decode(body)) for headers, body in self._taken.get("/taken", timeout=_TIMEOUT_S).json()]
        webhook = Webhook(self._secret)
        ids = {str(webhook.verify(body, headers)["id"]) for headers, body in taken}
        if ids != {f"evt_{number}x{n}" for n in range(1, _COUNT + 1)} or ids != {headers["webhook-id"] for headers, _ in taken}:
            raise RuntimeError(f"{len(ids)} of {_COUNT} events arrived")
        self._bodies = [body for _, body in taken][:_COUNT]
        self._forget()

    def _forget(self) -> None:
        self._taken.delete("/taken").raise_for_status()


def _count(connection: psycopg.Connection[Any], statement: str, *values: str) -> int:
    row = connection.execute(statement, values).fetchone()
    return int(row[0]) if row else 0


async def _post_all(url: str, bodies: list[bytes], in_flight: int) -> float:
    left = iter(bodies)

    async def post() -> None:
        for body in left:
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                await answer.read()

    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()
        await asyncio.gather(*(post() for _ in range(in_flight)))
        return len(bodies) / (time.perf_counter() - started)


@contextmanager
def _scene(folder: Path) -> Iterator[_Scene]:
    folder.chmod(0o711)  # root's Postgres runs as nobody, who must be able to pass through
    with ExitStack() as stack:
        postgres = PostgresServer(folder / "postgres", Memory(folder / "postgres.json"), folder / "postgres.log", postgres_programs())
        redis = RedisServer(folder / "redis", Memory(folder / "redis.json"), folder / "redis.log", redis_program(), durable=False)
        for server in (postgres, redis):
            server.start()
            stack.callback(server.stop)
        migrate_database(postgres.url())
        port = free_port()
        receiver_url = f"http://127.0.0.1:{port}"
        _start(stack, folder / "receiver.log", "infra.bench.webhook_receiver", str(port))
        scene = _Scene(postgres.url(), redis.url(), receiver_url)
        settings = {
            "GLMQ_DATABASE_URL": postgres.url(),
            "GLMQ_REDIS_URL": redis.url(),
            "GLMQ_S3_ENDPOINT": "http://127.0.0.1:1",
            "GLMQ_S3_ACCESS_KEY": "key",
            "GLMQ_S3_SECRET_KEY": "secret",
            "GLMQ_SECRET_KEY": _KEY,
            "GLMQ_EGRESS_ALLOW": "127.0.0.1",
        }
        _start(stack, folder / "sender.log", "services.webhook_sender", **settings)
        yield scene


def _start(stack: ExitStack, log: Path, module: str, *arguments: str, **settings: str) -> None:
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], env={**os.environ, **settings}, stdout=output, stderr=output)
    stack.callback(process.wait)
    stack.callback(process.send_signal, signal.SIGTERM)


if __name__ == "__main__":
    show(measure())
