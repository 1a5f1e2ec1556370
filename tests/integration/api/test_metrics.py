"""`/metrics`: true numbers, in the form that Prometheus reads, for operators."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apiflask import APIFlask
from flask.testing import FlaskClient
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from services.api.settings import ApiSettings
from shared.db import Database
from tests.integration.api.conftest import Account, assert_problem, client_of, open_app
from tests.ledger import execute

NO_UNITS = {"ms", "milliseconds", "minutes", "hours", "days", "percent", "kilobytes", "kb", "mb", "gb", "bits"}
"""Prometheus counts in base units: seconds, bytes, ratios."""
TYPES = {"gauge", "counter", "summary", "histogram"}
ENDLESS = {"id", "job_id", "tenant", "tenant_id", "worker", "worker_id", "url", "path"}
"""What a label may not tell apart: a series of its own for each costs Prometheus its memory."""


def lint(family: Metric) -> Iterator[str]:
    """What `promtool check metrics` would say, and what the house forbids of labels."""
    words = set(family.name.split("_"))
    if not re.fullmatch("glmq_[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name):
        yield f"{family.name}: no name of ours in snake case"
    if not family.documentation.strip():
        yield f"{family.name}: no help text"
    if family.type not in TYPES:
        yield f"{family.name}: no type"
    if words & NO_UNITS:
        yield f"{family.name}: not in base units"
    if words & TYPES:
        yield f"{family.name}: has its type in its name"
    for sample in family.samples:
        if (family.type == "counter") != sample.name.endswith("_total"):
            yield f"{sample.name}: counters, and they alone, end in _total"
        if family.type != "histogram" and sample.name.endswith(("_bucket", "_count", "_sum")):
            yield f"{sample.name}: ends as parts of a histogram do"
        if any(not re.fullmatch("[a-z][a-z_]*", label) or label in ENDLESS for label in sample.labels):
            yield f"{sample.name}: a label of {sorted(sample.labels)}"


def test_the_lint_finds_what_is_wrong() -> None:
    """Each rule, by something that breaks it."""
    wrong = [
        GaugeMetricFamily("glmq_wait_ms", "Wait."),
        GaugeMetricFamily("glmq_queue_gauge", "Queue."),
        GaugeMetricFamily("queue", "Queue."),
        GaugeMetricFamily("glmq_queue", ""),
        GaugeMetricFamily("glmq_jobs_total", "Jobs.", value=1),
        GaugeMetricFamily("glmq_jobs_count", "Jobs.", value=1),
    ]
    labelled = GaugeMetricFamily("glmq_jobs", "Jobs.", labels=["tenant"])
    labelled.add_metric(["acme"], 1)
    assert [len(list(lint(family))) for family in [*wrong, labelled]] == [1] * 7
    counted = CounterMetricFamily("glmq_jobs", "Jobs.", value=1)
    assert list(lint(counted)) == []


def samples(client: FlaskClient) -> dict[tuple[str, ...], float]:
    """The values by name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.get_data(as_text=True)))
    assert [problem for family in families for problem in lint(family)] == []
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
