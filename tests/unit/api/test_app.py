"""What holds for every route, and the OpenAPI document."""

from __future__ import annotations

import json
import re

import pytest
from apiflask import APIFlask
from openapi_spec_validator import OpenAPIV31SpecValidator


def test_openapi_document_is_valid(app: APIFlask) -> None:
    """GET /openapi.json is a valid OpenAPI 3.1 document."""
    answer = app.test_client().get("/openapi.json")
    assert answer.status_code == 200
    assert answer.get_json()["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(answer.get_json()).iter_errors()) == []


def test_openapi_document_is_complete(app: APIFlask) -> None:
    """Every route is in it, with a summary, a key unless it is open, and problems as problems."""
    spec = app.test_client().get("/openapi.json").get_json()
    rules = {re.sub("<(?:path:)?([a-z_]+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()} - {"/openapi.json"}
    assert set(spec["paths"]) == rules
    for path, item in spec["paths"].items():
        for operation in item.values():
            assert operation["summary"]
            assert bool(operation.get("security")) == path.startswith("/v1/")
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"]
    assert not [name for name in spec["components"]["schemas"] if "." in name or name == "HTTPError"]
    assert "job.queued" in json.dumps(spec["components"]["schemas"]["Webhook"])
    submit = spec["paths"]["/v1/jobs"]["post"]
    assert submit["requestBody"]["required"]
    assert set(submit["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    names = {parameter["name"] for parameter in spec["paths"]["/v1/jobs"]["get"]["parameters"]}
    assert names == {"limit", "after", "order", "status", "custom_id", "metadata", "created_after", "created_before"}


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
