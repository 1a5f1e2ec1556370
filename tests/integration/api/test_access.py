"""Who may do what, and what the routes without jobs say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import text

from shared.checkpoint import ModelInfo
from shared.db import Database
from tests.integration.api.conftest import Account, assert_problem, client_of

_JOB_ROUTES = (
    ("get", ""),
    ("post", "/cancel"),
    ("post", "/redecode"),
    ("post", "/approve"),
    ("post", "/reject"),
    ("get", "/images"),
    ("get", "/images/0"),
)


def test_foreign_ids_are_unknown_ids(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """Another tenant's job answers as one that never was, on every route; so does a malformed id."""
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["id"]
    other = client_of(app, stranger.keys["admin"])
    unknown = "job_" + "0" * 26
    for method, path in _JOB_ROUTES:
        bodies = []
        for job_id in (job, unknown, "job_x", "img_" + job[4:], "%00", "x" * 300, "job_é"):
            body = assert_problem(getattr(other, method)(f"/v1/jobs/{job_id}{path}"), 404, "not_found")
            bodies.append((body["detail"], body["title"], body["errors"]))
        assert len(set(map(str, bodies))) == 1, bodies
    assert other.get("/v1/jobs").get_json()["data"] == []
    assert_problem(other.get(f"/v1/jobs?after={job}"), 400, "invalid_request", "after")


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("read", {"read"}),
        ("submit", {"read", "submit"}),
        ("admin", {"read", "submit"}),
    ],
)
def test_scopes(app: APIFlask, account: Account, model: ModelInfo, scope: str, allowed: set[str]) -> None:
    """A key does what its scope says and gets 403 for the rest; submit may also read, admin may everything."""
    client = client_of(app, account.keys[scope])
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("read", lambda: client.get("/v1/jobs")),
        ("read", lambda: client.get("/v1/models")),
        ("submit", lambda: client.post("/v1/jobs", json={"prompt": "a fox"})),
        ("submit", lambda: client.get("/v1/webhooks/default/secret")),
    ]
    for needed, call in calls:
        if needed in allowed:
            assert call().status_code in (200, 202)
        else:
            assert_problem(call(), 403, "forbidden_scope")


def test_every_route_needs_a_key(app: APIFlask, account: Account) -> None:
    """Without a key, with a wrong one or a revoked one: 401 on every route, except those that say nothing of anybody."""
    from_outside = {"/healthz", "/readyz", "/openapi.json", "/problems", "/problems/<slug>", "/docs", "/docs/start.js", "/docs/<name>"}
    key = account.keys["admin"]
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    headers = [
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": f"Basic {key}"},
        {"Authorization": f"Bearer {wrong}"},
        {"Authorization": key},
    ]
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            path = rule.rule.replace("<job_id>", "job_" + "0" * 26).replace("<index>", "0")
            if rule.rule in from_outside:
                continue
            for header in headers:
                answer = app.test_client().open(path, method=method, headers=header)
                assert_problem(answer, 401, "unauthorized")
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="glmq"'


def test_revoked_key_stops_at_once(client: FlaskClient, db: Database) -> None:
    """A revoked key is refused from then on."""
    assert client.get("/v1/jobs").status_code == 200
    db.run(lambda session: session.execute(text("UPDATE api_key SET revoked_at = now()")))
    assert_problem(client.get("/v1/jobs"), 401, "unauthorized")


def test_webhook_secret_is_the_tenants(client: FlaskClient, account: Account) -> None:
    """The default secret is handed out as it was made."""
    assert client.get("/v1/webhooks/default/secret").get_json() == {"key": account.secret}


def test_webhook_is_stored_with_every_event_named(client: FlaskClient, db: Database, account: Account) -> None:
    """A webhook without events hears of the end, whichever it is."""
    for webhook in ("https://hooks.example/x", {"url": "https://unknown.example/"}):
        assert client.post("/v1/jobs", json={"prompt": "a fox", "webhook": webhook}).status_code == 202
    stored = db.run(lambda session: list(session.scalars(text("SELECT webhook FROM job ORDER BY id"))))
    assert [hook["url"] for hook in stored] == ["https://hooks.example/x", "https://unknown.example/"]
    assert stored[0]["events"] == ["job.canceled", "job.expired", "job.failed", "job.succeeded"]


def test_models(client: FlaskClient, model: ModelInfo) -> None:
    """The loaded model is listed with its defaults and limits."""
    [listed] = client.get("/v1/models").get_json()["data"]
    assert (listed["id"], listed["revision"]) == (model.name, model.revision)
    assert listed["defaults"]["size"] == "128x128"
    assert listed["loras"] == ["neon", "sketch"]
    assert (listed["limits"]["max_side"], listed["limits"]["max_generated_side"]) == (512, None)
    assert listed["limits"]["source_max_bytes"] == 20 << 20


def test_without_a_model_nothing_can_be_asked(app: APIFlask, account: Account) -> None:
    """Before any AR worker reported, a submit is 503 with Retry-After, and readiness says why."""
    client = client_of(app, account.keys["submit"])
    answer = client.post("/v1/jobs", json={"prompt": "a fox"})
    body = assert_problem(answer, 503, "engine_unavailable")
    assert "no AR worker has reported its model yet" in body["detail"]
    assert body["retryable"]
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/v1/models").get_json()["data"] == []
    ready = client.get("/readyz")
    assert (ready.status_code, ready.get_json()["checks"]["model"]) == (503, "down")


def test_readiness(client: FlaskClient) -> None:
    """With every store up and a model known the API is ready, and counts the workers."""
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.get_json() == {
        "status": "ready",
        "checks": {"database": "ok", "redis": "ok", "s3": "ok", "ar_workers": 1, "decoder_workers": 0, "model": "ok"},
    }
