"""
A sender process whose receivers misbehave in every way at once: each is bounded, logged, and tried again or refused as the contract says,
and the endpoint beside them hears of its events as soon as if they were not there.
"""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from shared.db import Database
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import ensure_tenant
from shared.sealing import Sealer
from shared.webhooks import new_secret
from tests.fakes import Script, ScriptedServer
from tests.integration.conftest import plain_job
from tests.ledger import query
from tests.nursery import Nursery
from tests.sender_process import KEY, SenderProcesses

TIMEOUT_S = 1.0
"""Fifteen by default; a test need not wait so long to see that it holds."""

NUM_EVENTS = 40


@dataclass
class Receiver:
    """A server, the endpoint that leads to it, and when its events came."""

    endpoint_id: str
    arrived: dict[str, float] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)


def well(receiver: Receiver, secret: str, server: list[ScriptedServer]) -> Script:
    """Takes everything, and believes only what is signed."""

    def answer(connection: socket.socket, _: str) -> None:
        head, _, body = server[0].requests[-1].partition("\r\n\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        while len(body.encode()) < int(headers["content-length"]):
            body += connection.recv(65536).decode()
        try:
            event = Webhook(secret).verify(body, headers)
            receiver.arrived.setdefault(str(event["id"]), time.time())
        except Exception as error:
            receiver.failures.append(error)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    return answer


def say(answer: bytes) -> Script:
    return lambda connection, _: connection.sendall(answer)


def hang(connection: socket.socket, _: str) -> None:
    time.sleep(30)


def drip(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(600):
        connection.sendall(b"a")
        time.sleep(0.05)


def drip_body(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(600):
        connection.sendall(b"a")
        time.sleep(0.05)


def flood(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 10000000\r\n\r\n")
    for _ in range(160):
        connection.sendall(b"x" * 62500)


HOSTILE: dict[str, tuple[Script | None, int | None, str]] = {
    "fails": (say(b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops"), 500, "status 500"),
    "hangs": (hang, None, f"no answer within {TIMEOUT_S:g} s"),
    "redirects": (say(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"), 302, "status 302: redirects"),
    "drips": (drip, None, f"no answer within {TIMEOUT_S:g} s"),
    "drips its body": (drip_body, 500, "status 500"),
    "floods": (flood, 500, "status 500"),
    "closes": (lambda connection, _: None, None, "the connection ended before an answer"),
    "is overloaded": (say(b"HTTP/1.1 503 No\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"), 503, "status 503"),
    "is gone": (say(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"), 410, "status 410"),
    "speaks no HTTP": (say(b"SSH-2.0-OpenSSH\r\n"), None, "the connection ended before an answer"),
    "is inside": (None, None, "webhook: 127.0.0.2 leads to an address that is not public"),
}
"""What each does, the status that is logged, and how the error begins. The operator of this sender allows 127.0.0.1 and nothing else."""


@pytest.fixture
def tenant(db: Database) -> str:
    return ensure_tenant(db, "studio", Sealer(KEY).seal(new_secret()))


@pytest.fixture
def open_endpoint(db: Database, tenant: str) -> Callable[..., Receiver]:
    """Registers an endpoint."""

    def make(url: str, secret: str) -> Receiver:
        sealed = Sealer(KEY).seal(secret)
        new = NewEndpoint(url=url, host=url.split("/")[2], events=["job.queued"], secret=sealed, secret_hint="")
        return Receiver(str(add_endpoint(db, tenant, new)["id"]))

    return make


@pytest.fixture
def start_server() -> Iterator[Callable[[Script], ScriptedServer]]:
    with ExitStack() as stack:

        def start(script: Script) -> ScriptedServer:
            server = ScriptedServer(script)
            stack.callback(server.close)
            return server

        yield start


def latencies(db: Database, new: NewJob, receiver: Receiver, count: int = NUM_EVENTS) -> list[float]:
    """Submit jobs one after another; seconds from each one's event to its arrival."""
    events = []
    for _ in range(count):
        job_id, _ = submit(db, new)
        events.append(query(db, "SELECT id, extract(epoch FROM created_at) FROM event WHERE job_id = :job", job=job_id)[0])
        time.sleep(0.05)
    until = time.monotonic() + 20
    while not all(event in receiver.arrived for event, _ in events):
        assert time.monotonic() < until, "events did not arrive"
        time.sleep(0.05)
    return [receiver.arrived[event] - float(at) for event, at in events]


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]


def test_hostile_receivers(
    nursery: Nursery,
    db: Database,
    ledger_url: str,
    tenant: str,
    tmp_path: Path,
    open_endpoint: Callable[..., Receiver],
    start_server: Callable[[Script], ScriptedServer],
) -> None:
    """Eleven receivers misbehave; each leaves what it should in the log, and the twelfth one's latency does not change."""
    new = plain_job(tenant)
    secret = new_secret()
    # Given an endpoint that is well, and how soon it hears while it is alone
    server: list[ScriptedServer] = []
    healthy = Receiver("")
    server.append(start_server(lambda connection, line: well(healthy, secret, server)(connection, line)))
    healthy.endpoint_id = open_endpoint(f"{server[0].url}/hook", secret).endpoint_id
    with SenderProcesses(nursery, ledger_url, tmp_path) as senders:
        process, log_path = senders.start(GLMQ_WEBHOOK_TIMEOUT_S=f"{TIMEOUT_S:g}", GLMQ_WEBHOOK_CONNECT_S="1", GLMQ_WEBHOOK_POLL_S="0.02")
        latencies(db, new, healthy, 2)  # the process starts
        alone = latencies(db, new, healthy)
        # When all the others are there, too
        servers = {name: start_server(script) for name, (script, *_) in HOSTILE.items() if script is not None}
        urls = {name: server.url for name, server in servers.items()} | {"is inside": f"http://127.0.0.2:{server[0].port}"}
        hostile = {name: open_endpoint(f"{url}/hook", new_secret()).endpoint_id for name, url in urls.items()}
        memory_before = _resident_mib(process.pid)
        beside = latencies(db, new, healthy)
        time.sleep(TIMEOUT_S + 1.5)
        memory_after = _resident_mib(process.pid)
    # Then it heard as soon as before
    figures = [f"{statistics.median(found):.3f} s and {p99(found):.3f} s" for found in (alone, beside)]
    # For people; `pytest -s` shows it.
    print(f"latency at the healthy endpoint, p50 and p99: {figures[0]} alone, {figures[1]} beside {len(hostile)} others")  # noqa: T201
    assert p99(beside) < p99(alone) + 2
    assert not healthy.failures
    assert len(healthy.arrived) == 2 * NUM_EVENTS + 2
    # And each of the others is in the log as what it is, cut at the time limit, and read no further than 2 KiB
    for name, (_, status, error) in HOSTILE.items():
        attempts = query(
            db,
            "SELECT log.status, log.error, log.latency_ms, length(log.reply) FROM webhook_attempt AS log "
            "JOIN webhook_delivery ON webhook_delivery.id = delivery_id WHERE endpoint_id = :id",
            id=hostile[name],
        )
        assert attempts, name
        for got_status, got_error, latency_ms, reply_bytes in attempts:
            assert got_status == status, (name, got_error)
            assert got_error.startswith(error), name
            assert latency_ms < (TIMEOUT_S + 1.5) * 1000, name
            assert (reply_bytes or 0) <= 2048, name
        # The breaker, or the pause of an overloaded one, holds back what comes after the first few.
        assert len(attempts) <= 9, (name, len(attempts))
    states = dict(query(db, "SELECT id, status FROM webhook_endpoint"))
    assert states.pop(hostile["is gone"]) == "disabled"
    assert set(states.values()) == {"enabled"}
    assert query(db, "SELECT count(*) FROM event WHERE type = 'endpoint.disabled'") == [(1,)]
    assert memory_after - memory_before < 20
    assert secret not in log_path.read_text()
    assert "/hook" not in log_path.read_text()


def test_what_is_no_longer_allowed_gets_no_connection(
    nursery: Nursery, db: Database, ledger_url: str, tenant: str, tmp_path: Path, open_endpoint: Callable[..., Receiver]
) -> None:
    """An endpoint that was allowed when it was registered, and is not any more, is refused before anything is dialled."""
    with socket.create_server(("127.0.0.1", 0)) as inside, SenderProcesses(nursery, ledger_url, tmp_path) as senders:
        inside.settimeout(0.2)
        endpoint = open_endpoint(f"http://localhost:{inside.getsockname()[1]}/", new_secret()).endpoint_id
        submit(db, plain_job(tenant))
        senders.start(GLMQ_EGRESS_ALLOW="")
        until = time.monotonic() + 60
        wanted = "SELECT last_error FROM webhook_delivery WHERE last_error IS NOT NULL AND endpoint_id = :id"
        while not (found := query(db, wanted, id=endpoint)):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert "is not allowed" in found[0][0]
        with pytest.raises(TimeoutError):
            inside.accept()


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)
