"""
POST /v1/jobs per second, against a bare Flask handler with one INSERT on the same Postgres, pool and number of threads.

Every request asks for a picture that nobody has asked for, so that each one stores a job, a grid, an image and an event. The two servers
are asked in turn, never at once, by the same connections; what was accepted is counted in the tables before a figure counts.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

from infra.bench.figures import Figure, show
from infra.embedded.find import postgres_programs, redis_program
from infra.embedded.memory import Memory
from infra.embedded.ports import free_port
from infra.embedded.postgres import PostgresServer
from infra.embedded.process import end
from infra.embedded.redis import RedisServer
from infra.migrate import migrate_database
from shared.api_keys import SCOPES, ApiKeyText, new_api_key
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.lifecycle.tenants import ensure_api_key, ensure_tenant
from shared.lifecycle.workers import beat_worker
from shared.states import Stage

_ROUNDS = 7
_SECONDS = 3.0
_WARM_UP_S = 2.0
_CLIENTS = 8
"""Connections that ask at once: as many as the pool has."""
_AT_LEAST = 0.70
_READY_S = 60.0

_REQUEST = {
    "prompt": 'A teal poster with the words "OPEN LATE" in large letters',
    "size": "128x128",
    "n": 1,
    "metadata": {"order": "20261126-17"},
}
_MODEL = ModelInfo(
    name="bench",
    revision="sha256:0",
    codebook_size=512,
    steps=4,
    guidance_scale=1.5,
    temperature=0.9,
    top_p=0.75,
    default_height_px=128,
    default_width_px=128,
    min_px=32,
    max_px=512,
    source_min_px=64,
    source_max_px=512,
)


@dataclass
class _Target:
    """A server, what to send to it, and how many requests it has accepted."""

    port: int
    request: bytes
    table: str
    num_accepted: int = 0

    def rate(self, seconds: float, clients: int = _CLIENTS) -> tuple[float, float]:
        """Requests per second that were accepted, and the median milliseconds of one."""
        took: list[list[float]] = [[] for _ in range(clients)]
        ends_at = time.perf_counter() + seconds

        def ask(times: list[float]) -> None:
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while (began := time.perf_counter()) < ends_at:
                    connection.sendall(self.request)
                    _check(connection)
                    times.append(time.perf_counter() - began)

        threads = [threading.Thread(target=ask, args=(times,)) for times in took]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        every = [one for times in took for one in times]
        self.num_accepted += len(every)
        return len(every) / (time.perf_counter() - began), 1000 * statistics.median(every)


def measure() -> list[Figure]:
    """Ratios of the rates with eight clients, and of the times of one request alone."""
    with _servers() as (ours, bare, database_url):
        for target in (ours, bare):
            target.rate(_WARM_UP_S)
        rates, alone = [], []
        for _ in range(_ROUNDS):
            bare_rate, _ = bare.rate(_SECONDS)
            our_rate, _ = ours.rate(_SECONDS)
            rates.append((our_rate, bare_rate))
            alone.append((ours.rate(1, clients=1)[1], bare.rate(1, clients=1)[1]))
        stored = _count(database_url, (ours, bare))
        if stored != (accepted := [ours.num_accepted, bare.num_accepted]):
            raise RuntimeError(f"{accepted} requests were accepted, and {stored} stored")
    ours_s, bare_s = (statistics.median(pair[side] for pair in rates) for side in (0, 1))
    ours_ms, bare_ms = (statistics.median(pair[side] for pair in alone) for side in (0, 1))
    return [
        Figure(
            "POST /v1/jobs per second against a bare Flask handler with one INSERT",
            [mine / theirs for mine, theirs in rates],
            _AT_LEAST,
            note=f"{ours_s:.0f}/s and {bare_s:.0f}/s, {_CLIENTS} clients; {stored[0]} jobs and {stored[1]} bare rows stored",
        ),
        Figure(
            "… one client, time of one request",
            [mine for mine, _ in alone],
            unit="ms",
            note=f"bare {bare_ms:.2f} ms, glmq {ours_ms:.2f} ms",
        ),
    ]


@contextmanager
def _servers() -> Iterator[tuple[_Target, _Target, str]]:
    """Both servers on one durable Postgres, as `glmq up` runs it."""
    with tempfile.TemporaryDirectory(prefix="glmq-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # root's Postgres runs as nobody
        postgres = PostgresServer(folder / "postgres", Memory(folder / "postgres.json"), folder / "postgres.log", postgres_programs())
        redis = RedisServer(folder / "redis", Memory(folder / "redis.json"), folder / "redis.log", redis_program())
        for server in (postgres, redis):
            server.start()
        processes: list[subprocess.Popen[bytes]] = []
        try:
            url = postgres.url()
            key = _prepare(url)
            ours, bare = free_port(), free_port()
            environment = {
                **os.environ,
                "GLMQ_DATABASE_URL": url,
                "GLMQ_REDIS_URL": redis.url(),
                "GLMQ_S3_ENDPOINT": "http://127.0.0.1:1",  # these requests have nothing for it
                "GLMQ_S3_ACCESS_KEY": "none",
                "GLMQ_S3_SECRET_KEY": "none",
                "GLMQ_SECRET_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
                "GLMQ_API_PORT": str(ours),
            }
            commands = (["services.api"], ["infra.bench.bare_submit", str(bare)])
            for command in commands:
                with (folder / f"{command[0]}.log").open("wb") as log:
                    processes.append(
                        subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log, start_new_session=True)
                    )
            targets = (_Target(ours, _http(key), "job"), _Target(bare, _http(key), "bare_job"))
            for target in targets:
                _await(target.port)
            yield *targets, url
        finally:
            for process in processes:
                end(process)
            for server in (redis, postgres):
                server.stop()


def _prepare(url: str) -> str:
    """Tables, a tenant, a model that a worker reported; the tenant's key."""
    migrate_database(url)
    db = Database(url, pool_size=1)
    key = new_api_key()
    parsed = ApiKeyText.parse(key)
    if parsed is None:
        raise AssertionError("a new key has the form of a key")
    tenant_id = ensure_tenant(db, "bench", b"sealed")
    ensure_api_key(db, tenant_id, "bench", parsed, list(SCOPES))
    beat_worker(db, "worker", Stage.AR, "host", 1, 1, asdict(_MODEL))
    db.close()
    return key


def _http(key: str) -> bytes:
    body = json.dumps(_REQUEST).encode()
    lines = (
        "POST /v1/jobs HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _check(connection: socket.socket) -> None:
    """Read one answer to its end; it must be a 202."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("the server closed the connection")
        head += piece
    head, _, body = head.partition(b"\r\n\r\n")
    if b" 202 " not in head[:20]:
        raise RuntimeError(f"not accepted: {head[:300]!r} {body[:500]!r}")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)


def _await(port: int) -> None:
    give_up_at = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)


def _count(database_url: str, targets: tuple[_Target, ...]) -> list[int]:
    with psycopg.connect(database_url) as connection:
        return [int((connection.execute(f"SELECT count(*) FROM {target.table}").fetchone() or (0,))[0]) for target in targets]  # noqa: S608 - the name is ours


if __name__ == "__main__":
    show(measure())
