"""
The OpenAPI document, where APIFlask cannot derive it: bodies we read ourselves, query strings, headers and problems.

Knows paths and schemas; the models in `schemas.py` and `answers.py` are the one source of both validation and document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from apiflask import APIFlask
from pydantic import BaseModel

from services.api.answers import ProblemAnswer
from services.api.schemas import ImageQuery, JobRequest, ListQuery, RedecodeRequest, RejectRequest

_QUERIES: dict[str, type[BaseModel]] = {"/v1/jobs": ListQuery, "/v1/jobs/{job_id}/images/{index}": ImageQuery}
_REF = "#/components/schemas/{model}"
_METHODS = ("get", "post", "put", "patch", "delete")

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 255 visible ASCII characters. The same key with the same request gives the same job, once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 257},
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "An ETag of an earlier answer.",
    "schema": {"type": "string"},
}
_HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "The job.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "integer"}},
    "ETag": {"description": "Changes with the job and its progress.", "schema": {"type": "string"}},
    "Link": {"description": 'The next page, as rel="next".', "schema": {"type": "string"}},
    "Idempotency-Replayed": {"description": "The job was there before.", "schema": {"type": "string", "const": "true"}},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "X-Request-Id": {"description": "The request's own id, or the one that the client sent.", "schema": {"type": "string"}},
}
_LINKED = ("get_job", "cancel_job", "list_images", "redecode_job", "approve_job", "reject_job")
"""What can be done with a new job."""

_RESPONSES: dict[tuple[str, str, str], tuple[str, tuple[str, ...]]] = {
    ("/v1/jobs", "post", "202"): ("The job is accepted.", ("Location", "Retry-After")),
    ("/v1/jobs", "post", "200"): ("The same Idempotency-Key made this job before.", ("Location", "Idempotency-Replayed")),
    ("/v1/jobs/{job_id}/redecode", "post", "202"): ("The job is accepted.", ("Location", "Retry-After")),
    ("/v1/jobs/{job_id}/redecode", "post", "200"): ("The same Idempotency-Key made this job before.", ("Location", "Idempotency-Replayed")),
    ("/v1/jobs", "get", "200"): ("A page of jobs.", ("Link",)),
    ("/v1/jobs/{job_id}", "get", "200"): ("The job.", ("ETag", "Retry-After")),
    ("/v1/jobs/{job_id}", "get", "304"): ("Nothing has changed since the ETag of If-None-Match.", ("ETag",)),
    ("/v1/jobs/{job_id}/images/{index}", "get", "302"): ("Where the file is, for an hour.", ("Location",)),
    ("/readyz", "get", "503"): ("Jobs cannot be submitted now.", ()),
}
"""Description, and headers besides those of every answer."""


def install(app: APIFlask) -> None:
    """Describe the app."""
    app.config.update(
        OPENAPI_VERSION="3.1.0",
        # Replaced below; APIFlask takes no Pydantic model here.
        HTTP_ERROR_SCHEMA={},
        AUTO_VALIDATION_ERROR_RESPONSE=False,
        AUTO_AUTH_ERROR_RESPONSE=False,
        AUTO_404_RESPONSE=False,
        # The document is made once and kept; the host of whoever asked first must not stay in it.
        AUTO_SERVERS=False,
        LOCAL_SPEC_PATH=None,
    )
    app.info = {
        "description": "A durable, asynchronous job service for GLM-Image.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    app.servers = [{"url": "/"}]
    app.security_schemes = {"ApiKey": {"type": "http", "scheme": "bearer", "description": "`glmq_…`, as `Authorization: Bearer`."}}
    app.spec_processor(complete)


def complete(spec: dict[str, Any] | str) -> dict[str, Any] | str:
    """Fill in what APIFlask left out."""
    if isinstance(spec, str):  # YAML, which we do not ask for
        return spec
    problem = {"application/problem+json": {"schema": _component(spec, ProblemAnswer)}}
    for path, method, operation in _operations(spec):
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                parameter["schema"] = {"type": "string"}
        operation["parameters"] += [] if method != "get" or path not in _QUERIES else _query_parameters(spec, _QUERIES[path])
        for status, response in operation["responses"].items():
            response["description"], headers = _RESPONSES.get((path, method, status), (response["description"], ()))
            headers += ("WWW-Authenticate", "X-Request-Id") if status == "401" else ("X-Request-Id",)
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
            if status.startswith("3"):
                response.pop("content", None)
            elif status >= "400":
                response["content"] = problem
    _describe_submit(spec)
    _describe_redecode(spec)
    reject = spec["paths"]["/v1/jobs/{job_id}/reject"]["post"]
    reject["requestBody"] = {"required": False, "content": {"application/json": {"schema": _component(spec, RejectRequest)}}}
    spec["paths"]["/v1/jobs/{job_id}"]["get"]["parameters"].append(_IF_NONE_MATCH)
    readiness = spec["paths"]["/readyz"]["get"]["responses"]
    readiness["503"]["content"] = readiness["200"]["content"]
    spec["components"]["headers"] = _HEADERS
    return _flatten(spec)


def _flatten(spec: dict[str, Any]) -> dict[str, Any]:
    """APIFlask lists a model anew under every model that uses it, as `JobListAnswer.JobAnswer`; generated clients need one."""
    text = re.sub(r'"#/components/schemas/\w+\.(\w+)"', r'"#/components/schemas/\1"', json.dumps(spec))
    flat: dict[str, Any] = json.loads(text)
    schemas = flat["components"]["schemas"]
    flat["components"]["schemas"] = {name.rpartition(".")[2]: schema for name, schema in schemas.items() if name != "HTTPError"}
    return flat


def _operations(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in spec["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _describe_submit(spec: dict[str, Any]) -> None:
    operation = spec["paths"]["/v1/jobs"]["post"]
    request = _component(spec, JobRequest)
    example = {"prompt": 'a red fox holding a sign that says "hello"', "size": "1024x768", "seed": 7}
    image = {"type": "string", "contentMediaType": "application/octet-stream"}
    multipart = {
        "type": "object",
        "required": ["request"],
        "properties": {
            "request": request,
            "image": {"type": "array", "items": image, "description": "Reference images, after those of `images`."},
        },
    }
    operation["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": request, "example": example},
            "multipart/form-data": {"schema": multipart, "encoding": {"request": {"contentType": "application/json"}}},
        },
    }
    _describe_new_job(operation)


def _describe_redecode(spec: dict[str, Any]) -> None:
    operation = spec["paths"]["/v1/jobs/{job_id}/redecode"]["post"]
    body = {"schema": _component(spec, RedecodeRequest), "example": {"steps": 50, "format": "webp"}}
    operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    _describe_new_job(operation)


def _describe_new_job(operation: dict[str, Any]) -> None:
    """What the routes that make jobs have in common."""
    operation["parameters"].append(_IDEMPOTENCY_KEY)
    operation["responses"]["200"]["content"] = operation["responses"]["202"]["content"]
    operation["responses"]["202"]["links"] = {
        name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}} for name in _LINKED
    }


def _query_parameters(spec: dict[str, Any], model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema(ref_template=_REF)
    spec["components"]["schemas"].update(schema.get("$defs", {}))
    parameters = []
    for name, field in schema["properties"].items():
        parameter = {"name": name, "in": "query", "required": False, "description": field.pop("description", ""), "schema": field}
        if name == "metadata":
            parameter["style"] = "deepObject"
        parameters.append(parameter)
    return parameters


def _component(spec: dict[str, Any], model: type[BaseModel]) -> dict[str, str]:
    schema = model.model_json_schema(ref_template=_REF)
    spec["components"]["schemas"].update(schema.pop("$defs", {}))
    spec["components"]["schemas"][model.__name__] = schema
    return {"$ref": _REF.format(model=model.__name__)}
