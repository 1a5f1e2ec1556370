"""Tenants over HTTP: operators make them and set their limits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.auth import authenticate
from services.api.pages import asked_page, page_response
from services.api.parts import Parts
from services.api.request_body import read_fields, read_query
from services.api.route_docs import describe
from services.api.strict_json import is_storable
from services.api.tenant_schemas import TenantAnswer, TenantChange, TenantListAnswer, TenantListQuery, TenantRequest
from shared.errors import RequestError
from shared.job_document import timestamp
from shared.lifecycle.quotas import OwnLimits
from shared.lifecycle.tenants import TenantRecord, create_tenant, find_tenant, limit_tenant, list_tenants
from shared.webhooks import new_secret


def tenants_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/tenants`."""
    tenants = APIBlueprint("tenants", __name__)

    @tenants.post("/v1/tenants")
    @tenants.output(TenantAnswer, status_code=201, description="The tenant is made; it has no key yet.")
    @tenants.doc(
        summary="Make a tenant",
        operation_id="create_tenant",
        security="ApiKey",
        responses=[400, 401, 403, 409, 413, 415, 503],
        extensions=describe(
            body=TenantRequest,
            example={"name": "acme", "limits": {"max_queued": 1000}},
            headers={"201": ("Location",)},
            links=(("get_tenant", "change_tenant"), "tenant_id"),
        ),
    )
    def create_one() -> Response:
        authenticate(parts.callers, request, "operator")
        asked = read_fields(request, TenantRequest)
        sealed = parts.sealer.seal(new_secret())
        record = create_tenant(parts.db, asked.name, sealed, OwnLimits(**asked.limits.model_dump()))
        if record is None:
            raise RequestError("name_taken", f"name: there is a tenant {asked.name} already", "name")
        response = jsonify(_document(record))
        response.status_code = 201
        response.headers["Location"] = f"/v1/tenants/{record.id}"
        return response

    @tenants.get("/v1/tenants")
    @tenants.output(TenantListAnswer, description="A page of tenants.")
    @tenants.doc(
        summary="List tenants",
        operation_id="list_tenants",
        security="ApiKey",
        responses=[400, 401, 403, 503],
        extensions=describe(query=TenantListQuery, headers={"200": ("Link",)}),
    )
    def list_page() -> Response:
        authenticate(parts.callers, request, "operator")
        query = read_query(request.args, TenantListQuery)
        page = asked_page(query.limit, query.after, query.order, "ten", "tenant")
        if query.name is not None:
            record = find_tenant(parts.db, query.name)
            return page_response(parts, [] if record is None else [_document(record)], has_more=False)
        records, has_more = list_tenants(parts.db, page)
        return page_response(parts, [_document(record) for record in records], has_more)

    @tenants.get("/v1/tenants/<tenant_id>")
    @tenants.output(TenantAnswer, description="The tenant.")
    @tenants.doc(
        summary="Get a tenant",
        description="By its id or its name.",
        operation_id="get_tenant",
        security="ApiKey",
        responses=[401, 403, 404, 503],
    )
    def get_one(tenant_id: str) -> Response:
        authenticate(parts.callers, request, "operator")
        return jsonify(_document(_found(parts, tenant_id)))

    @tenants.patch("/v1/tenants/<tenant_id>")
    @tenants.output(TenantAnswer, description="The tenant as it is now.")
    @tenants.doc(
        summary="Change the limits of a tenant",
        description="By its id or its name.",
        operation_id="change_tenant",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 503],
        extensions=describe(body=TenantChange, example={"limits": {"max_queued": 200, "gpu_seconds_per_day": None}}),
    )
    def change_one(tenant_id: str) -> Response:
        authenticate(parts.callers, request, "operator")
        asked = read_fields(request, TenantChange)
        changed = asked.limits.model_dump(exclude_unset=True)
        limited = limit_tenant(parts.db, _found(parts, tenant_id).id, changed)
        if limited is None:
            raise _unknown()
        return jsonify(_document(limited))

    return tenants


def _found(parts: Parts, id_or_name: str) -> TenantRecord:
    record = find_tenant(parts.db, id_or_name) if is_storable(id_or_name) else None
    if record is None:
        raise _unknown()
    return record


def _unknown() -> RequestError:
    return RequestError("not_found", "there is no such tenant")


def _document(record: TenantRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "tenant",
        "name": record.name,
        "limits": asdict(record.own_limits),
        "created_at": timestamp(record.created_at),
    }
