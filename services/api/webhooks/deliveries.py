"""What became of webhook deliveries, over HTTP, and sending them once more."""

from __future__ import annotations

from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.auth import authenticate
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.request_body import read_query
from services.api.route_docs import describe
from services.api.webhooks.found import found
from services.api.webhooks.schemas import (
    AllDeliveriesQuery,
    DeliveryAnswer,
    DeliveryDetailAnswer,
    DeliveryListAnswer,
    DeliveryQuery,
    ReplayAnswer,
    ReplayQuery,
)
from shared.errors import RequestError
from shared.ids import is_id
from shared.lifecycle.delivery_log import DeliveryFilter, get_delivery, list_deliveries, replay_delivery, replay_range
from shared.lifecycle.endpoints import get_endpoint
from shared.lifecycle.tenants import Caller
from shared.wakeup import Topic


def webhook_deliveries_blueprint(parts: Parts) -> APIBlueprint:
    """The routes of deliveries: of one endpoint, and of a tenant, to wherever they go."""
    deliveries = APIBlueprint("webhook_deliveries", __name__)

    @deliveries.get("/v1/webhook_deliveries")
    @deliveries.output(DeliveryListAnswer, description="A page of deliveries.")
    @deliveries.doc(
        summary="List webhook deliveries, to endpoints and to jobs' own URLs",
        operation_id="list_webhook_deliveries",
        security="ApiKey",
        responses=[400, 401, 403, 503],
        extensions=describe(query=AllDeliveriesQuery, headers={"200": ("Link",)}),
    )
    def list_all() -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, AllDeliveriesQuery)
        return _page(parts, caller, query, query.endpoint)

    @deliveries.get("/v1/webhook_deliveries/<delivery_id>")
    @deliveries.output(DeliveryDetailAnswer, description="The delivery, with what was sent and every attempt.")
    @deliveries.doc(
        summary="Get a webhook delivery", operation_id="get_webhook_delivery", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def get_any(delivery_id: str) -> Response:
        return _detail(parts, delivery_id, None)

    @deliveries.post("/v1/webhook_deliveries/<delivery_id>/replay")
    @deliveries.output(DeliveryAnswer, status_code=202, description="It goes out once more, with the same id and bytes.")
    @deliveries.doc(
        summary="Replay a webhook delivery",
        operation_id="replay_webhook_delivery",
        security="ApiKey",
        responses=[401, 403, 404, 422, 503],
    )
    def replay_any(delivery_id: str) -> Response:
        return _replay(parts, delivery_id, None)

    @deliveries.get("/v1/webhook_endpoints/<endpoint_id>/deliveries")
    @deliveries.output(DeliveryListAnswer, description="A page of deliveries.")
    @deliveries.doc(
        summary="List the deliveries of a webhook endpoint",
        operation_id="list_endpoint_deliveries",
        security="ApiKey",
        responses=[400, 401, 403, 404, 503],
        extensions=describe(query=DeliveryQuery, headers={"200": ("Link",)}),
    )
    def list_of_endpoint(endpoint_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, DeliveryQuery)
        found(get_endpoint(parts.db, caller.tenant_id, endpoint_id) if is_id(endpoint_id, "we") else None)
        return _page(parts, caller, query, endpoint_id)

    @deliveries.get("/v1/webhook_endpoints/<endpoint_id>/deliveries/<delivery_id>")
    @deliveries.output(DeliveryDetailAnswer, description="The delivery, with what was sent and every attempt.")
    @deliveries.doc(
        summary="Get a delivery of a webhook endpoint",
        operation_id="get_endpoint_delivery",
        security="ApiKey",
        responses=[401, 403, 404, 503],
    )
    def get_of_endpoint(endpoint_id: str, delivery_id: str) -> Response:
        return _detail(parts, delivery_id, endpoint_id)

    @deliveries.post("/v1/webhook_endpoints/<endpoint_id>/deliveries/<delivery_id>/replay")
    @deliveries.output(DeliveryAnswer, status_code=202, description="It goes out once more, with the same id and bytes.")
    @deliveries.doc(
        summary="Replay a delivery of a webhook endpoint",
        operation_id="replay_endpoint_delivery",
        security="ApiKey",
        responses=[401, 403, 404, 422, 503],
    )
    def replay_of_endpoint(endpoint_id: str, delivery_id: str) -> Response:
        return _replay(parts, delivery_id, endpoint_id)

    @deliveries.post("/v1/webhook_endpoints/<endpoint_id>/replay")
    @deliveries.output(ReplayAnswer, status_code=202, description="How many go out once more, oldest first.")
    @deliveries.doc(
        summary="Replay the events of a time range to a webhook endpoint",
        operation_id="replay_webhook_endpoint",
        security="ApiKey",
        responses=[400, 401, 403, 404, 422, 503],
        extensions=describe(query=ReplayQuery),
    )
    def replay_of_range(endpoint_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        asked = read_query(request.args, ReplayQuery)
        done = None
        if is_id(endpoint_id, "we"):
            done = replay_range(parts.db, caller.tenant_id, endpoint_id, asked.since, asked.until, asked.status)
        if done is None:
            raise RequestError("not_found", "there is no such webhook endpoint")
        parts.live.ring(Topic.DELIVERIES_DUE)
        answer = {
            "object": "webhook_replay",
            "webhook_endpoint_id": endpoint_id,
            # Exactly, and not in milliseconds: to be sent back for the rest.
            "since": done.since.isoformat().replace("+00:00", "Z"),
            "until": done.until.isoformat().replace("+00:00", "Z"),
            "replayed": done.count,
            "has_more": done.has_more,
        }
        return _accepted(answer)

    return deliveries


def _page(parts: Parts, caller: Caller, query: DeliveryQuery, endpoint_id: str | None) -> Response:
    page = asked_page(query.limit, query.after, query.order, "whd", "webhook delivery")
    wanted = DeliveryFilter(endpoint_id, query.job, query.event, query.event_type, tuple(query.status))
    return page_response(parts, *list_deliveries(parts.db, caller.tenant_id, wanted, page))


def _detail(parts: Parts, delivery_id: str, endpoint_id: str | None) -> Response:
    caller = authenticate(parts.callers, request, "read")
    is_sane = is_id(delivery_id, "whd") and (endpoint_id is None or is_id(endpoint_id, "we"))
    return jsonify(_found(get_delivery(parts.db, caller.tenant_id, delivery_id, endpoint_id) if is_sane else None))


def _replay(parts: Parts, delivery_id: str, endpoint_id: str | None) -> Response:
    caller = authenticate(parts.callers, request, "submit")
    is_sane = is_id(delivery_id, "whd") and (endpoint_id is None or is_id(endpoint_id, "we"))
    document = _found(replay_delivery(parts.db, caller.tenant_id, delivery_id, endpoint_id) if is_sane else None)
    parts.live.ring(Topic.DELIVERIES_DUE)
    return _accepted(document)


def _accepted(body: dict[str, Any]) -> Response:
    response = jsonify(body)
    response.status_code = 202
    return response


def _found(document: dict[str, Any] | None) -> dict[str, Any]:
    if document is None:
        raise RequestError("not_found", "there is no such webhook delivery")
    return document
