"""
No tenant can see, change or infer what another one has. Generated from the OpenAPI document, so that a new route cannot be forgotten:
whatever takes an id is asked for another tenant's real one and for one that never was, and must answer the same.

A new kind of id gets a sample in `make_samples`; a new field that holds an id gets a request in `BODIES_WITH_IDS`. The test says so.
"""

from __future__ import annotations

import base64
import io
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.settings import ApiSettings
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.storage import Storage
from tests.integration.api.conftest import Account, client_of, finish_jobs, png

METHODS = ("get", "post", "put", "patch", "delete")
NO_IDS = {"index": "0", "slug": "not-found", "model_id": "x", "owner": "x", "name": "x", "version": "x"}
"""Path parameters that name nothing of a tenant's."""

UNKNOWN = {
    "job_id": "job_" + "0" * 26,
    "file_id": "file-" + "0" * 26,
    "key_id": "key_" + "0" * 12,
    "tenant_id": "ten_" + "0" * 26,
    "endpoint_id": "we_" + "0" * 26,
    "delivery_id": "whd_" + "0" * 26,
    "batch_id": "bat_" + "0" * 26,
    "response_id": "resp_" + "0" * 26,
    "input_file_id": "file-" + "0" * 26,
    "secret_id": "we_" + "0" * 26,
}
"""Ids that nobody has, in the form of real ones."""

FOX = {"prompt": "a fox"}
BATCH = {"endpoint": "/v1/images/generations", "completion_window": "24h"}
RESPONSE = {"input": "a fox", "tools": [{"type": "image_generation"}], "background": True}
DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()


def hook(endpoint_id: str) -> dict[str, Any]:
    """A webhook that an endpoint's secret is to sign."""
    return {"webhook": {"url": "https://hooks.example/x", "secret_id": endpoint_id}}


ITEM = {**FOX, "custom_id": "another"}
OPEN_BATCH = {"items": [{**FOX, "custom_id": "1"}], "sealed": False}
ITEMS_WITH_IDS: dict[str, Any] = {
    "job_id": lambda value: {**ITEM, "images": [{"job_id": value}]},
    "file_id": lambda value: {**ITEM, "images": [{"file_id": value}]},
    "secret_id": lambda value: {**ITEM, **hook(value)},
}

BODIES_WITH_IDS: dict[tuple[str, str], Any] = {
    ("submit_job", "job_id"): lambda value: {**FOX, "images": [{"job_id": value}]},
    ("submit_job", "file_id"): lambda value: {**FOX, "images": [{"file_id": value}]},
    ("put_job", "job_id"): lambda value: {**FOX, "images": [{"job_id": value}]},
    ("put_job", "file_id"): lambda value: {**FOX, "images": [{"file_id": value}]},
    ("estimate_job", "job_id"): lambda value: {**FOX, "images": [{"job_id": value}]},
    ("estimate_job", "file_id"): lambda value: {**FOX, "images": [{"file_id": value}]},
    **{(operation, "secret_id"): lambda value: {**FOX, **hook(value)} for operation in ("submit_job", "put_job", "estimate_job")},
    ("openai_generate_images", "secret_id"): lambda value: {**FOX, "background": True, **hook(value)},
    ("openai_edit_images", "secret_id"): lambda value: {**FOX, "images": [{"image_url": DATA_URL}], "background": True, **hook(value)},
    ("openai_make_response", "secret_id"): lambda value: {**RESPONSE, **hook(value)},
    ("redecode_job", "secret_id"): lambda value: hook(value),
    ("estimate_job", "input_file_id"): lambda value: {"input_file_id": value, **BATCH},
    ("openai_make_batch", "input_file_id"): lambda value: {"input_file_id": value, **BATCH},
    **{("openai_make_batch", name): lambda value, make=make: {"items": [make(value)]} for name, make in ITEMS_WITH_IDS.items()},
    **{("append_batch_items", name): lambda value, make=make: {"items": [make(value)]} for name, make in ITEMS_WITH_IDS.items()},
    ("openai_make_response", "file_id"): lambda value: {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "a fox"}, {"type": "input_image", "file_id": value}]}],
        "tools": [{"type": "image_generation"}],
        "background": True,
    },
    ("openai_edit_images", "file_id"): lambda value: {**FOX, "images": [{"file_id": value}], "background": True},
}
"""Requests that name something by its id in the body, by operation and field."""

QUERIES = {"replay_webhook_endpoint": {"since": "2026-01-01T00:00:00Z"}}
"""What operations need besides their ids to get as far as looking for them."""

OWN_NAMES = {"custom_id", "user_id"}
"""Fields that end like ids and are free text."""


def make_samples(client: FlaskClient, db: Database, storage: Storage, account: Account) -> dict[str, str]:
    """Something of every kind that a tenant can have; its id by the name of the path parameter."""
    endpoint = client.post("/v1/webhook_endpoints", json={"url": "https://hooks.example/x"}).get_json()
    job = client.post("/v1/jobs", json=FOX).get_json()
    finish_jobs(db, storage, account.tenant_id, png())
    line = {"custom_id": "1", "method": "POST", "url": BATCH["endpoint"], "body": FOX}
    lines = upload(client, json.dumps(line).encode(), "batch")
    return {
        "job_id": job["id"],
        "file_id": upload(client, png(), "vision"),
        "input_file_id": lines,
        "batch_id": client.post("/v1/batches", json=OPEN_BATCH).get_json()["id"],
        "response_id": client.post("/v1/responses", json=RESPONSE).get_json()["id"],
        "key_id": client.post("/v1/api_keys", json={"scope": "read"}).get_json()["id"],
        "tenant_id": account.tenant_id,
        "endpoint_id": endpoint["id"],
        "secret_id": endpoint["id"],
        "delivery_id": client.get("/v1/webhook_deliveries").get_json()["data"][0]["id"],
    }


def upload(client: FlaskClient, data: bytes, purpose: str) -> str:
    """Keep a file; its id."""
    answer = client.post("/v1/files", data={"purpose": purpose, "file": (io.BytesIO(data), "a")}, content_type="multipart/form-data")
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return str(answer.get_json()["id"])


@pytest.fixture
def samples(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> dict[str, str]:
    return make_samples(client, db, Storage(settings), account)


@pytest.fixture
def other(app: APIFlask, stranger: Account, model: ModelInfo) -> FlaskClient:
    """May do everything, for another tenant."""
    return client_of(app, stranger.keys["admin"])


def operations(app: APIFlask) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every operation."""
    spec = app.test_client().get("/openapi.json").get_json()
    for path, item in spec["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


def call(client: FlaskClient, method: str, path: str, operation: dict[str, Any], ids: dict[str, str]) -> tuple[int, str]:
    """Call an operation with these ids and its own example as the body; the status and what the answer says, without what is always new."""
    url = re.sub(r"\{(\w+)\}", lambda found: {**NO_IDS, **ids}[found[1]], path)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    query = QUERIES.get(operation["operationId"])
    answer = client.open(url, method=method, query_string=query, json=None if body is None else body.get("example", {}))
    return answer.status_code, essence(answer.get_data().decode(errors="replace"), ids)


def essence(text: str, ids: dict[str, str]) -> str:
    for value in ids.values():
        text = text.replace(value, "ID")
    return re.sub(r"req_[0-9a-z]{26}", "REQUEST", text)


def parameters(path: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", path)) - set(NO_IDS)


def test_foreign_ids_answer_as_unknown_ones(app: APIFlask, client: FlaskClient, other: FlaskClient, samples: dict[str, str]) -> None:
    """Every route with an id in its path: a stranger's call with a real id is answered like one with an id that never was."""
    checked = 0
    for method, path, operation in operations(app):
        names = parameters(path)
        missing = names - set(samples)
        assert not missing, f"{method} {path}: make_samples() makes nothing for {missing}"
        if not names:
            continue
        foreign = call(other, method, path, operation, {name: samples[name] for name in names})
        unknown = call(other, method, path, operation, {name: UNKNOWN[name] for name in names})
        assert foreign == unknown, f"{method} {path}"
        assert foreign[0] in (403, 404), f"{method} {path} does not look for its id: {foreign}"
        if method == "get" and "tenant_id" not in names:
            own, _ = call(client, method, path, operation, {name: samples[name] for name in names})
            assert own in (200, 302), f"{method} {path}: the sample is not real ({own})"
        checked += 1
    assert checked >= 28


def test_foreign_parts_of_an_own_thing(app: APIFlask, other: FlaskClient, samples: dict[str, str]) -> None:
    """Where a path has two ids, the second one is not found under a first one that is the stranger's own."""
    own = other.post("/v1/webhook_endpoints", json={"url": "https://hooks.example/y"}).get_json()["id"]
    for method, path, operation in operations(app):
        if {"endpoint_id", "delivery_id"} <= parameters(path):
            foreign = call(other, method, path, operation, {"endpoint_id": own, "delivery_id": samples["delivery_id"]})
            unknown = call(other, method, path, operation, {"endpoint_id": own, "delivery_id": UNKNOWN["delivery_id"]})
            assert foreign == unknown
            assert foreign[0] == 404


def test_strangers_change_nothing(app: APIFlask, client: FlaskClient, other: FlaskClient, samples: dict[str, str]) -> None:
    """After a stranger has called everything with a tenant's ids, all of the tenant's things are as they were."""
    readable = [(path, operation) for method, path, operation in operations(app) if method == "get" and "tenant_id" not in parameters(path)]
    # Their answers are streams and redirects, which differ from one look to the next.
    unsteady = ("/events", "/stream", "{index}")
    readable = [(path, operation) for path, operation in readable if parameters(path) and not path.endswith(unsteady)]

    def look() -> list[tuple[int, str]]:
        answers = [call(client, "get", path, operation, {name: samples[name] for name in parameters(path)}) for path, operation in readable]
        # Presigned anew at every read.
        return [(status, re.sub(r'"http[^"]*(X-Amz-|token=)[^"]*"', "URL", text)) for status, text in answers]

    before = look()
    for method, path, operation in operations(app):
        if parameters(path):
            call(other, method, path, operation, {name: samples[name] for name in parameters(path)})
    assert look() == before


def test_lists_show_nothing_foreign(app: APIFlask, other: FlaskClient, samples: dict[str, str]) -> None:
    """No route without an id in its path shows a stranger anything of a tenant's, and foreign cursors are unknown ones."""
    for method, path, operation in operations(app):
        if method != "get" or "{" in path or not path.startswith("/v1/"):
            continue
        answer = other.get(path)
        for name, value in samples.items():
            assert value not in answer.get_data(as_text=True), f"{path} shows a foreign {name}"
        for parameter in operation["parameters"]:
            if parameter["name"] == "after" or parameter["name"].endswith("_id"):
                check_query_ids(other, path, parameter["name"], samples)


def check_query_ids(other: FlaskClient, path: str, parameter: str, samples: dict[str, str]) -> None:
    for name, value in samples.items():
        found = []
        for given in (value, UNKNOWN[name]):
            answer = other.get(path, query_string={parameter: given})
            found.append((answer.status_code, essence(answer.get_data(as_text=True), {"x": given})))
        assert found[0] == found[1], f"{path}?{parameter}= tells a foreign {name} from an unknown one"


def test_ids_in_bodies(app: APIFlask, client: FlaskClient, other: FlaskClient, samples: dict[str, str]) -> None:
    """Every field of a request body that holds an id: a foreign one is answered like one that never was."""
    spec = app.test_client().get("/openapi.json").get_json()
    for method, path, operation in operations(app):
        for name in ids_in(operation.get("requestBody", {}), spec) - OWN_NAMES:
            make = BODIES_WITH_IDS.get((operation["operationId"], name))
            assert make is not None, f"{operation['operationId']}: BODIES_WITH_IDS has no request with {name}"
            # Under a UUID, where a client names things itself.
            url = path.replace("{job_id}", str(uuid.uuid4()) if method == "put" else samples["job_id"])
            own = url.replace("{batch_id}", other.post("/v1/batches", json=OPEN_BATCH).get_json()["id"] if "{batch_id}" in url else "")
            found = []
            for value in (samples[name], UNKNOWN[name]):
                answer = other.open(own, method=method, json=make(value))
                found.append((answer.status_code, essence(answer.get_data(as_text=True), {"x": value})))
            assert found[0] == found[1], (operation["operationId"], name)
            assert 400 <= found[0][0] < 500
            mine = url.replace("{batch_id}", samples["batch_id"])
            # What came before under this name is another request.
            body = json.loads(json.dumps(make(samples[name])).replace('"another"', f'"{name}"'))
            assert client.open(mine, method=method, json=body).status_code < 400, "the sample is not real"


def ids_in(schema: Any, spec: dict[str, Any], seen: frozenset[str] = frozenset()) -> set[str]:
    """Names of properties that end in `_id`, at any depth."""
    if isinstance(schema, list):
        return {name for item in schema for name in ids_in(item, spec, seen)}
    if not isinstance(schema, dict):
        return set()
    if isinstance(reference := schema.get("$ref"), str) and reference not in seen:
        return ids_in(spec["components"]["schemas"][reference.rpartition("/")[2]], spec, seen | {reference})
    found = {name for name in schema.get("properties", {}) if isinstance(name, str) and name.endswith("_id")}
    return found | {name for key, value in schema.items() if key != "example" for name in ids_in(value, spec, seen)}
