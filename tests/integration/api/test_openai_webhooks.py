"""What webhooks say by OpenAI's names: how a batch ended, which of its lines failed, and how a response ended."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from flask.testing import FlaskClient

from services.api.batch_clerk import Clerk
from services.api.parts import Parts
from shared.db import Database
from shared.lifecycle.jobs import expire
from tests.integration.api.conftest import png
from tests.integration.api.openai import draw
from tests.integration.api.test_openai_batches import clerk as clerk
from tests.integration.api.test_openai_batches import line, make, read, work_all
from tests.integration.api.test_openai_responses import respond
from tests.ledger import execute, query

PICTURE = png(64, 64)


def listen(client: FlaskClient, *events: str) -> None:
    answer = client.post("/v1/webhook_endpoints", json={"url": "https://hooks.example/openai", "event_types": list(events)})
    assert answer.status_code == 200, answer.get_json()


def heard(db: Database) -> list[tuple[str, dict[str, Any]]]:
    """Type and data of what is to be delivered, in the order of the events."""
    found = query(db, "SELECT type, data FROM event JOIN webhook_delivery ON event_id = event.id ORDER BY seq")
    return [(kind, json.loads(data) if isinstance(data, str) else data) for kind, data in found]


def test_a_batch_that_ends(client: FlaskClient, clerk: Clerk, db: Database, parts: Parts) -> None:
    """Each failed line is told when it fails, and the end with its files; both once, whatever the clerk does twice."""
    listen(client, "batch.*")
    batch = make(client, [line("good"), line("doomed"), line("gone")])
    clerk.work()
    execute(db, "UPDATE batch_item SET request = '{\"prompt\": \"\"}' WHERE custom_id = 'gone'")
    clerk.work()
    draw(db, parts.storage, PICTURE)
    work_all(clerk)
    done = read(client, batch)
    jobs = {job["custom_id"]: job["id"] for job in client.get("/v1/jobs").get_json()["data"]}
    of_batch = {"id": batch["id"], "object": "batch"}
    counts = {"total": 3, "completed": 1, "failed": 2}
    files = {name: done[name] for name in ("output_file_id", "error_file_id")}
    assert heard(db) == [
        ("batch.item_failed", {**of_batch, "error": {"code": "invalid_request"}, "line": 3}),
        ("batch.item_failed", {**of_batch, "error": {"code": "unprocessable_prompt"}, "job_id": jobs["doomed"]}),
        ("batch.completed", {**of_batch, "status": "completed", "request_counts": counts, **files}),
        ("batch.partial", {**of_batch, "status": "completed", "request_counts": counts, **files}),
    ]
    assert None not in files.values()


def test_batches_that_end_otherwise(client: FlaskClient, clerk: Clerk, db: Database) -> None:
    """Failed, canceled (in OpenAI's spelling, too) and expired."""
    listen(client, "batch.*")
    make(client, [b"{"])
    work_all(clerk)
    canceled = make(client, [line("a")])
    clerk.work()
    client.post(f"/v1/batches/{canceled['id']}/cancel")
    work_all(clerk)
    make(client, [line("a")])
    clerk.work()
    execute(db, "UPDATE batch SET expires_at = now() WHERE status = 'running'")
    work_all(clerk)
    assert [kind for kind, _ in heard(db)] == ["batch.failed", "batch.canceled", "batch.cancelled", "batch.expired"]


def test_responses_that_end(client: FlaskClient, db: Database, parts: Parts) -> None:
    """By the response's id; jobs of other interfaces are no responses, and a job's own events stay one each."""
    listen(client, "response.*")
    good, doomed, late, unwanted = (
        respond(client, background=True, input=prompt).get_json()["id"] for prompt in ("good", "doomed", "late", "unwanted")
    )
    client.post("/v1/jobs", json={"prompt": "native", "size": "64x64"})
    client.post(f"/v1/responses/{unwanted}/cancel")
    execute(db, f"UPDATE job SET deadline = clock_timestamp(), version = version + 1 WHERE id = '{late.replace('resp_', 'job_')}'")
    expire(db)
    draw(db, parts.storage, PICTURE)
    found = {data["id"]: (kind, data["object"], data["status"]) for kind, data in heard(db)}
    assert found == {
        good: ("response.completed", "response", "completed"),
        doomed: ("response.failed", "response", "failed"),
        late: ("response.incomplete", "response", "incomplete"),
        unwanted: ("response.cancelled", "response", "cancelled"),
    }
    assert len(heard(db)) == 4
    ends = Counter(query(db, "SELECT job_id FROM event WHERE type ~ '^job.(succeeded|failed|canceled|expired)$'"))
    assert set(ends.values()) == {1}
    seqs = [seq for (seq,) in query(db, "SELECT seq FROM event ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))
