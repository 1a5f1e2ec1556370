"""Is the process alive, and can it do its work? For supervisors and load balancers; needs no key."""

from __future__ import annotations

from apiflask import APIBlueprint
from flask import Response, jsonify

from services.api.answers import HealthAnswer, ReadyAnswer
from services.api.parts import Parts
from services.api.route_docs import describe
from shared.db import DatabaseDownError
from shared.lifecycle.workers import count_workers
from shared.states import Stage


def health_blueprint(parts: Parts) -> APIBlueprint:
    """`/healthz` and `/readyz`."""
    health = APIBlueprint("health", __name__)

    @health.get("/healthz")
    @health.output(HealthAnswer, description="The process answers.")
    @health.doc(summary="Is the process alive?", operation_id="is_alive")
    def is_alive() -> Response:
        return jsonify({"status": "ok"})

    @health.get("/readyz")
    @health.output(ReadyAnswer, description="Jobs can be submitted.")
    @health.doc(
        summary="Can jobs be submitted?",
        operation_id="is_ready",
        responses=[503],
        extensions=describe(descriptions={"503": "Jobs cannot be submitted now."}, same_as={"503": "200"}),
    )
    def is_ready() -> Response:
        checks = check(parts)
        # Not Redis and not the number of workers: jobs are accepted and kept without either.
        ready = checks["database"] == "ok" and checks["s3"] == "ok" and checks["model"] == "ok"
        response = jsonify({"status": "ready" if ready else "not_ready", "checks": checks})
        response.status_code = 200 if ready else 503
        return response

    return health


def check(parts: Parts) -> dict[str, str | int | None]:
    """
    What works.

    `model` is `ok` once an AR worker has said what it loaded; the counts are of workers seen lately, null without a database.
    """
    checks: dict[str, str | int | None] = {
        "database": "ok",
        "redis": _word(parts.live.is_up()),
        "s3": _word(parts.storage.is_up()),
    }
    try:
        checks["ar_workers"] = count_workers(parts.db, Stage.AR)
        checks["decoder_workers"] = count_workers(parts.db, Stage.DECODER)
        checks["model"] = _word(parts.model.find() is not None)
    except DatabaseDownError:
        checks.update(database="down", ar_workers=None, decoder_workers=None, model="down")
    return checks


def _word(works: bool) -> str:
    return "ok" if works else "down"
