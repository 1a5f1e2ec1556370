"""`POST /v1/estimate`: what a job would cost and when it would be done. Takes what submit takes, and stores nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.answers import BatchEstimateAnswer, EstimateAnswer
from services.api.auth import authenticate
from services.api.batch_schemas import NativeBatchRequest
from services.api.estimate_answers import answer_seconds, fleet_warnings, warning
from services.api.fleet import Fleet
from services.api.job_docs import FORM_EXAMPLE, UPLOADS
from services.api.openai.batch_estimate import BatchEstimateRequest, estimate_batch
from services.api.parts import Parts
from services.api.request_body import read_body
from services.api.route_docs import describe
from services.api.run_time import run_seconds
from services.api.schemas import JobRequest
from services.api.submitting import read_request
from shared.cost import num_ar_tokens
from shared.job_document import timestamp
from shared.lifecycle.estimate import Plan, plan
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.tenants import Caller
from shared.states import Stage

_OVERHEAD_S = 0.3
"""Guess, unmeasured: hand-overs, encoding and upload."""


def estimate_blueprint(parts: Parts) -> APIBlueprint:
    """One route."""
    estimates = APIBlueprint("estimates", __name__)

    @estimates.post("/v1/estimate")
    @estimates.output(EstimateAnswer, description="What it would cost.")
    @estimates.doc(
        summary="Estimate a job or a batch",
        description="Of a batch: the sums over its lines, as if nothing of them were stored already.",
        operation_id="estimate_job",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 422, 503],
        extensions=describe(
            body=(JobRequest, BatchEstimateRequest, NativeBatchRequest),
            content={"200": {"application/json": (EstimateAnswer, BatchEstimateAnswer)}},
            example={"prompt": 'a red fox holding a sign that says "hello"', "size": "1024x768", "n": 4},
            form={"request": JobRequest, "image": UPLOADS},
            form_required=("request",),
            form_example=FORM_EXAMPLE,
            changes_nothing=True,
        ),
    )
    def estimate_one() -> Response:
        caller = authenticate(parts.callers, request, "read")
        body = read_body(request)
        if not body.uploads and ("input_file_id" in body.fields or "items" in body.fields):
            return jsonify(estimate_batch(parts, caller, body.fields))
        read = read_request(parts, caller, body)
        return jsonify(estimate(parts, caller, read.job, len(read.sizes)))

    return estimates


def estimate(parts: Parts, caller: Caller, job: NewJob, num_sources: int) -> dict[str, Any]:
    """The answer for a job that was read and priced."""
    todo = plan(parts.db, job)
    fleet = parts.fleet.get()
    ar_tokens = todo.num_grids * num_ar_tokens(job.grid, num_sources)
    ar_s = 0.0 if not todo.num_grids else _times(todo.num_grids, job.grid_cost_s)
    decoder_s = 0.0 if not todo.num_images else _times(todo.num_images, job.image_cost_s)
    stage = Stage.AR if todo.num_grids else Stage.DECODER
    queue_s = parts.outlook.seconds_ahead(stage, job.priority, datetime.now(UTC)) if todo.num_images else 0.0
    run_s = run_seconds(fleet, job.grid, job.image_cost_s, num_sources, todo.num_grids, todo.num_images)
    run_s = None if run_s is None else run_s + _OVERHEAD_S
    eta = None if queue_s is None or run_s is None else datetime.fromtimestamp(time.time() + queue_s + run_s, UTC)
    return {
        "object": "estimate",
        "cost": {"ar_tokens": ar_tokens, "decoder_steps": todo.num_images * job.steps, "images": todo.num_images},
        **answer_seconds(ar_s, decoder_s, queue_s, run_s),
        "eta": timestamp(eta),
        # Reference images are not stored, so they have no ids yet.
        "params": job.params() | {"images": job.input.get("images", [])},
        "glyph_texts": job.params()["glyph_texts"],
        "warnings": [*job.warnings, *_warnings(fleet, job, todo, eta)],
    }


def _warnings(fleet: Fleet, job: NewJob, todo: Plan, eta: datetime | None) -> Iterator[dict[str, Any]]:
    if todo.num_images:
        yield from fleet_warnings(fleet, is_known=eta is not None)
    if eta is not None and job.deadline is not None and eta > job.deadline - timedelta(seconds=_OVERHEAD_S):
        yield warning("deadline_unmeetable", "The job would probably expire before it is done.")


def _times(count: int, each_s: float | None) -> float | None:
    return None if each_s is None else count * each_s
