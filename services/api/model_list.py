"""`GET /v1/models`: what is loaded, with the limits and defaults that requests are held to."""

from __future__ import annotations

from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request

from services.api.answers import ModelAnswer, ModelListAnswer
from services.api.auth import authenticate
from services.api.list_answer import list_body
from services.api.openai.schemas import is_model_name
from services.api.parts import Parts
from shared.checkpoint import ModelInfo
from shared.errors import RequestError
from shared.source_size import SourceLimits


def models_blueprint(parts: Parts) -> APIBlueprint:
    """A list of one, or of none while no AR worker has reported."""
    models = APIBlueprint("models", __name__)

    @models.get("/v1/models")
    @models.output(ModelListAnswer, description="The loaded models.")
    @models.doc(summary="List the loaded models", operation_id="list_models", security="ApiKey", responses=[401, 403, 503])
    def list_models() -> Response:
        authenticate(parts.callers, request, "read")
        info = parts.model.find()
        return jsonify(list_body([] if info is None else [describe(info)]))

    @models.get("/v1/models/<path:model_id>")
    @models.output(ModelAnswer, description="The model.")
    @models.doc(summary="Get a loaded model", operation_id="get_model", security="ApiKey", responses=[401, 403, 404, 503])
    def get_model(model_id: str) -> Response:
        authenticate(parts.callers, request, "read")
        info = parts.model.find()
        if info is None or not is_model_name(model_id, info.name):
            raise RequestError("model_not_found", f"there is no model {model_id[:60]}", "model")
        return jsonify(describe(info))

    return models


_UPLOADS = SourceLimits()
"""What holds for the files of reference images, whatever the checkpoint."""


def describe(info: ModelInfo) -> dict[str, Any]:
    """The model as customers see it."""
    return {
        "id": info.name,
        "object": "model",
        # OpenAI's clients expect it, and a checkpoint does not tell.
        "created": 0,
        "owned_by": "glmq",
        "revision": info.revision,
        "defaults": {
            "size": f"{info.default_width_px}x{info.default_height_px}",
            "steps": info.steps,
            "guidance_scale": info.guidance_scale,
            "temperature": info.temperature,
            "top_p": info.top_p,
        },
        "loras": list(info.loras),
        "limits": {
            "min_side": info.min_px,
            "max_side": info.max_px,
            # Larger results are drawn at this and resized; null where the model draws any size.
            "max_generated_side": info.max_generate_px,
            # Of prompt and picture together; null where no worker tells.
            "max_tokens": info.max_tokens,
            "source_min_side": info.source_min_px,
            "source_max_side": info.source_max_px,
            "source_max_aspect": info.max_source_aspect,
            "source_max_bytes": _UPLOADS.max_bytes,
            "source_max_pixels": _UPLOADS.max_pixels,
        },
    }
