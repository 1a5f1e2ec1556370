"""Webhooks with `job.progress`: who is found in the ledger, and what senders post, beside a real ledger and a real Redis."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from infra.migrate import migrate_database
from shared.db import Database
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint, change_endpoint, delete_endpoint
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import ensure_tenant
from shared.lifecycle.watchers import find_watched, read_moments
from shared.lifecycle.webhook_secrets import rotate_default_secret, rotate_endpoint_secret
from shared.progress import LiveState
from shared.sealing import Sealer
from shared.webhooks import new_secret
from tests.fakes import ScriptedServer
from tests.integration.conftest import plain_job
from tests.ledger import claim_grid, claim_image, execute, finish_one_grid, finish_one_image, query
from tests.nursery import Nursery
from tests.sender_process import KEY, SenderProcesses

NAMED = ("job.progress",)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """An empty ledger."""
    migrate_database(database_url)
    db = Database(database_url, pool_size=2)
    yield db
    db.close()


def endpoint(db: Database, tenant_id: str, url: str, events: tuple[str, ...] = NAMED, secret: bytes = b"own", **more: Any) -> str:
    """An endpoint's id."""
    host = url.split("/")[2]
    return str(add_endpoint(db, tenant_id, NewEndpoint(url, host, events, secret, "whsec_…", **more))["id"])


def order(db: Database, tenant_id: str, seed: int, webhook: dict[str, Any] | None = None, dialect: dict[str, Any] | None = None) -> str:
    """A job of its own work."""
    return submit(db, replace(plain_job(tenant_id), seed=seed, layout_seed=seed, webhook=webhook, dialect=dialect))[0]


def test_watchers_are_found_by_what_they_ask_for(db: Database) -> None:
    """Of running jobs: their own URLs and the tenant's endpoints that name progress, with the secrets that sign now; nobody else."""
    # Given a tenant with endpoints of every kind, and jobs
    tenant_id = ensure_tenant(db, "studio", b"default")
    own, signer = "https://own.example/hook", endpoint(db, tenant_id, "https://s.example/", ("job.failed",), b"signer")
    rotate_endpoint_secret(db, tenant_id, signer, b"signer-2", "whsec_…", 60)
    rotate_default_secret(db, tenant_id, b"default-2", 60)
    first = order(db, tenant_id, 1, {"url": own, "events": ["job.failed", "job.progress"]})
    second = order(db, tenant_id, 2, {"url": own, "events": ["job.progress"], "secret_id": signer})
    order(db, tenant_id, 3, {"url": own, "events": ["job.succeeded"]})
    # Then nobody is found before the work runs
    assert find_watched(db, 99) == []
    grids = [claim_grid(db) for _ in range(3)]
    found = {job.id: job for job in find_watched(db, 99)}
    assert set(found) == {first, second}
    assert [(w.url, w.sealed_secrets) for w in found[first].watchers] == [(own, (b"default-2", b"default"))]
    assert [(w.endpoint_id, w.sealed_secrets) for w in found[second].watchers] == [(None, (b"signer-2", b"signer"))]
    assert found[first].watchers[0].lane == f"{tenant_id}/own.example"
    assert {job.work_ids for job in found.values()} <= {(grid.id,) for grid in grids}
    assert len(find_watched(db, 1)) == 1
    # And endpoints, of this tenant and well
    mine = endpoint(db, tenant_id, "https://a.example/", is_thin=True)
    for events in (("*",), ("job.*",), ("job.succeeded",)):
        endpoint(db, tenant_id, "https://b.example/", events)
    change_endpoint(db, tenant_id, endpoint(db, tenant_id, "https://c.example/"), {"status": "disabled"})
    delete_endpoint(db, tenant_id, endpoint(db, tenant_id, "https://d.example/"))
    broken = endpoint(db, tenant_id, "https://e.example/")
    execute(db, "UPDATE webhook_endpoint SET breaker_until = clock_timestamp() - interval '1 s' WHERE id = :id", id=broken)
    endpoint(db, ensure_tenant(db, "other", b"sealed"), "https://f.example/")
    found = {job.id: job for job in find_watched(db, 99)}
    assert len(found) == 3
    assert all([w.endpoint_id for w in job.watchers if w.endpoint_id] == [mine] for job in found.values())
    assert all(w.is_thin and w.lane == mine for job in found.values() for w in job.watchers if w.endpoint_id)
    # And of the decoder's work as well, until the job has ended
    for grid in grids:
        execute(db, "UPDATE grid SET lease_until = NULL, state = 'ready' WHERE id = :id", id=grid.id)
    assert find_watched(db, 99) == []
    finish_one_grid(db)
    image = claim_image(db)
    (job,) = find_watched(db, 99)
    assert job.work_ids == (image.id,)
    (moment,) = read_moments(db, [job.id], {image.id: ("denoise", 3, 4)})
    assert moment.document["progress"] == {"phase": "denoise", "done": 3, "total": 4}
    execute(db, "UPDATE image SET lease_until = NULL, state = 'ready' WHERE id = :id", id=image.id)
    finish_one_image(db)
    assert read_moments(db, [job.id], {}) == []


class Receiver:
    """A server that keeps what is posted to each path, and when; it fails on `/failing`."""

    def __init__(self) -> None:
        self.got: dict[str, list[tuple[float, dict[str, str], bytes]]] = {}
        self._server = ScriptedServer(self._receive)
        self.url = self._server.url
        self.close = self._server.close

    def of(self, path: str) -> list[tuple[float, dict[str, str], bytes]]:
        return list(self.got.get(path, []))

    def _receive(self, connection: socket.socket, line: str) -> None:
        path = line.split(" ")[1]
        head, _, body = next(text for text in reversed(self._server.requests) if text.startswith(line)).partition("\r\n\r\n")
        headers = dict(row.split(": ", 1) for row in head.split("\r\n")[1:])
        received = body.encode()
        while len(received) < int(headers["Content-Length"]):
            received += connection.recv(65536)
        self.got.setdefault(path, []).append((time.monotonic(), headers, received))
        connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (500 if path == "/failing" else 204))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def wait_for(is_so: Callable[[], Any], limit_s: float = 20) -> None:
    until = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def test_progress_reaches_those_who_name_it(
    db: Database, nursery: Nursery, database_url: str, redis_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    """
    What a worker writes is posted by one of two senders, signed, at most twice a second, and once; nothing of it is kept, and who asked
    for everything hears none of it.
    """
    # Given endpoints, one in the middle of a rotation, and running jobs: a native one, one that fails its posts, one of another interface
    sealer, old, new, default = Sealer(KEY), new_secret(), new_secret(), new_secret()
    tenant_id = ensure_tenant(db, "studio", sealer.seal(default))
    named = endpoint(db, tenant_id, f"{receiver.url}/named", secret=sealer.seal(old))
    rotate_endpoint_secret(db, tenant_id, named, sealer.seal(new), "whsec_…", 60)
    endpoint(db, tenant_id, f"{receiver.url}/all", ("*",), secret=sealer.seal(old))
    kept = {"name": "replicate", "input": {"prompt": "a"}}
    jobs = [
        order(db, tenant_id, 1, {"url": f"{receiver.url}/own", "events": ["job.progress"]}),
        order(db, tenant_id, 2, {"url": f"{receiver.url}/failing", "events": ["job.progress"]}),
        order(db, tenant_id, 3, {"url": f"{receiver.url}/prediction", "events": ["job.progress"]}, kept),
    ]
    claimed = [claim_grid(db) for _ in jobs]
    grids = {job.id: job.work_ids[0] for job in find_watched(db, 99)}
    assert {*grids.values()} == {grid.id for grid in claimed}
    live = LiveState(redis_url)
    # When two senders run, and workers write progress
    with ExitStack() as stack:
        senders = stack.enter_context(SenderProcesses(nursery, database_url, tmp_path))
        logs = [senders.start(GLMQ_REDIS_URL=redis_url)[1] for _ in range(2)]
        live.write_progress({grids[job_id]: ("grid", 0, 100) for job_id in jobs[1:]})
        done = 0
        while len(receiver.of("/own")) < 3:
            done += 1
            assert done < 400
            live.write_progress({grids[jobs[0]]: ("grid", done, 400)})
            time.sleep(0.05)
        # A word that nobody follows is told as well, and only once.
        live.write_progress({grids[jobs[0]]: ("grid", 400, 400)})
        wait_for(lambda: b'"done":400' in receiver.of("/own")[-1][2] and len(receiver.of("/prediction")) == 1)
        wait_for(lambda: query(db, "SELECT count(*) FROM webhook_delivery WHERE state <> 'delivered'") == [(0,)])
        time.sleep(0.8)
    own = receiver.of("/own")
    # Then it comes signed, at most every half second, each word once
    events = [Webhook(default).verify(body, headers) for _, headers, body in own]
    assert len({headers["webhook-id"] for _, headers, _ in own}) == len(own)
    assert (len(own) - 1) * 0.5 <= own[-1][0] - own[0][0] + 0.1
    steps = [event["data"]["progress"]["done"] for event in events]
    assert steps == sorted(set(steps))
    last = events[-1]
    assert (last["id"], last["object"], last["type"], last["seq"]) == (own[-1][1]["webhook-id"], "event", "job.progress", None)
    state = {"id": jobs[0], "object": "job", "status": "running", "stage": "ar", "version": 2}
    assert last["data"] == {**state, "progress": {"phase": "grid", "done": 400, "total": 400}}
    assert all(headers["X-Attempt"] == "1" for _, headers, _ in own)
    # And by both secrets, under the same id
    for _, headers, body in receiver.of("/named"):
        assert [Webhook(secret).verify(body, headers)["type"] for secret in (old, new)] == ["job.progress"] * 2
    assert {headers["webhook-id"] for _, headers, _ in own} <= {headers["webhook-id"] for _, headers, _ in receiver.of("/named")}
    # And in the other interface's words; what failed was not tried again
    (_, headers, body), *_ = receiver.of("/prediction")
    assert Webhook(default).verify(body, headers)["logs"] == "grid\n0%|          | 0/100\n"
    assert len(receiver.of("/failing")) == 1
    # And nothing is kept, nor told to whoever asked for everything
    assert {json.loads(body)["type"] for _, _, body in receiver.of("/all")} == {"job.queued", "job.started"}
    assert query(db, "SELECT count(*) FROM event WHERE type = 'job.progress'") == [(0,)]
    assert query(db, "SELECT count(DISTINCT url), count(*) FROM webhook_delivery") == [(1, 6)]
    assert query(db, "SELECT consecutive_failures FROM webhook_endpoint WHERE id = :id", id=named) == [(0,)]
    told = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert [(line["status"], "/failing" in str(line)) for line in told if line["event"] == "progress_not_told"] == [(500, False)]
