"""`GET /v1/webhooks/default/secret`: what a tenant verifies the webhooks of its jobs with."""

from __future__ import annotations

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.answers import SecretAnswer
from services.api.auth import authenticate
from services.api.parts import Parts
from shared.lifecycle.tenants import get_webhook_secret


def webhook_secrets_blueprint(parts: Parts) -> APIBlueprint:
    """The tenant's default secret, where Replicate's clients look for it."""
    webhook_secrets = APIBlueprint("webhooks", __name__)

    @webhook_secrets.get("/v1/webhooks/default/secret")
    @webhook_secrets.output(SecretAnswer, description="The secret.")
    @webhook_secrets.doc(
        summary="Get the secret that signs webhooks", operation_id="get_webhook_secret", security="ApiKey", responses=[401, 403, 503]
    )
    def get_default_secret() -> Response:
        # submit, not read: whoever holds the secret can forge our webhooks, so a key that only looks must not have it.
        caller = authenticate(parts.db, request, "submit")
        return jsonify({"key": parts.sealer.unseal(get_webhook_secret(parts.db, caller.tenant_id))})

    return webhook_secrets
