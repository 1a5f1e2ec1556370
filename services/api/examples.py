"""
Examples for the OpenAPI document, made from its schemas: what a field of this name and type may look like. Pure.

Knows names of fields and JSON Schema as Pydantic writes it; a test holds every example against its schema.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_ID = "01kb2w5n0v7f9rqs8d3xz4m6ht"
_BY_NAME: dict[str, Any] = {
    "id": f"job_{_ID}",
    "job_id": f"job_{_ID}",
    "redecode_of": None,
    "batch_id": None,
    "file_id": f"file-{_ID}",
    "tenant_id": f"ten_{_ID}",
    "endpoint_id": f"we_{_ID}",
    "event_id": f"evt_{_ID}",
    "request_id": f"req_{_ID}",
    "first_id": f"job_{_ID}",
    "last_id": f"job_{_ID}",
    "prompt": 'a red fox holding a sign that says "hello"',
    "name": "studio",
    "url": "https://glmq.example/file.png",
    "self": f"https://glmq.example/v1/jobs/job_{_ID}",
    "cancel": f"https://glmq.example/v1/jobs/job_{_ID}/cancel",
    "images": f"https://glmq.example/v1/jobs/job_{_ID}/images",
    "events": f"https://glmq.example/v1/jobs/job_{_ID}/events",
    "type": "job.succeeded",
    "api_version": "2026-11-01",
    "prefix": "glmq_4k2v9s7m1x0q",
    "key": "glmq_4k2v9s7m1x0q_q8ZrT3bYkW1uXcD5eF7gH9jK2mN4pR6sV0wA",
    "revision": "sha256:0f1e2d3c",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "custom_id": "order-17",
    "message": "it took too long",
    "detail": "a sentence for a person",
    "width": 1024,
    "height": 768,
    "size": "1024x768",
    "error": None,
    "code": "poison",
}
_FUTURE = "2099-12-31T23:59:59Z"
"""An example that is tried must not have become wrong."""
_MOMENT = "2026-11-26T18:30:00.000Z"


def example_of(schema: Schema, components: dict[str, Schema], name: str = "", depth: int = 0) -> Any:
    """An instance of the schema."""
    if "$ref" in schema:
        return example_of(components[schema["$ref"].rpartition("/")[2]], components, name, depth)
    for key in ("example", "const"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for choices in ("anyOf", "oneOf"):
        if choices in schema and "properties" not in schema:
            options = schema[choices]
            if name in _BY_NAME and any(_fits(_BY_NAME[name], option) for option in options):
                return _BY_NAME[name]
            return example_of(options[0], components, name, depth)
    if name in _BY_NAME and _fits(_BY_NAME[name], schema):
        return _BY_NAME[name]
    return _by_type(schema, components, name, depth)


def _by_type(schema: Schema, components: dict[str, Schema], name: str, depth: int) -> Any:
    match schema.get("type"):
        case "object":
            names = schema.get("properties", {})
            # Of what may be left out, what is required is enough.
            shown = schema.get("required", list(names) if depth == 0 else [])
            return {each: example_of(names[each], components, each, depth + 1) for each in shown if each in names}
        case "array":
            item = schema.get("items", {})
            return [example_of(item, components, "", depth + 1)] if item and depth < 6 else []
        case "string":
            return _text(schema, name)
        case "integer" | "number":
            return max(schema.get("minimum", 1), 1) if schema.get("exclusiveMinimum") is None else 1
        case "boolean":
            return bool(schema.get("default", False))
        case "null":
            return None
        case _:
            return {}


def _text(schema: Schema, name: str) -> str:
    if schema.get("format") == "uri" or name.endswith("url"):
        return "https://hooks.example/glmq"
    if name == "deadline":
        return _FUTURE
    if schema.get("format") == "date-time" or name.endswith(("_at", "timestamp", "since", "until")):
        return _MOMENT
    if "contentMediaType" in schema or schema.get("format") == "binary":
        return ""
    return "text"


def _fits(value: Any, schema: Schema) -> bool:
    kinds: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "null": (type(None),)}
    return isinstance(value, kinds.get(str(schema.get("type")), ())) and "pattern" not in schema and "format" not in schema
