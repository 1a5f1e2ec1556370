"""`GET /v1/usage`: what the tenant has in the queue and at work, what it used today, and what it may use."""

from __future__ import annotations

from dataclasses import asdict

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.auth import authenticate
from services.api.parts import Parts
from services.api.tenant_schemas import UsageAnswer
from shared.job_document import timestamp
from shared.lifecycle.quotas import tenant_usage


def usage_blueprint(parts: Parts) -> APIBlueprint:
    """The caller's own tenant, and no other."""
    usage = APIBlueprint("usage", __name__)

    @usage.get("/v1/usage")
    @usage.output(UsageAnswer, description="What is used, and what may be.")
    @usage.doc(summary="Get your usage and limits", operation_id="get_usage", security="ApiKey", responses=[401, 403, 503])
    def get_usage() -> Response:
        caller = authenticate(parts.callers, request, "read")
        used = tenant_usage(parts.db, caller.tenant_id)
        return jsonify(
            {
                "object": "usage",
                "tenant_id": caller.tenant_id,
                "queued": used.num_queued,
                "running": used.num_running,
                "in_hand": used.num_in_hand,
                "today": {
                    "began_at": timestamp(used.day_began_at),
                    "ends_at": timestamp(used.day_ends_at),
                    "gpu_seconds": round(used.gpu_seconds, 3),
                    "predicted_gpu_seconds": round(used.predicted_s, 3),
                },
                "limits": asdict(parts.quotas.limits_of(caller)),
            }
        )

    return usage
