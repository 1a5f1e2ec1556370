"""The sender as a process, beside the real ledger: an event goes out once, signed, and the process ends when told to."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook

from infra.migrate import migrate_database
from shared.db import Database
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import ensure_tenant
from shared.sealing import Sealer
from shared.tables import WebhookAttempt, WebhookDelivery
from shared.webhooks import new_secret
from tests.fakes import ScriptedServer
from tests.integration.conftest import plain_job
from tests.nursery import Child, Nursery
from tests.sender_process import KEY, SenderProcesses

SECRET = new_secret()


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """An empty ledger."""
    migrate_database(database_url)
    db = Database(database_url, pool_size=2)
    yield db
    db.close()


Start = Callable[..., tuple[Child, Path]]


@pytest.fixture
def start_sender(nursery: Nursery, database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start sender processes, each with its log; those still there at the end are killed."""
    with SenderProcesses(nursery, database_url, tmp_path) as senders:
        yield senders.start


def order(db: Database, url: str) -> str:
    """Submit a job whose very first event is wanted at `url`; its id."""
    tenant_id = ensure_tenant(db, "studio", Sealer(KEY).seal(SECRET))
    new = replace(plain_job(tenant_id), webhook={"url": url, "events": ["job.queued"]})
    return submit(db, new)[0]


def the_delivery(db: Database) -> WebhookDelivery:
    return db.run(lambda session: session.scalars(select(WebhookDelivery)).one())


def wait_for(is_so: Callable[[], Any], limit_s: float = 15) -> None:
    until = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def read_request(connection: socket.socket, request: str) -> bytes:
    """The body of a request, of which the head and perhaps a part of the body have been read."""
    head, _, body = request.partition("\r\n\r\n")
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length"))
    received = body.encode()
    while len(received) < length:
        received += connection.recv(4096)
    return received


def test_an_event_goes_out_once_and_verified(db: Database, start_sender: Start) -> None:
    """A job's event reaches its URL, verifies with the tenant's secret, and is written down; the log names no path and no secret."""
    # Given a receiver and a job that wants its events
    got: list[tuple[dict[str, str], bytes]] = []

    def receive(connection: socket.socket, _: str) -> None:
        request = server.requests[-1]
        headers = dict(line.split(": ", 1) for line in request.split("\r\n\r\n")[0].split("\r\n")[1:])
        got.append((headers, read_request(connection, request)))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nthanks")

    server = ScriptedServer(receive)
    job_id = order(db, f"{server.url}/hook?token=hidden")
    # When a sender runs
    process, log_path = start_sender(GLMQ_LOG_LEVEL="DEBUG")
    wait_for(lambda: the_delivery(db).state == "delivered")
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    server.close()
    # Then the receiver got one event that it can verify, and the ledger knows
    (headers, body), *more = got
    assert not more
    event = Webhook(SECRET).verify(body, headers)
    assert (event["type"], event["data"]["id"], event["data"]["status"]) == ("job.queued", job_id, "queued")
    assert "storage_key" not in body.decode()
    delivery = the_delivery(db)
    assert (delivery.attempt, delivery.last_status, delivery.body) == (1, 200, body)
    (attempt,) = db.run(lambda session: session.scalars(select(WebhookAttempt)).all())
    assert (attempt.attempt, attempt.status, attempt.reply, attempt.headers["webhook-id"]) == (1, 200, b"thanks", event["id"])
    assert attempt.headers["webhook-signature"] == "v1,…"
    log = log_path.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["state"] for line in lines if line["event"] == "attempt_finished"] == ["delivered"]
    assert not any(word in log for word in ("hidden", SECRET, KEY, "/hook"))


def test_a_killed_senders_delivery_is_sent_by_another(db: Database, start_sender: Start) -> None:
    """What a sender held when it was killed is due again after the lease, with the same id and bytes."""
    # Given a receiver that answers the second attempt only
    bodies: list[tuple[str, bytes]] = []

    def receive(connection: socket.socket, _: str) -> None:
        request = server.requests[-1]
        event_id = next(line for line in request.split("\r\n") if line.startswith("webhook-id"))
        bodies.append((event_id, read_request(connection, request)))
        if len(bodies) == 1:
            time.sleep(20)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    server = ScriptedServer(receive)
    order(db, server.url)
    short = {"GLMQ_WEBHOOK_TIMEOUT_S": "1", "GLMQ_WEBHOOK_LEASE_S": "11"}
    # When the sender dies in the middle of an attempt whose lease has nearly run out
    first, _ = start_sender(GLMQ_WEBHOOK_TIMEOUT_S="20", GLMQ_WEBHOOK_LEASE_S="30")
    wait_for(lambda: bodies)
    first.kill()
    first.wait()
    delivery = the_delivery(db)
    assert (delivery.state, delivery.attempt) == ("pending", 1)
    db.run(lambda session: session.execute(update(WebhookDelivery).values(lease_until=delivery.created_at)))
    start_sender(**short)
    # Then another sender delivers the same
    wait_for(lambda: the_delivery(db).state == "delivered")
    server.close()
    assert the_delivery(db).attempt == 2
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]


def test_wrong_settings_refuse_the_start(start_sender: Start) -> None:
    """One line that names the variable, and no traceback."""
    process, log_path = start_sender(GLMQ_EGRESS_ALLOW="everything")
    assert process.wait(30) == 1
    assert "GLMQ_EGRESS_ALLOW" in log_path.read_text()
    assert "Traceback" not in log_path.read_text()
