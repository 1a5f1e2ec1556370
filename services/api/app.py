"""`create_app`: the one place the API is wired."""

from __future__ import annotations

from importlib.metadata import version

from apiflask import APIFlask

from services.api import arguments, envelope, once, openapi, problems, quotas
from services.api.api_keys import api_keys_blueprint
from services.api.approval import approval_blueprint
from services.api.batch_downloads import batch_downloads_blueprint
from services.api.batches import native_batches_blueprint
from services.api.docs import docs_blueprint
from services.api.estimate import estimate_blueprint
from services.api.events import events_blueprint
from services.api.fast_json import FastJson
from services.api.health import health_blueprint
from services.api.images import images_blueprint
from services.api.jobs import jobs_blueprint
from services.api.metrics import metrics_blueprint
from services.api.model_list import models_blueprint
from services.api.openai.batches import batches_blueprint
from services.api.openai.files import files_blueprint
from services.api.openai.images import openai_images_blueprint
from services.api.openai.responses import responses_blueprint
from services.api.parts import make_parts
from services.api.problem_pages import problem_pages_blueprint
from services.api.redecode import redecode_blueprint
from services.api.replicate.predictions import replicate_blueprint
from services.api.request_body import MAX_JSON_BYTES
from services.api.reruns import reruns_blueprint
from services.api.settings import ApiSettings
from services.api.tenants import tenants_blueprint
from services.api.usage import usage_blueprint
from services.api.webhooks.deliveries import webhook_deliveries_blueprint
from services.api.webhooks.endpoints import webhook_endpoints_blueprint
from services.api.webhooks.secrets import webhook_secrets_blueprint
from shared.egress import Resolver, system_resolver


def create_app(settings: ApiSettings, resolver: Resolver = system_resolver) -> APIFlask:
    """
    Make the WSGI application and its clients.

    Args:
        resolver: finds the addresses of host names that customers name.
    Raises:
        StartupError: a setting has a value that cannot be used.
    """
    app = APIFlask("glmq", title="glmq", version=version("glmq"), docs_path=None, json_errors=False, static_folder=None)  # type: ignore[arg-type]  # Flask takes None: we serve no files
    app.config.update(
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        MAX_FORM_MEMORY_SIZE=MAX_JSON_BYTES,
    )
    app.json = FastJson(app)
    # A doubled slash is a mistake to be told of, not a redirect built from the Host header.
    app.url_map.merge_slashes = False
    # Kept for whoever has to close them: gunicorn's workers just end, tests do not.
    parts = app.extensions["glmq"] = make_parts(settings, resolver)
    app.wsgi_app = parts.waiting.wrap(app.wsgi_app)  # type: ignore[method-assign]  # as Flask's documentation tells to
    openapi.install(app)
    envelope.install(app)
    arguments.install(app)
    quotas.install(app)
    problems.install(app, parts)
    for make in (
        jobs_blueprint,
        images_blueprint,
        estimate_blueprint,
        events_blueprint,
        reruns_blueprint,
        redecode_blueprint,
        approval_blueprint,
        native_batches_blueprint,
        batch_downloads_blueprint,
        models_blueprint,
        webhook_secrets_blueprint,
        api_keys_blueprint,
        tenants_blueprint,
        webhook_endpoints_blueprint,
        webhook_deliveries_blueprint,
        usage_blueprint,
        problem_pages_blueprint,
        docs_blueprint,
        health_blueprint,
        metrics_blueprint,
    ):
        app.register_blueprint(make(parts))
    # The dialects, each over `submitting.py` and `job_access.py`.
    for make in (openai_images_blueprint, files_blueprint, batches_blueprint, responses_blueprint, replicate_blueprint):
        app.register_blueprint(make(parts))
    once.install(app, parts)
    return app
