"""
Webhook endpoints over HTTP: register, read, change, delete, rotate the secret, test.

In the shape of OpenAI's, so that its clients work unchanged; PATCH and what goes beyond it are ours.
"""

from __future__ import annotations

import time
from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.auth import authenticate
from services.api.field_errors import validated
from services.api.list_answer import list_body
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.request_body import read_json, read_optional_json, read_query
from services.api.route_docs import describe
from services.api.webhooks.callbacks import check_receiver
from services.api.webhooks.found import found, unknown_endpoint
from services.api.webhooks.schemas import (
    DeletedEndpointAnswer,
    EndpointAnswer,
    EndpointChange,
    EndpointListAnswer,
    EndpointQuery,
    EndpointRotationRequest,
    EndpointSecretAnswer,
    EndpointTestAnswer,
    EndpointTestRequest,
    EventTypesAnswer,
    NewEndpointRequest,
)
from shared.ids import is_id
from shared.lifecycle.delivery_log import get_delivery
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint, add_test, change_endpoint, delete_endpoint, get_endpoint, list_endpoints
from shared.lifecycle.events import WEBHOOK_TYPES
from shared.lifecycle.tenants import Caller
from shared.lifecycle.webhook_secrets import rotate_endpoint_secret
from shared.webhooks import new_secret, secret_hint

_TEST_S = 20.0
"""What a test waits for its answer: the time that a receiver has, and some for the sender."""
_LOOK_S = 0.1

_COLUMNS = {"event_types": "events", "thin": "is_thin", "metadata": "request_metadata"}
"""Those of a change that are called another way than its fields."""
_LINKS = (("get_webhook_endpoint", "change_webhook_endpoint", "rotate_webhook_endpoint_secret", "delete_webhook_endpoint"), "endpoint_id")


def webhook_endpoints_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/webhook_endpoints` that manage them."""
    endpoints = APIBlueprint("webhook_endpoints", __name__)

    @endpoints.post("/v1/webhook_endpoints")
    @endpoints.output(EndpointSecretAnswer, description="The endpoint, and its secret, which is shown this once.")
    @endpoints.doc(
        summary="Register a webhook endpoint",
        operation_id="create_webhook_endpoint",
        security="ApiKey",
        responses=[400, 401, 403, 413, 415, 422, 503],
        extensions=describe(
            body=NewEndpointRequest, example={"url": "https://hooks.example/glmq", "event_types": ["job.*"], "name": "studio"}, links=_LINKS
        ),
    )
    def create_one() -> Response:
        caller = authenticate(parts.callers, request, "admin")
        asked = validated(NewEndpointRequest, read_json(request))
        parsed = check_receiver(parts.policy, parts.waiting, asked.url, "url")
        secret = new_secret()
        document = add_endpoint(
            parts.db,
            caller.tenant_id,
            NewEndpoint(
                url=str(parsed),
                host=parsed.netloc,
                events=asked.event_types,
                secret=parts.sealer.seal(secret),
                secret_hint=secret_hint(secret),
                name=asked.name,
                description=asked.description,
                is_thin=asked.thin,
                metadata=asked.metadata,
            ),
        )
        return jsonify({**document, "signing_secret": secret})

    @endpoints.get("/v1/webhook_endpoints")
    @endpoints.output(EndpointListAnswer, description="A page of webhook endpoints.")
    @endpoints.doc(
        summary="List webhook endpoints",
        operation_id="list_webhook_endpoints",
        security="ApiKey",
        responses=[400, 401, 403, 503],
        extensions=describe(query=EndpointQuery, headers={"200": ("Link",)}),
    )
    def list_page() -> Response:
        caller = authenticate(parts.callers, request, "read")
        query = read_query(request.args, EndpointQuery)
        page = asked_page(query.limit, query.after, query.order, "we", "webhook endpoint")
        return page_response(parts, *list_endpoints(parts.db, caller.tenant_id, page))

    @endpoints.get("/v1/webhook_endpoints/<endpoint_id>")
    @endpoints.output(EndpointAnswer, description="The endpoint.")
    @endpoints.doc(summary="Get a webhook endpoint", operation_id="get_webhook_endpoint", security="ApiKey", responses=[401, 403, 404, 503])
    def get_one(endpoint_id: str) -> Response:
        caller = authenticate(parts.callers, request, "read")
        return jsonify(found(get_endpoint(parts.db, caller.tenant_id, endpoint_id) if is_id(endpoint_id, "we") else None))

    @endpoints.patch("/v1/webhook_endpoints/<endpoint_id>")
    @endpoints.output(EndpointAnswer, description="The endpoint as it is now.")
    @endpoints.doc(
        summary="Change a webhook endpoint",
        operation_id="change_webhook_endpoint",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 503],
        extensions=describe(body=EndpointChange, example={"event_types": ["job.succeeded", "job.failed"]}),
    )
    def change_one(endpoint_id: str) -> Response:
        return jsonify(_change(parts, endpoint_id))

    @endpoints.post("/v1/webhook_endpoints/<endpoint_id>")
    @endpoints.output(EndpointAnswer, description="The endpoint as it is now.")
    @endpoints.doc(
        summary="Change a webhook endpoint, as OpenAI's clients do",
        operation_id="update_webhook_endpoint",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 503],
        extensions=describe(body=EndpointChange, example={"event_types": ["job.succeeded"]}),
    )
    def update_one(endpoint_id: str) -> Response:
        return jsonify(_change(parts, endpoint_id))

    @endpoints.post("/v1/webhook_endpoints/<endpoint_id>/enable")
    @endpoints.output(EndpointAnswer, description="The endpoint is enabled, as if it had never failed.")
    @endpoints.doc(
        summary="Enable a webhook endpoint", operation_id="enable_webhook_endpoint", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def enable_one(endpoint_id: str) -> Response:
        caller = authenticate(parts.callers, request, "admin")
        return jsonify(_changed(parts, caller, endpoint_id, {"status": "enabled"}))

    @endpoints.delete("/v1/webhook_endpoints/<endpoint_id>")
    @endpoints.output(DeletedEndpointAnswer, description="The endpoint is deleted, and what waited for it is not sent.")
    @endpoints.doc(
        summary="Delete a webhook endpoint", operation_id="delete_webhook_endpoint", security="ApiKey", responses=[401, 403, 404, 503]
    )
    def delete_one(endpoint_id: str) -> Response:
        caller = authenticate(parts.callers, request, "admin")
        if not (is_id(endpoint_id, "we") and delete_endpoint(parts.db, caller.tenant_id, endpoint_id)):
            raise unknown_endpoint()
        return jsonify({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})

    @endpoints.post("/v1/webhook_endpoints/<endpoint_id>/rotate_secret")
    @endpoints.output(EndpointSecretAnswer, description="The endpoint, and its new secret, which is shown this once.")
    @endpoints.doc(
        summary="Rotate the secret of a webhook endpoint",
        operation_id="rotate_webhook_endpoint_secret",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 503],
        extensions=describe(body=EndpointRotationRequest, is_body_optional=True, example={"overlap_s": 3600}),
    )
    def rotate_one(endpoint_id: str) -> Response:
        caller = authenticate(parts.callers, request, "admin")
        asked = validated(EndpointRotationRequest, read_optional_json(request))
        secret = new_secret()
        rotated = None
        if is_id(endpoint_id, "we"):
            sealed, hint = parts.sealer.seal(secret), secret_hint(secret)
            rotated = rotate_endpoint_secret(parts.db, caller.tenant_id, endpoint_id, sealed, hint, asked.chosen_overlap_s)
        return jsonify({**found(rotated), "signing_secret": secret})

    @endpoints.post("/v1/webhook_endpoints/<endpoint_id>/test")
    @endpoints.output(EndpointTestAnswer, description="What the receiver said, or why it was not reached.")
    @endpoints.doc(
        summary="Send a test to a webhook endpoint",
        operation_id="test_webhook_endpoint",
        security="ApiKey",
        responses=[202, 400, 401, 403, 404, 413, 415, 422, 503],
        extensions=describe(
            body=EndpointTestRequest,
            is_body_optional=True,
            descriptions={"202": "The test is not over yet; its delivery will tell."},
            same_as={"202": "200"},
        ),
    )
    def test_one(endpoint_id: str) -> Response:
        caller = authenticate(parts.callers, request, "submit")
        asked = validated(EndpointTestRequest, read_optional_json(request))
        with parts.waiting.place(caller.tenant_id):
            delivery_id = add_test(parts.db, caller.tenant_id, endpoint_id, asked.event_type) if is_id(endpoint_id, "we") else None
            if delivery_id is None:
                raise unknown_endpoint()
            delivery = _await_attempt(parts, caller, delivery_id)
        attempt: dict[str, Any] = delivery["attempts"][-1] if delivery["attempts"] else {}
        response = jsonify(
            {
                "object": "webhook_endpoint.test",
                "webhook_endpoint_id": endpoint_id,
                "delivery_id": delivery_id,
                "event_id": delivery["event_id"],
                "event_type": asked.event_type,
                "success": attempt.get("status_code") is not None,
                "status_code": attempt.get("status_code"),
                "error": attempt.get("error"),
                "latency_ms": attempt.get("latency_ms"),
            }
        )
        response.status_code = 200 if attempt else 202
        return response

    @endpoints.get("/v1/webhook_event_types")
    @endpoints.output(EventTypesAnswer, description="The types. `*` and `job.*` ask for all of them, or of theirs, but `job.progress`.")
    @endpoints.doc(
        summary="List the types of events", operation_id="list_webhook_event_types", security="ApiKey", responses=[401, 403, 503]
    )
    def list_event_types() -> Response:
        authenticate(parts.callers, request, "read")
        return jsonify(list_body(list(WEBHOOK_TYPES), id_of=str))

    return endpoints


def _change(parts: Parts, endpoint_id: str) -> dict[str, Any]:
    caller = authenticate(parts.callers, request, "admin")
    asked = validated(EndpointChange, read_json(request))
    changes = {_COLUMNS.get(name, name): value for name, value in asked.changes().items()}
    if "url" in changes:
        parsed = check_receiver(parts.policy, parts.waiting, changes["url"], "url")
        changes |= {"url": str(parsed), "host": parsed.netloc}
    return _changed(parts, caller, endpoint_id, changes)


def _changed(parts: Parts, caller: Caller, endpoint_id: str, changes: dict[str, Any]) -> dict[str, Any]:
    return found(change_endpoint(parts.db, caller.tenant_id, endpoint_id, changes) if is_id(endpoint_id, "we") else None)


def _await_attempt(parts: Parts, caller: Caller, delivery_id: str) -> dict[str, Any]:
    """The delivery as soon as it has been tried, or as it is when nobody waits any longer."""
    ends_at = time.monotonic() + _TEST_S
    while True:
        delivery = get_delivery(parts.db, caller.tenant_id, delivery_id)
        if delivery is None:
            raise unknown_endpoint()
        if delivery["attempts"] or time.monotonic() > ends_at or parts.waiting.is_closed:
            return delivery
        # The sender rings for nobody, and it is a person who waits.
        with parts.waiting.aside():
            time.sleep(_LOOK_S)
