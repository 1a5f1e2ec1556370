"""`/metrics`: true numbers, in the form that Prometheus reads, for operators."""

from __future__ import annotations

from apiflask import APIFlask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from services.api.settings import ApiSettings
from shared.db import Database
from tests.integration.api.conftest import Account, assert_problem, client_of, open_app
from tests.ledger import execute


def samples(client: FlaskClient) -> dict[tuple[str, ...], float]:
    """The values by name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.get_data(as_text=True)))
    assert all(family.documentation and family.name.startswith("glmq_") for family in families)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_metrics(client: FlaskClient, db: Database, settings: ApiSettings, app: APIFlask, account: Account, workers: None) -> None:
    """What waits by lane and stage and for how long, jobs of the day by status, deliveries and workers; all there, at 0 too."""
    client.post("/v1/jobs", json={"prompt": "a fox", "n": 2, "priority": "bulk"})
    client.post("/v1/jobs", json={"prompt": "a cat", "webhook": {"url": "https://hooks.example/", "events": ["job.queued"]}})
    canceled = client.post("/v1/jobs", json={"prompt": "a cow"}).get_json()
    client.post(f"/v1/jobs/{canceled['id']}/cancel")
    execute(db, "UPDATE grid SET created_at = created_at - interval '1 min' WHERE lane = 2")
    assert_problem(client.get("/metrics"), 403, "forbidden_scope")
    found = samples(client_of(app, account.keys["operator"]))
    assert {lane: found["glmq_queue_depth", lane, "ar"] for lane in ("interactive", "standard", "bulk")} == {
        "interactive": 0,
        "standard": 1,
        "bulk": 2,
    }
    assert 60 <= found["glmq_queue_oldest_age_seconds", "bulk", "ar"] < 90
    assert found["glmq_queue_depth", "standard", "decoder"] == 0
    by_status = [found["glmq_jobs_last_day", status] for status in ("queued", "canceled", "failed")]
    assert by_status == [2, 1, 0]
    assert (found["glmq_workers", "ar"], found["glmq_workers", "decoder"], found["glmq_outbox_pending",]) == (1, 1, 1)


def test_metrics_for_everybody(settings: ApiSettings, db: Database) -> None:
    """Where the operator says so, no key is asked for."""
    with open_app(settings.model_copy(update={"metrics": "everybody"})) as app:
        assert samples(app.test_client())["glmq_outbox_pending",] == 0
    with open_app(settings) as app:
        assert_problem(app.test_client().get("/metrics"), 401, "unauthorized")
