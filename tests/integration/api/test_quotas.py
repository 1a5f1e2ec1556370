"""Limits over HTTP: what is refused, what every answer tells of what is left, and what happens while Redis is away."""

from __future__ import annotations

import time
from typing import Any

import http_sfv
import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from pydantic import SecretStr

from services.api.settings import ApiSettings
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.lifecycle.tenants import limit_tenant
from tests.integration.api.conftest import Account, client_of, open_app
from tests.ledger import at_once, execute, query

FOX = {"prompt": "a fox"}
QUOTA_TYPE = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def parsed(answer: Any, header: str) -> dict[str, dict[str, Any]]:
    """A list of structured fields: the parameters of each item, by its string."""
    items = http_sfv.List()
    items.parse(answer.headers[header].encode())
    return {str(item.value): dict(item.params) for item in items}


def assert_refused(answer: Any, status: int, code: str, policy: str) -> int:
    """A refusal by this policy; the seconds until it asks to come back."""
    body = answer.get_json(force=True)
    assert (answer.status_code, body["code"], body["violated-policies"]) == (status, code, [policy])
    assert body["type"] == QUOTA_TYPE
    assert body["retryable"]
    assert policy in parsed(answer, "RateLimit-Policy")
    left = parsed(answer, "RateLimit")[policy]
    assert left["r"] == 0
    retry_after = int(answer.headers["Retry-After"])
    assert retry_after >= max(1, left.get("t", 0))
    return retry_after


def test_requests_per_minute(client: FlaskClient, db: Database, account: Account) -> None:
    """So many requests that make jobs are let through, valid or not; the rest is told when to come back. Reading is free."""
    limit_tenant(db, account.tenant_id, {"requests_per_minute": 3})
    for left in (2, 1, 0):
        answer = client.post("/v1/jobs", json=FOX if left else {"prompt": 1})
        assert answer.status_code == (202 if left else 400)
        assert parsed(answer, "RateLimit-Policy")["create"] == {"q": 3, "w": 60}
        create = parsed(answer, "RateLimit")["create"]
        assert create["r"] == left
        assert 1 <= create["t"] <= 60
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["x-ratelimit-reset-requests"] == f"{create['t']}s"
    refused = client.post("/v1/jobs", json=FOX)
    assert 1 <= assert_refused(refused, 429, "too_many_requests", "create") <= 60
    assert refused.get_json(force=True)["error"]["type"] == "rate_limit_error"
    job = client.get("/v1/jobs").get_json()["data"][0]
    assert_refused(client.post(f"/v1/jobs/{job['id']}/redecode", json={}), 429, "too_many_requests", "create")
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 200
    assert client.get("/v1/usage").get_json()["limits"]["requests_per_minute"] == 3


def test_requests_are_counted_without_redis(settings: ApiSettings, db: Database, account: Account, model: ModelInfo) -> None:
    """While Redis is away submits go on within the same bound, and none waits for Redis."""
    limit_tenant(db, account.tenant_id, {"requests_per_minute": 2})
    with open_app(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})) as app:
        client = client_of(app, account.keys["submit"])
        began = time.monotonic()
        assert [client.post("/v1/jobs", json=FOX).status_code for _ in range(4)] == [202, 202, 429, 429]
        assert time.monotonic() - began < 15


def test_queue_is_bounded(client: FlaskClient, app: APIFlask, db: Database, account: Account) -> None:
    """Of twenty submits at once with room for five, five are accepted; a cancel makes room for one."""
    limit_tenant(db, account.tenant_id, {"max_queued": 5})
    clients = [client_of(app, account.keys["submit"]) for _ in range(20)]
    answers = at_once([lambda one=one: one.post("/v1/jobs", json=FOX) for one in clients])
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) == 5
    for answer in answers:
        if answer.status_code != 202:
            assert_refused(answer, 429, "queue_full", "queued")
    # What is left when the answer is written: submits that were written together have all counted by then.
    left = [parsed(answer, "RateLimit")["queued"]["r"] for answer in accepted]
    assert min(left) == 0
    assert max(left) <= 4
    assert client.get("/v1/usage").get_json()["queued"] == 5
    client.post(f"/v1/jobs/{accepted[0].get_json()['id']}/cancel")
    assert client.post("/v1/jobs", json=FOX).status_code == 202
    assert_refused(client.post("/v1/jobs", json=FOX), 429, "queue_full", "queued")


def test_replay_is_answered_though_the_queue_is_full(client: FlaskClient, db: Database, account: Account) -> None:
    """Who repeats a request that was accepted gets its job, not a refusal."""
    headers = {"Idempotency-Key": "one"}
    first = client.post("/v1/jobs", json=FOX, headers=headers)
    limit_tenant(db, account.tenant_id, {"max_queued": 1})
    again = client.post("/v1/jobs", json=FOX, headers=headers)
    assert (again.status_code, again.get_json()["id"]) == (200, first.get_json()["id"])
    assert_refused(client.post("/v1/jobs", json=FOX, headers={"Idempotency-Key": "two"}), 429, "queue_full", "queued")


def test_seconds_per_day(client: FlaskClient, db: Database, account: Account) -> None:
    """When the day's seconds are used up, nothing is accepted until midnight UTC."""
    limit_tenant(db, account.tenant_id, {"gpu_seconds_per_day": 100})
    answer = client.post("/v1/jobs", json=FOX)
    assert parsed(answer, "RateLimit-Policy")["gpu-seconds"] == {"q": 100, "qu": "gpu-seconds", "w": 86400}
    assert parsed(answer, "RateLimit")["gpu-seconds"]["r"] == 100
    execute(
        db,
        "INSERT INTO usage (tenant_id, stage, work_id, units, seconds) VALUES (:id, 'ar', 'x', 1, 99.5), (:id, 'decoder', 'y', 1, 1)",
        id=account.tenant_id,
    )
    seconds = assert_refused(client.post("/v1/jobs", json=FOX), 402, "budget_exhausted", "gpu-seconds")
    assert 1 <= seconds <= 86400
    used = client.get("/v1/usage").get_json()
    assert used["today"]["gpu_seconds"] == 100.5
    assert used["today"]["began_at"].endswith("T00:00:00.000Z")


def test_a_warning_when_most_is_used(client: FlaskClient, app: APIFlask, db: Database, account: Account) -> None:
    """From four fifths of a limit on there is an event, once a day for each limit, however many submits notice at once."""
    client.post("/v1/webhook_endpoints", json={"url": "https://hooks.example/", "event_types": ["quota.*"]})
    limit_tenant(db, account.tenant_id, {"max_queued": 5, "requests_per_minute": 100})

    def told() -> list[dict[str, Any]]:
        return [event["data"] for event in client.get("/v1/events?types=quota.warning").get_json()["data"]]

    for _ in range(3):
        client.post("/v1/jobs", json=FOX)
    assert told() == []
    clients = [client_of(app, account.keys["submit"]) for _ in range(4)]
    at_once([lambda one=one: one.post("/v1/jobs", json=FOX) for one in clients])
    assert [(event["object"], event["limit"], event["most"]) for event in told()] == [("quota", "max_queued", 5)]
    assert told()[0]["used"] in (4, 5)
    assert query(db, "SELECT count(*)::int FROM webhook_delivery") == [(1,)]
    app.extensions["glmq"].quotas._warned.clear()
    limit_tenant(db, account.tenant_id, {"max_queued": 6, "gpu_seconds_per_day": 100})
    execute(db, "INSERT INTO usage (tenant_id, stage, work_id, units, seconds) VALUES (:id, 'ar', 'x', 1, 85)", id=account.tenant_id)
    assert client.post("/v1/jobs", json=FOX).status_code == 202
    assert [event["limit"] for event in told()] == ["max_queued", "gpu_seconds_per_day"]


def test_no_limits_tell_nothing(settings: ApiSettings, db: Database, account: Account, model: ModelInfo) -> None:
    """Where there is no limit there is no header, and an operator may lift each one."""
    limit_tenant(db, account.tenant_id, {"max_queued": 0})
    with open_app(settings) as app:
        answer = client_of(app, account.keys["submit"]).post("/v1/jobs", json=FOX)
    assert answer.status_code == 202
    assert not [name for name in answer.headers.keys() if "ratelimit" in name.lower()]  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/usage"])
def test_reading_is_not_counted(client: FlaskClient, db: Database, account: Account, path: str) -> None:
    """Polling does not use up what submits need."""
    limit_tenant(db, account.tenant_id, {"requests_per_minute": 1})
    assert [client.get(path).status_code for _ in range(3)] == [200] * 3
    assert client.post("/v1/jobs", json=FOX).status_code == 202
