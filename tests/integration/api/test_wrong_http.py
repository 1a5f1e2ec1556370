"""Every request that is not even well-formed is a 4xx problem, and leaves nothing behind (the fixture `refusing` looks)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.integration.api.conftest import assert_problem, png, post_multipart

OK = {"prompt": "a red fox"}

MALFORMED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"{'prompt': 'x'}",
    b'{"prompt": "x",}',
    b'{"prompt": "x"} {}',
    b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "a", "guidance_scale": NaN}',
    b'{"prompt": "a", "guidance_scale": Infinity}',
    b'{"prompt": "a", "guidance_scale": 1e999}',
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": "a", "seed": ' + b"9" * 41 + b"}",
    b'{"prompt": "\xff"}',
    b'{"prompt": "a\nb"}',
    '{"prompt": "x"}'.encode("utf-16"),
    b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"prompt": "a", "x": ' + b"[" * 40 + b"]" * 40 + b"}",
    b'{"prompt": "a", "metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"prompt": "a", "\\u0000": 1}',
    b'{"prompt": "a", "\\ud800": 1}',
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:30]))
def test_malformed_json(refusing: FlaskClient, body: bytes) -> None:
    """What is not a clean JSON object is 400, however deep, long or doubled."""
    assert_problem(refusing.post("/v1/jobs", data=body, content_type="application/json"), 400, "invalid_request", None)


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml", "json", "multipart/mixed"]
)
def test_wrong_content_type(refusing: FlaskClient, content_type: str | None) -> None:
    """Any other media type is 415."""
    assert_problem(refusing.post("/v1/jobs", data=json.dumps(OK), content_type=content_type), 415, "unsupported_media", None)


def test_compressed_body(refusing: FlaskClient) -> None:
    """A compressed body is refused rather than inflated."""
    answer = refusing.post("/v1/jobs", data=b"x", content_type="application/json", headers={"Content-Encoding": "gzip"})
    assert_problem(answer, 415, "unsupported_media", None)


def test_oversize_bodies(refusing: FlaskClient) -> None:
    """More JSON than any job needs, or a body over the limit, is 413."""
    assert_problem(refusing.post("/v1/jobs", json={**OK, "metadata": {"k": "x" * (1 << 20)}}), 413, "payload_too_large", None)
    assert_problem(refusing.post("/v1/jobs", data=b"x" * (3 << 20), content_type="application/json"), 413, "payload_too_large", None)
    upload = {"request": json.dumps(OK), "image": (b"x" * (3 << 20), "a.png")}
    assert_problem(post_multipart(refusing, upload), 413, "payload_too_large", None)


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a b", "a, b", "é", '"a";v=1', '"a', 'a"b'])
def test_malformed_idempotency_key(refusing: FlaskClient, key: str) -> None:
    """A key that is neither a structured string nor bare visible ASCII is refused, and named."""
    answer = refusing.post("/v1/jobs", json=OK, headers={"Idempotency-Key": key})
    body = assert_problem(answer, 400, "invalid_request", "Idempotency-Key")
    assert body["errors"][0]["header"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=1.0", "limit"),
        ("limit=", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=1&limit=2", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("after=job_" + "0" * 26, "after"),
        ("after=%00", "after"),
        ("status=done", "status.0"),
        ("status=", "status.0"),
        ("custom_id=" + "x" * 129, "custom_id"),
        ("custom_id=%00", "custom_id"),
        ("metadata[k]=%00", "metadata.k"),
        ("metadata=x", "metadata"),
        ("metadata[]=x", "metadata."),
        ("created_after=2020-01-01", "created_after"),
        ("created_before=2020-01-01T00:00:00+00:00", "created_before"),
        ("page=2", "page"),
        ("batch=bat_1", "batch"),
        ("&".join(f"metadata[k{i}]=v" for i in range(17)), "metadata"),
    ],
)
def test_wrong_query(refusing: FlaskClient, query: str, param: str) -> None:
    """A wrong or unknown argument of a list is 400 and named."""
    body = assert_problem(refusing.get(f"/v1/jobs?{query}"), 400, "invalid_request", param)
    assert body["errors"][0]["parameter"] == param


def test_routes_and_methods(refusing: FlaskClient) -> None:
    """An unknown route is 404, a wrong method 405 with Allow, and neither redirects."""
    for path in ("/", "/v1", "/v1/jobs/", "//v1/jobs", "/v1//jobs", "/v2/jobs", "/static/x", "/docs/"):
        assert_problem(refusing.get(path), 404, "not_found", None)
    for method, path in (("DELETE", "/v1/jobs"), ("PUT", "/v1/jobs"), ("PATCH", "/v1/jobs/x"), ("GET", "/v1/jobs/x/cancel")):
        answer = refusing.open(path, method=method)
        assert_problem(answer, 405, "method_not_allowed", None)
        assert answer.headers["Allow"]


@pytest.mark.parametrize(
    ("parts", "status", "code", "param"),
    [
        ({}, 400, "invalid_request", "request"),
        ({"image": (png(), "a.png")}, 400, "invalid_request", "request"),
        ({"request": [json.dumps(OK)] * 2}, 400, "invalid_request", "request"),
        ({"request": "{"}, 400, "invalid_request", None),
        ({"request": json.dumps(OK), "image": "text"}, 400, "invalid_request", "image"),
        ({"request": json.dumps(OK), "mask": (png(), "a.png")}, 400, "invalid_request", "mask"),
        ({"request": json.dumps(OK), "prompt": "x"}, 400, "invalid_request", "prompt"),
        ({"request": json.dumps(OK), "image": (b"", "a.png")}, 400, "invalid_image", "image.0"),
        ({"request": json.dumps(OK), "image": (b"GIF89a", "a.png")}, 415, "unsupported_media", "image.0"),
        ({"request": json.dumps(OK), "image": [(png(), "a.png"), (png()[:200], "b.png")]}, 400, "invalid_image", "image.1"),
        ({"request": json.dumps(OK), "image": (png(64, 512), "a.png")}, 400, "invalid_image", "image.0"),
        ({"request": json.dumps(OK), "image[]": [(png(), "a.png")] * 17}, 400, "invalid_request", "images"),
        ({"request": json.dumps({**OK, "steps": 0}), "image": (png(), "a.png")}, 400, "invalid_request", "steps"),
    ],
)
def test_wrong_multipart(refusing: FlaskClient, parts: dict[str, Any], status: int, code: str, param: str | None) -> None:
    """A multipart body is held to the same rules, and one bad picture of several stores none."""
    assert_problem(post_multipart(refusing, parts), status, code, param)


def test_multipart_without_boundary(refusing: FlaskClient) -> None:
    """A multipart body that cannot be taken apart is 400."""
    assert_problem(refusing.post("/v1/jobs", data=b"x", content_type="multipart/form-data"), 400, "invalid_request", "request")
