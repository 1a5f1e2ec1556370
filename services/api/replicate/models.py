"""The loaded model as Replicate's clients look it up: its names, its version, and the schema of its input."""

from __future__ import annotations

from typing import Any

from services.api.openai.schemas import is_model_name
from services.api.parts import Parts
from services.api.replicate.schemas import PredictionInput
from shared.checkpoint import ModelInfo
from shared.errors import RequestError
from shared.job_document import timestamp
from shared.lifecycle.workers import first_seen
from shared.prediction import model_path, version_id

_COG_VERSION = "0.9.0"
"""We are not Cog. Clients take every array of a version before 0.3.9 for a stream, and ours is not one."""

_OUTPUT = {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}


def check_model(info: ModelInfo, owner: str, name: str) -> None:
    """
    Raises:
        RequestError: `model_not_found`, it is not the loaded model.
    """
    if not _is_loaded(info, f"{owner}/{name}"):
        raise RequestError("model_not_found", f"there is no such model; there is {'/'.join(model_path(info.name))}", "model")


def check_version(info: ModelInfo, version: str) -> None:
    """
    Raises:
        RequestError: `model_not_found`, it names neither the loaded model nor its version.
    """
    named, _, revision = version.partition(":") if "/" in version else ("", "", version)
    if (named and not _is_loaded(info, named)) or (revision and revision not in (version_id(info.revision), info.revision)):
        detail = f"version: there is no such version; there is {'/'.join(model_path(info.name))}:{version_id(info.revision)}"
        raise RequestError("model_not_found", detail, "version")


def _is_loaded(info: ModelInfo, path: str) -> bool:
    return path.lower() == "/".join(model_path(info.name)).lower() or is_model_name(path, info.name)


def version_document(parts: Parts, info: ModelInfo) -> dict[str, Any]:
    """The loaded version."""
    schema = PredictionInput.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = {**schema.pop("$defs", {}), "Input": schema, "Output": _OUTPUT}
    return {
        "id": version_id(info.revision),
        "created_at": timestamp(first_seen(parts.db, info.revision)),
        "cog_version": _COG_VERSION,
        "openapi_schema": {
            "openapi": "3.1.0",
            "info": {"title": info.name, "version": info.revision},
            "paths": {},
            "components": {"schemas": schemas},
        },
    }


def model_document(parts: Parts, info: ModelInfo, base_url: str) -> dict[str, Any]:
    """The loaded model, for both families of clients that ask for models by this path."""
    owner, name = model_path(info.name)
    seen = first_seen(parts.db, info.revision)
    return {
        "url": f"{base_url}/v1/models/{owner}/{name}",
        "owner": owner,
        "name": name,
        "description": "GLM-Image: draws what a prompt says, and writes what it quotes.",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": version_document(parts, info),
        "id": info.name,
        "object": "model",
        "created": int(seen.timestamp()),
        "owned_by": owner,
    }
