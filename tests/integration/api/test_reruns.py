"""Retry and erase over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle import claims, work
from shared.progress import LiveState
from shared.states import Stage
from shared.storage import Storage
from tests.integration.api.conftest import Account, assert_problem, client_of, finish_jobs, png


def test_retry(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """202 and the same job, queued; the word to stop that its cancel sent is taken back, so that workers do not obey it."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w", 30)
    assert grid is not None
    client.post(f"/v1/jobs/{job['id']}/cancel")
    live = LiveState(settings.redis_url.get_secret_value())
    assert live.read_stops([grid.id]) == {grid.id}
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    again = answer.get_json()
    assert (answer.status_code, again["id"], again["status"], again["error"]) == (202, job["id"], "queued", None)
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["Retry-After"].isdigit()
    assert live.read_stops([grid.id]) == set()
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    done = client.get(f"/v1/jobs/{job['id']}").get_json()
    assert done["status"] == "succeeded"
    assert [attempt["attempt"] for attempt in done["attempts"]] == [1, 2, 1]
    assert_problem(client.post(f"/v1/jobs/{job['id']}/retry"), 409, "not_retryable")


def test_retry_with_a_deadline(client: FlaskClient) -> None:
    """A deadline for the new run, checked as on submit; unknown fields are refused."""
    job_id = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["id"]
    assert_problem(client.post(f"/v1/jobs/{job_id}/retry"), 409, "not_retryable")
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert_problem(client.post(f"/v1/jobs/{job_id}/retry", json={"deadline": "2000-01-01T00:00:00Z"}), 400, "invalid_request", "deadline")
    assert_problem(client.post(f"/v1/jobs/{job_id}/retry", json={"dedline": "x"}), 400, "invalid_request", "dedline")
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    answer = client.post(f"/v1/jobs/{job_id}/retry", json={"deadline": soon})
    assert answer.status_code == 202
    assert answer.get_json()["deadline"] is not None


def test_a_streams_client_sees_the_second_run(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """After a retry the stream goes on past the first end, and its client is told 204 only after the second."""
    stream = {"Accept": "text/event-stream"}
    job_id = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    path = f"/v1/jobs/{job_id}/events"
    assert client.get(path, headers={**stream, "Last-Event-ID": "2"}).status_code == 204
    client.post(f"/v1/jobs/{job_id}/retry")
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    for cursor, kinds in (("0", ["job.queued", "job.canceled", "job.queued"]), ("2", ["job.queued"])):
        sent = client.get(path, headers={**stream, "Last-Event-ID": cursor}).get_data(as_text=True)
        found = [line.removeprefix("event: ") for line in sent.split("\n") if line.startswith("event: ")]
        assert found == ["job.snapshot", *kinds, "job.started", "job.tokens_ready", "job.succeeded"]


def test_delete(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """200, and from then on 410 wherever the job is named; its events have numbers and no content; lists leave it out."""
    job_id = client.post("/v1/jobs", json={"prompt": "ZEBRA"}, headers={"Idempotency-Key": "k"}).get_json()["id"]
    finish_jobs(db, Storage(settings), account.tenant_id, png())
    answer = client.delete(f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.get_json()) == (200, {"id": job_id, "object": "job", "deleted": True})
    assert client.delete(f"/v1/jobs/{job_id}").get_json() == answer.get_json()
    for method, path in (
        ("get", ""),
        ("get", "?wait=20"),
        ("get", "/events"),
        ("get", "/images"),
        ("get", "/images/0"),
        ("post", "/cancel"),
        ("post", "/retry"),
        ("post", "/approve"),
        ("post", "/reject"),
        ("post", "/redecode"),
    ):
        assert_problem(getattr(client, method)(f"/v1/jobs/{job_id}{path}"), 410, "gone")
    replay = client.post("/v1/jobs", json={"prompt": "ZEBRA"}, headers={"Idempotency-Key": "k"})
    assert_problem(replay, 410, "gone")
    assert client.get("/v1/jobs").get_json()["data"] == []
    feed = client.get("/v1/events")
    assert "ZEBRA" not in feed.get_data(as_text=True)
    assert [event["seq"] for event in feed.get_json()["data"]] == [1, 2, 3, 4]
    assert feed.get_json()["data"][0]["data"] == {"id": job_id, "object": "job", "erased": True}


def test_delete_of_a_running_job(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """It is canceled first: its worker is told to stop."""
    job_id = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["id"]
    work.release(db, Stage.AR, 10)
    grid = claims.claim_grid(db, "w", 30)
    assert grid is not None
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    assert LiveState(settings.redis_url.get_secret_value()).read_stops([grid.id]) == {grid.id}


def test_strangers_and_readers_may_not(client: FlaskClient, app: APIFlask, account: Account, stranger: Account) -> None:
    """Another tenant's job is not there; a key that only reads may neither retry nor erase."""
    job_id = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["id"]
    other, reader = client_of(app, stranger.keys["admin"]), client_of(app, account.keys["read"])
    for call in ("post", f"/v1/jobs/{job_id}/retry"), ("delete", f"/v1/jobs/{job_id}"):
        assert_problem(getattr(other, call[0])(call[1]), 404, "not_found")
        assert_problem(getattr(reader, call[0])(call[1]), 403, "forbidden_scope")
    assert client.get(f"/v1/jobs/{job_id}").get_json()["status"] == "queued"
