"""The tenant's default secret: what it verifies the webhooks of its jobs' own URLs with. Where Replicate's clients look for it."""

from __future__ import annotations

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.answers import SecretAnswer
from services.api.auth import authenticate
from services.api.field_errors import validated
from services.api.parts import Parts
from services.api.request_body import read_optional_json
from services.api.route_docs import describe
from services.api.webhooks.schemas import RotatedSecretAnswer, RotationRequest
from shared.job_document import timestamp
from shared.lifecycle.tenants import get_webhook_secret
from shared.lifecycle.webhook_secrets import rotate_default_secret
from shared.webhooks import new_secret


def webhook_secrets_blueprint(parts: Parts) -> APIBlueprint:
    """The routes of the default secret."""
    webhook_secrets = APIBlueprint("webhooks", __name__)

    @webhook_secrets.get("/v1/webhooks/default/secret")
    @webhook_secrets.output(SecretAnswer, description="The secret.")
    @webhook_secrets.doc(
        summary="Get the secret that signs webhooks", operation_id="get_webhook_secret", security="ApiKey", responses=[401, 403, 503]
    )
    def get_default_secret() -> Response:
        # submit, not read: whoever holds the secret can forge our webhooks, so a key that only looks must not have it.
        caller = authenticate(parts.callers, request, "submit")
        return jsonify({"key": parts.sealer.unseal(get_webhook_secret(parts.db, caller.tenant_id))})

    @webhook_secrets.post("/v1/webhooks/default/secret/rotate")
    @webhook_secrets.output(RotatedSecretAnswer, description="The new secret.")
    @webhook_secrets.doc(
        summary="Rotate the secret that signs webhooks",
        operation_id="rotate_webhook_secret",
        security="ApiKey",
        responses=[400, 401, 403, 413, 415, 503],
        extensions=describe(body=RotationRequest, is_body_optional=True, example={"overlap_s": 3600}),
    )
    def rotate_default() -> Response:
        caller = authenticate(parts.callers, request, "admin")
        sent = read_optional_json(request)
        asked = validated(RotationRequest, sent)
        secret = new_secret()
        until = rotate_default_secret(parts.db, caller.tenant_id, parts.sealer.seal(secret), asked.chosen_overlap_s)
        return jsonify({"key": secret, "previous_until": timestamp(until)})

    return webhook_secrets
