"""`GET /metrics`: what operators' Prometheus reads. Counts that every API process sees alike; no ids and no tenants in labels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from apiflask import APIBlueprint
from flask import Response, request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from services.api.auth import authenticate
from services.api.parts import Parts
from services.api.route_docs import describe
from shared.lifecycle.counts import Counts, read_counts
from shared.lifecycle.workers import count_workers
from shared.states import Stage

_KEPT_S = 10.0
"""Several Prometheus servers, and API processes, cost the ledger no more than one each."""
_EXAMPLE = (
    "# HELP glmq_queue_depth Layouts and images that could be begun.\n# TYPE glmq_queue_depth gauge\n"
    'glmq_queue_depth{class="standard",stage="ar"} 12.0\n'
)


def metrics_blueprint(parts: Parts) -> APIBlueprint:
    """One route."""
    metrics = APIBlueprint("metrics", __name__)
    registry = CollectorRegistry()
    registry.register(_Gauges(parts))

    @metrics.get("/metrics")
    @metrics.doc(
        summary="Get metrics (Prometheus)",
        description="For operators; for everybody with `GLMQ_METRICS=everybody`.",
        operation_id="get_metrics",
        security="ApiKey",
        responses=[200, 401, 403, 503],
        extensions=describe(content={"200": {"text/plain": {"type": "string", "example": _EXAMPLE}}}, descriptions={"200": "Metrics."}),
    )
    def get_metrics() -> Response:
        if parts.settings.metrics == "operators":
            authenticate(parts.callers, request, "operator")
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return metrics


class _Gauges(Collector):
    """The numbers as they were a few seconds ago at most. Thread-safe."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._counts: tuple[Counts, dict[Stage, int]] | None = None
        self._good_until = 0.0

    def describe(self) -> list[Metric]:
        """Nothing is read when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """
        Raises:
            DatabaseDownError
        """
        counts, workers = self._read()
        depth = GaugeMetricFamily("glmq_queue_depth", "Layouts and images that could be begun.", labels=["class", "stage"])
        oldest = GaugeMetricFamily("glmq_queue_oldest_age_seconds", "For how long the first of them has waited.", labels=["class", "stage"])
        for one in counts.waiting:
            depth.add_metric([one.lane, one.stage], one.count)
            oldest.add_metric([one.lane, one.stage], one.oldest_s)
        jobs = GaugeMetricFamily("glmq_jobs_last_day", "Jobs that came in the last 24 hours, by their status now.", labels=["status"])
        for status, count in counts.jobs.items():
            jobs.add_metric([status], count)
        alive = GaugeMetricFamily("glmq_workers", "Workers that were seen lately.", labels=["stage"])
        for stage, count in workers.items():
            alive.add_metric([stage], count)
        yield from (depth, oldest, jobs, alive)
        yield GaugeMetricFamily("glmq_outbox_pending", "Webhook deliveries on their way.", value=counts.num_deliveries)

    def _read(self) -> tuple[Counts, dict[Stage, int]]:
        with self._lock:
            if self._counts is None or time.monotonic() >= self._good_until:
                db = self._parts.db
                self._counts = read_counts(db), {stage: count_workers(db, stage) for stage in Stage}
                self._good_until = time.monotonic() + _KEPT_S
            return self._counts
