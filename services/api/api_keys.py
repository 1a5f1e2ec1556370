"""API keys over HTTP: make, list, look at, revoke. An admin manages the keys of its tenant, an operator those of any."""

from __future__ import annotations

import re
from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.api_key_schemas import ApiKeyAnswer, ApiKeyListAnswer, ApiKeyListQuery, ApiKeyRequest, NewApiKeyAnswer, TenantQuery
from services.api.auth import authenticate, require
from services.api.pages import page_response
from services.api.parts import Parts
from services.api.request_body import read_fields, read_query
from services.api.route_docs import describe
from shared.errors import RequestError
from shared.job_document import timestamp
from shared.lifecycle.keys import KeyRecord, create_key, get_key, list_keys, revoke_key
from shared.lifecycle.paging import Page
from shared.lifecycle.tenants import Caller, find_tenant

_ID = re.compile("key_([a-z0-9]{12})", re.ASCII)
_EXAMPLE = {"scope": "submit", "name": "web shop", "max_priority": "standard"}


def api_keys_blueprint(parts: Parts) -> APIBlueprint:
    """The routes under `/v1/api_keys`."""
    keys = APIBlueprint("api_keys", __name__)

    @keys.post("/v1/api_keys")
    @keys.output(NewApiKeyAnswer, status_code=201, description="The key is made. It is shown this once.")
    @keys.doc(
        summary="Make an API key",
        operation_id="create_api_key",
        security="ApiKey",
        responses=[400, 401, 403, 404, 413, 415, 503],
        extensions=describe(
            body=ApiKeyRequest, example=_EXAMPLE, headers={"201": ("Location",)}, links=(("get_api_key", "revoke_api_key"), "key_id")
        ),
    )
    def create_one() -> Response:
        caller = authenticate(parts.callers, request, "admin")
        asked = read_fields(request, ApiKeyRequest)
        if asked.scope == "operator":
            require(caller, "operator")
        tenant_id = _tenant_of(caller, asked.tenant)
        record, text = create_key(parts.db, tenant_id, asked.name, asked.scope, asked.max_priority)
        response = jsonify({**_document(record), "key": text})
        response.status_code = 201
        response.headers["Location"] = f"/v1/api_keys/{_document(record)['id']}"
        return response

    @keys.get("/v1/api_keys")
    @keys.output(ApiKeyListAnswer, description="A page of keys, revoked ones too.")
    @keys.doc(
        summary="List API keys",
        operation_id="list_api_keys",
        security="ApiKey",
        responses=[400, 401, 403, 404, 503],
        extensions=describe(query=ApiKeyListQuery, headers={"200": ("Link",)}),
    )
    def list_page() -> Response:
        caller = authenticate(parts.callers, request, "admin")
        query = read_query(request.args, ApiKeyListQuery)
        after = None if query.after is None else _ID.fullmatch(query.after)
        if query.after is not None and after is None:
            raise RequestError("invalid_request", "after: should be the id of a key", "after")
        tenant_id = _tenant_of(caller, query.tenant)
        records, has_more = list_keys(parts.db, tenant_id, Page(query.limit, after and after[1], query.order == "desc"))
        return page_response(parts, [_document(record) for record in records], has_more)

    @keys.get("/v1/api_keys/<key_id>")
    @keys.output(ApiKeyAnswer, description="The key, without its secret.")
    @keys.doc(
        summary="Get an API key",
        operation_id="get_api_key",
        security="ApiKey",
        responses=[400, 401, 403, 404, 503],
        extensions=describe(query=TenantQuery),
    )
    def get_one(key_id: str) -> Response:
        caller = authenticate(parts.callers, request, "admin")
        tenant_id = _tenant_of(caller, read_query(request.args, TenantQuery).tenant)
        return jsonify(_document(_found(get_key(parts.db, tenant_id, _key_id(key_id)))))

    @keys.delete("/v1/api_keys/<key_id>")
    @keys.output(ApiKeyAnswer, description="The key opens nothing any more.")
    @keys.doc(
        summary="Revoke an API key",
        operation_id="revoke_api_key",
        security="ApiKey",
        responses=[400, 401, 403, 404, 503],
        extensions=describe(query=TenantQuery),
    )
    def revoke_one(key_id: str) -> Response:
        caller = authenticate(parts.callers, request, "admin")
        tenant_id = _tenant_of(caller, read_query(request.args, TenantQuery).tenant)
        return jsonify(_document(_found(revoke_key(parts.db, tenant_id, _key_id(key_id)))))

    def _tenant_of(caller: Caller, id_or_name: str | None) -> str:
        """The tenant whose keys are meant: the caller's own, or the one that an operator names."""
        if id_or_name is None:
            return caller.tenant_id
        require(caller, "operator")
        tenant = find_tenant(parts.db, id_or_name)
        if tenant is None:
            raise RequestError("not_found", f"tenant: there is no tenant {id_or_name}", "tenant")
        return tenant.id

    return keys


def _key_id(text: str) -> str:
    """The stored id of a key; one that nobody has if the text is not the id of a key."""
    match = _ID.fullmatch(text)
    return match[1] if match else ""


def _found(record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise RequestError("not_found", "there is no such key")
    return record


def _document(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": f"key_{record.id}",
        "object": "api_key",
        "name": record.name,
        "prefix": f"glmq_{record.id}",
        "scope": record.scope,
        "max_priority": record.max_priority,
        "created_at": timestamp(record.created_at),
        "last_used_at": timestamp(record.last_used_at),
        "revoked_at": timestamp(record.revoked_at),
    }
