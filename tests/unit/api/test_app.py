"""What holds for every route, and the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from apiflask import APIFlask
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from shared.lifecycle.events import WEBHOOK_TYPES


def test_openapi_document_is_valid(app: APIFlask) -> None:
    """GET /openapi.json is a valid OpenAPI 3.1 document."""
    answer = app.test_client().get("/openapi.json")
    assert answer.status_code == 200
    assert answer.get_json()["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(answer.get_json()).iter_errors()) == []


def test_openapi_document_is_complete(app: APIFlask) -> None:
    """Every route is in it but the pages themselves, with a summary, a key unless it is open, and problems as problems."""
    spec = app.test_client().get("/openapi.json").get_json()
    pages = {"/openapi.json", "/docs", "/docs/start.js", "/docs/{name}"}
    rules = {re.sub("<(?:path:)?([a-z_]+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()} - pages
    assert set(spec["paths"]) == rules
    for path, item in spec["paths"].items():
        for operation in item.values():
            assert operation["summary"]
            assert bool(operation.get("security")) == (path.startswith("/v1/") or path == "/metrics")
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"]
    assert not [name for name in spec["components"]["schemas"] if "." in name or name == "HTTPError"]
    assert "job.queued" in json.dumps(spec["components"]["schemas"]["Webhook"])
    submit = spec["paths"]["/v1/jobs"]["post"]
    assert submit["requestBody"]["required"]
    assert set(submit["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    names = {parameter["name"] for parameter in spec["paths"]["/v1/jobs"]["get"]["parameters"]}
    assert names >= {"limit", "after", "order", "status", "custom_id", "metadata", "created_after", "created_before"}


def test_every_list_has_one_form(app: APIFlask) -> None:
    """`{object: "list", data, has_more, first_id, last_id}`, and pages where it can grow. Replicate's have that of its clients."""
    spec = app.test_client().get("/openapi.json").get_json()
    found = []
    for path, item in spec["paths"].items():
        response = item.get("get", {}).get("responses", {}).get("200", {})
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        schema = spec["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema)
        fields = schema.get("properties", {})
        if not {"data", "results"} & {name for name, field in fields.items() if field.get("type") == "array"}:
            continue
        found.append(path)
        queries = {parameter["name"] for parameter in item["get"].get("parameters", []) if parameter["in"] == "query"}
        if "results" in fields:
            assert {"previous", "next"} <= set(schema["required"]), path
            continue
        assert {"object", "data", "has_more", "first_id", "last_id"} <= set(schema["required"]), path
        assert fields["object"]["const"] == "list"
        assert ({"limit", "after"} <= queries) == ("Link" in response["headers"]), path
        assert "Link" in response["headers"] or path in ("/problems", "/v1/jobs/{job_id}/images", "/v1/models", "/v1/webhook_event_types")
    assert len(found) >= 15, found


def test_everything_has_an_example_that_fits_its_schema(app: APIFlask) -> None:
    """Every JSON body, every JSON answer and every refusal shows one, and none of them lies."""
    spec = app.test_client().get("/openapi.json").get_json()
    registry = Registry().with_resource("urn:glmq", Resource.from_contents(spec, default_specification=DRAFT202012))
    for path, method, media_type, media in medias(spec):
        where = f"{method} {path} {media_type}"
        if media_type in ("multipart/form-data", "text/event-stream"):
            assert "example" in media, f"{where} has no example"
        if media_type not in ("application/json", "application/problem+json"):
            continue
        found = [media["example"]] if "example" in media else list(media.get("examples", {}).values())
        assert found, f"{where} has no example"
        for example in found:
            if "$ref" in example:
                example = spec["components"]["examples"][example["$ref"].rpartition("/")[2]]["value"]
            errors = [error.message for error in Draft202012Validator(absolute(media["schema"]), registry=registry).iter_errors(example)]
            assert errors == [], where


def test_every_event_type_is_a_webhook_of_the_document(app: APIFlask) -> None:
    """A receiver finds the body of each type that it can ask for."""
    webhooks = app.test_client().get("/openapi.json").get_json()["webhooks"]
    assert set(webhooks) == set(WEBHOOK_TYPES)
    for name, item in webhooks.items():
        content = item["post"]["requestBody"]["content"]["application/json"]
        assert content["example"]["type"] == name
        assert content["schema"]["allOf"][1]["properties"]["type"] == {"const": name}


def test_docs_page_needs_nothing_from_elsewhere(app: APIFlask) -> None:
    """The page names only its own files, all of them are there, and its policy lets the browser load nothing else."""
    client = app.test_client()
    page = client.get("/docs")
    assert page.mimetype == "text/html"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    named = re.findall(r'(?:src|href)="([^"]+)"', page.get_data(as_text=True))
    assert len(named) == 4
    for path in named:
        assert client.get(f"/{path}").status_code == 200, path
    assert "://" not in page.get_data(as_text=True)
    assert client.get("/docs/passwd").status_code == 404


def medias(spec: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Every body and answer of the document, by media type."""
    for path, item in [*spec["paths"].items(), *spec["webhooks"].items()]:
        for method, operation in item.items():
            for part in (operation.get("requestBody", {}), *operation["responses"].values()):
                for media_type, media in part.get("content", {}).items():
                    yield path, method, media_type, media


def absolute(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, for a validator that looks its references up in the document."""
    copied: dict[str, Any] = json.loads(json.dumps(schema).replace('"#/', '"urn:glmq#/'))
    return copied


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("abc-1_2.3", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a b", False), ("é", False), ("a;b", False)],
)
def test_request_ids(app: APIFlask, sent: str, is_kept: bool) -> None:
    """A sane X-Request-Id of the client comes back; otherwise the answer has one of ours."""
    answer = app.test_client().get("/healthz", headers={"X-Request-Id": sent})
    assert (answer.headers["X-Request-Id"] == sent) is is_kept
    assert is_kept or answer.headers["X-Request-Id"].startswith("req_")


def test_headers_of_every_answer(app: APIFlask) -> None:
    """Good or bad, an answer is not sniffed and not stored."""
    for path in ("/healthz", "/nowhere", "/openapi.json", "/v1/jobs"):
        headers = app.test_client().get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


def test_unknown_arguments(app: APIFlask) -> None:
    """A native route that takes no arguments refuses one and names it; those of other interfaces, and pages, leave it alone."""
    client = app.test_client()
    refused = left_alone = 0
    for path, item in client.get("/openapi.json").get_json()["paths"].items():
        for method, operation in item.items():
            if any(parameter["in"] == "query" for parameter in operation.get("parameters", [])):
                continue  # they look at all of them themselves
            answer = client.open(re.sub("{.*?}", "x", path) + "?wiat=5", method=method)
            is_foreign = operation["operationId"].startswith(("openai_", "replicate_")) or path.startswith("/v1/models")
            if is_foreign or not path.startswith("/v1/"):
                assert answer.status_code != 400, path
                left_alone += 1
                continue
            problem = answer.get_json(force=True)
            assert (answer.status_code, problem["code"], problem["param"]) == (400, "invalid_request", "wiat"), path
            assert [error["parameter"] for error in problem["errors"]] == ["wiat"]
            refused += 1
    assert refused > 20
    assert left_alone > 10
