"""
The OpenAPI document, where APIFlask cannot derive it: bodies we read ourselves, query strings, headers and problems.

Knows the form of the document and no path; each route says what is special about it by `route_docs.describe`. The models are the one
source of both validation and document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from apiflask import APIFlask
from pydantic import BaseModel

from services.api.arguments import refuses_arguments
from services.api.examples import example_of
from services.api.problem_answers import ProblemAnswer
from services.api.problem_catalogue import PROBLEM_TYPE, Problem, example_problem
from services.api.route_docs import EXTENSION, Model, RouteDocs
from services.api.webhooks.docs import webhook_items, webhook_models

_REF = "#/components/schemas/{model}"
_STREAM_TYPE = "text/event-stream"
_METHODS = ("get", "post", "put", "patch", "delete")

_REQUEST_HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "description": "1 to 255 visible ASCII characters. The same key with the same request gives the same answer, once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 257},
    },
    "Prefer": {
        "description": "`wait=10`: answer when the job has ended, or after so many seconds, at most 55; `wait` alone: 30 (RFC 7240).",
        "schema": {"type": "string"},
    },
    "Cancel-After": {
        "description": "The prediction is canceled if it has not ended by then: seconds, or such as `90s`, `5m`, `1h30m`.",
        "schema": {"type": "string"},
    },
    "Last-Event-ID": {"description": "`seq` of the last event that a stream's client has seen.", "schema": {"type": "string"}},
    "If-None-Match": {"description": "An ETag of an earlier answer.", "schema": {"type": "string"}},
}
_HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "Where the new thing is.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "integer"}},
    "ETag": {"description": "Changes with the job and its progress.", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "Which preference was honoured.", "schema": {"type": "string"}},
    "Link": {"description": 'The next page, as rel="next"; the job that goes on, as rel="related".', "schema": {"type": "string"}},
    "Idempotency-Replayed": {"description": "The answer to an earlier request.", "schema": {"type": "string", "const": "true"}},
    "RateLimit-Policy": {"description": "The limits that hold for the request.", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of them.", "schema": {"type": "string"}},
    "X-RateLimit-Limit-Requests": {"description": "Requests a minute that may make jobs.", "schema": {"type": "integer"}},
    "X-RateLimit-Remaining-Requests": {"description": "How many of them are left.", "schema": {"type": "integer"}},
    "X-RateLimit-Reset-Requests": {"description": "When there are all of them again, such as `7s`.", "schema": {"type": "string"}},
    "X-Should-Retry": {"description": "`false`: the same request would make another job.", "schema": {"type": "string", "const": "false"}},
    "OpenAI-Processing-Ms": {"description": "How long the answer took, in milliseconds.", "schema": {"type": "integer"}},
    "OpenAI-Poll-After-Ms": {"description": "Milliseconds to wait before asking again.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "X-Request-Id": {"description": "The request's own id, or the one that the client sent.", "schema": {"type": "string"}},
}


_UNREAD = {"414": "The URL is too long", "431": "The headers are too large"}
"""Of any route, by gunicorn, which has not read any further."""
_OF_STATUS = {
    "401": ("WWW-Authenticate",),
    "402": ("Retry-After",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}
"""Headers that belong to a status, whatever the route."""
_LIMITS = (
    "RateLimit-Policy",
    "RateLimit",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
)
_OPENAI_OPERATIONS = "openai_"
"""How the ids of OpenAI's operations begin, whose answers all tell how long they took."""
_NOT_COUNTED = ("401", *_UNREAD)
"""Before it is known whose request it is."""


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


_ANSWERS_KEPT = {
    "400": "The Idempotency-Key is not valid",
    "409": "The request with this Idempotency-Key is being worked on",
    "413": "More was sent than is read",
    "422": "The Idempotency-Key belongs to another request",
}
"""What any route may say that keeps its answers, if it has nothing else to say with this status."""


def complete(spec: dict[str, Any] | str) -> dict[str, Any] | str:
    """Fill in what APIFlask left out."""
    if isinstance(spec, str):  # YAML, which we do not ask for
        return spec
    problem = _schema(spec, ProblemAnswer)
    for path, method, operation in _routes(spec):
        docs: RouteDocs = operation.pop(EXTENSION, RouteDocs())
        if refuses_arguments(path, operation["operationId"]):
            operation["responses"].setdefault("400", {"description": "An argument is not known"})
        if method == "post" and docs.keeps_answers:
            docs = _with_key(operation, docs)
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                parameter["schema"] = {"type": "string"}
        if docs.query is not None:
            operation["parameters"] += _query_parameters(spec, docs.query)
        for name in docs.request_headers:
            operation["parameters"].append({"name": name, "in": "header", "required": False, **_REQUEST_HEADERS[name]})
        if docs.body is not None or docs.form:
            operation["requestBody"] = _request_body(spec, docs)
        responses = operation["responses"] | {status: {"description": description} for status, description in _UNREAD.items()}
        operation["responses"] = {status: responses[status] for status in sorted(responses)}
        for status, response in operation["responses"].items():
            if status >= "400":
                response["content"] = {PROBLEM_TYPE: {"schema": problem}}
        _complete_responses(spec, operation["responses"], docs, operation["operationId"].startswith(_OPENAI_OPERATIONS))
    spec["components"]["headers"] = _HEADERS
    references = {model.__name__: _schema(spec, model) for model in webhook_models()}
    flat = _flatten(spec)
    _add_examples(flat)
    examples = {name: example_of(reference, flat["components"]["schemas"]) for name, reference in references.items()}
    flat["webhooks"] = webhook_items(references, examples)
    return flat


def _with_key(operation: dict[str, Any], docs: RouteDocs) -> RouteDocs:
    """A route whose answers are kept for repetitions (`once.py`) need not say so itself."""
    responses = operation["responses"]
    for status, description in _ANSWERS_KEPT.items():
        responses.setdefault(status, {"description": description})
    operation["responses"] = {status: responses[status] for status in sorted(responses)}
    headers = {status: (*docs.headers.get(status, ()), "Idempotency-Replayed") for status in responses if status < "300"}
    headers["409"] = (*docs.headers.get("409", ()), "Retry-After")
    return replace(docs, request_headers=("Idempotency-Key", *docs.request_headers), headers={**docs.headers, **headers})


def _add_examples(spec: dict[str, Any]) -> None:
    """An example for every body and answer that has none of its own; for a refusal, every problem that it may be."""
    schemas = spec["components"]["schemas"]
    spec["components"]["examples"] = {
        problem.code: {"summary": problem.title, "value": example_problem(problem)} for problem in Problem if problem.status
    }
    for _, _, operation in _routes(spec):
        contents = [operation.get("requestBody", {}).get("content", {})]
        for status, response in operation["responses"].items():
            content = response.get("content", {})
            contents.append(content)
            if PROBLEM_TYPE in content:
                codes = [problem.code for problem in Problem if str(problem.status) == status]
                content[PROBLEM_TYPE]["examples"] = {code: {"$ref": f"#/components/examples/{code}"} for code in codes}
        for content in contents:
            for media_type, media in content.items():
                if media_type == "application/json" and "example" not in media and "examples" not in media:
                    media["example"] = example_of(media["schema"], schemas)


def _request_body(spec: dict[str, Any], docs: RouteDocs) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if docs.body is not None:
        content["application/json"] = {"schema": _schema(spec, docs.body)}
        if docs.example is not None:
            content["application/json"]["example"] = docs.example
    if docs.form:
        form = {
            "type": "object",
            "required": list(docs.form_required),
            "properties": {name: _schema(spec, part) for name, part in docs.form.items()},
        }
        as_json = {name: {"contentType": "application/json"} for name, part in docs.form.items() if isinstance(part, type)}
        content["multipart/form-data"] = {"schema": form, **({"encoding": as_json} if as_json else {})}
        if docs.form_example:
            content["multipart/form-data"]["example"] = dict(docs.form_example)
    return {"required": not docs.is_body_optional, "content": content}


def _complete_responses(spec: dict[str, Any], responses: dict[str, Any], docs: RouteDocs, is_openai: bool) -> None:
    for status, media in docs.content.items():
        responses[status]["content"] = {name: {"schema": _schema(spec, schema)} for name, schema in media.items()}
    for status, media in docs.more_content.items():
        responses[status]["content"] |= {name: {"schema": _schema(spec, schema)} for name, schema in media.items()}
    if docs.stream_example is not None:
        responses["200"]["content"][_STREAM_TYPE]["example"] = docs.stream_example
    for status, other in docs.same_as.items():
        responses[status]["content"] = responses[other]["content"]
    for status, response in responses.items():
        response["description"] = docs.descriptions.get(status, response["description"])
        limits = _LIMITS if docs.is_counted and status not in _NOT_COUNTED else ()
        always = ("OpenAI-Processing-Ms", "X-Request-Id") if is_openai else ("X-Request-Id",)
        headers = (*docs.headers.get(status, ()), *_OF_STATUS.get(status, ()), *limits, *always)
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
        if status.startswith("3"):
            response.pop("content", None)
        if docs.links is not None and status in ("201", "202"):
            operations, parameter = docs.links
            response["links"] = {name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}} for name in operations}


def _flatten(spec: dict[str, Any]) -> dict[str, Any]:
    """APIFlask lists a model anew under every model that uses it, as `JobListAnswer.JobAnswer`; generated clients need one."""
    text = re.sub(r'"#/components/schemas/\w+\.(\w+)"', r'"#/components/schemas/\1"', json.dumps(spec))
    flat: dict[str, Any] = json.loads(text)
    schemas = flat["components"]["schemas"]
    flat["components"]["schemas"] = {name.rpartition(".")[2]: schema for name, schema in schemas.items() if name != "HTTPError"}
    return flat


def _routes(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of each."""
    for path, item in spec["paths"].items():
        yield from ((path, method, item[method]) for method in _METHODS if method in item)


def _query_parameters(spec: dict[str, Any], model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema(ref_template=_REF)
    spec["components"]["schemas"].update(schema.get("$defs", {}))
    parameters = []
    for name, field in schema["properties"].items():
        parameter = {"name": name, "in": "query", "required": False, "description": field.pop("description", ""), "schema": field}
        if field.get("type") == "object":
            parameter["style"] = "deepObject"
        parameters.append(parameter)
    return parameters


def _schema(spec: dict[str, Any], model: Model | dict[str, Any]) -> dict[str, Any]:
    """A schema as it is, or a reference to a model's, which is put among the components; or to any of several."""
    if isinstance(model, dict):
        return model
    if isinstance(model, tuple):
        return {"anyOf": [_schema(spec, one) for one in model]}
    schema = model.model_json_schema(ref_template=_REF)
    spec["components"]["schemas"].update(schema.pop("$defs", {}))
    spec["components"]["schemas"][model.__name__] = schema
    return {"$ref": _REF.format(model=model.__name__)}
