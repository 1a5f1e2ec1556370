"""API keys and tenants: who may make them, what is shown of them, and that they stop at once."""

from __future__ import annotations

from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.settings import ApiSettings
from shared.api_keys import ApiKeyText
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.lifecycle.tenants import ensure_api_key
from tests.integration.api.conftest import Account, assert_problem, client_of
from tests.ledger import query

LIMITS = ("max_queued", "max_running", "requests_per_minute", "gpu_seconds_per_day", "results_kept_s", "live_batches")


@pytest.fixture
def operator(app: APIFlask, account: Account, model: ModelInfo) -> FlaskClient:
    return client_of(app, account.keys["operator"])


def make_key(client: FlaskClient, **request: Any) -> dict[str, Any]:
    answer = client.post("/v1/api_keys", json=request)
    assert answer.status_code == 201, answer.get_json(force=True)
    made: dict[str, Any] = answer.get_json()
    assert answer.headers["Location"] == f"/v1/api_keys/{made['id']}"
    return made


def test_key_is_shown_once_and_stored_as_a_hash(client: FlaskClient, app: APIFlask, db: Database) -> None:
    """The answer to the POST is the only place where the key stands; its prefix tells which one it is."""
    made = make_key(client, scope="submit", name="web shop")
    key = made.pop("key")
    assert key.startswith(made["prefix"] + "_")
    assert (made["name"], made["scope"], made["max_priority"]) == ("web shop", "submit", "interactive")
    assert client.get(f"/v1/api_keys/{made['id']}").get_json() == made
    secret = key.rpartition("_")[2]
    assert secret not in client.get("/v1/api_keys").get_data(as_text=True)
    [(row,)] = query(db, "SELECT api_key::text FROM api_key WHERE id = :id", id=made["id"][4:])
    assert secret not in row
    # Used once, it works, and says so.
    assert client_of(app, key).post("/v1/jobs", json={"prompt": "a fox"}).status_code == 202
    assert client.get(f"/v1/api_keys/{made['id']}").get_json()["last_used_at"] is not None


def test_revoked_key_opens_nothing_from_then_on(client: FlaskClient, app: APIFlask) -> None:
    """DELETE revokes at once, may be repeated, and keeps the key in the list."""
    made = make_key(client, scope="read")
    other = client_of(app, made["key"])
    assert other.get("/v1/jobs").status_code == 200
    revoked = client.delete(f"/v1/api_keys/{made['id']}").get_json()
    assert revoked["revoked_at"] is not None
    assert_problem(other.get("/v1/jobs"), 401, "unauthorized")
    assert client.delete(f"/v1/api_keys/{made['id']}").get_json() == {**revoked}
    assert made["id"] in [key["id"] for key in client.get("/v1/api_keys").get_json()["data"]]


def test_keys_are_listed_page_by_page(client: FlaskClient) -> None:
    """Newest first, each key once, with a Link to the next page."""
    made = [make_key(client, scope="read", name=str(number))["id"] for number in range(5)]
    seen: list[str] = []
    path: str | None = "/v1/api_keys?limit=2"
    while path:
        answer = client.get(path)
        page = answer.get_json()
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += [key["id"] for key in page["data"]]
        link = answer.headers.get("Link", "")
        assert bool(link) == page["has_more"]
        path = link.partition(">")[0].removeprefix("<http://localhost") or None
    assert seen[:5] == made[::-1]
    assert len(seen) == len(set(seen)) == 5 + 4  # the account's own
    assert client.get("/v1/api_keys?order=asc&limit=100").get_json()["data"][-1]["id"] == made[-1]


@pytest.mark.parametrize("scope", ["read", "submit"])
def test_only_admins_manage_keys(app: APIFlask, account: Account, scope: str) -> None:
    """A key that may not manage keys can neither see nor make nor revoke one."""
    client = client_of(app, account.keys[scope])
    for answer in (
        client.post("/v1/api_keys", json={"scope": "read"}),
        client.get("/v1/api_keys"),
        client.get("/v1/api_keys/key_000000000000"),
        client.delete("/v1/api_keys/key_000000000000"),
    ):
        assert_problem(answer, 403, "forbidden_scope")


def test_admin_reaches_no_other_tenant(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """Another tenant's key is one that never was; naming another tenant, or making operators, is for operators."""
    foreign = f"key_{stranger.keys['read'].split('_')[1]}"
    for method in ("get", "delete"):
        bodies = [
            assert_problem(getattr(client, method)(f"/v1/api_keys/{key_id}"), 404, "not_found")["detail"]
            for key_id in (foreign, "key_000000000000", "x", "key_é", "%00")
        ]
        assert len(set(bodies)) == 1
    assert_problem(client.get(f"/v1/api_keys?after={foreign}"), 400, "invalid_request", "after")
    assert_problem(client.get("/v1/api_keys?tenant=other"), 403, "forbidden_scope")
    assert_problem(client.post("/v1/api_keys", json={"scope": "read", "tenant": "other"}), 403, "forbidden_scope")
    assert_problem(client.post("/v1/api_keys", json={"scope": "operator"}), 403, "forbidden_scope")
    for answer in (
        client.get("/v1/tenants"),
        client.get(f"/v1/tenants/{stranger.tenant_id}"),
        client.patch(f"/v1/tenants/{stranger.tenant_id}", json={"limits": {}}),
        client.post("/v1/tenants", json={"name": "new"}),
    ):
        assert_problem(answer, 403, "forbidden_scope")
    assert client_of(app, stranger.keys["read"]).get("/v1/jobs").status_code == 200


def test_operator_makes_a_tenant_and_its_first_key(operator: FlaskClient, app: APIFlask) -> None:
    """A new tenant has nothing and sees nothing of others; its admin goes on alone."""
    tenant = operator.post("/v1/tenants", json={"name": "globex", "limits": {"max_queued": 5}}).get_json()
    assert tenant["limits"] == {
        "max_queued": 5,
        "max_running": None,
        "requests_per_minute": None,
        "gpu_seconds_per_day": None,
        "results_kept_s": None,
        "live_batches": None,
    }
    assert operator.get(f"/v1/tenants/{tenant['id']}").get_json() == tenant
    assert operator.get("/v1/tenants?name=globex").get_json()["data"] == [tenant]
    assert operator.get("/v1/tenants?name=nobody").get_json()["data"] == []
    assert {entry["name"] for entry in operator.get("/v1/tenants").get_json()["data"]} == {"acme", "globex"}
    admin = client_of(app, make_key(operator, scope="admin", tenant="globex")["key"])
    operator.post("/v1/jobs", json={"prompt": "a fox"})
    assert admin.get("/v1/jobs").get_json()["data"] == []
    assert [key["scope"] for key in admin.get("/v1/api_keys").get_json()["data"]] == ["admin"]
    own = make_key(admin, scope="submit")
    assert operator.delete(f"/v1/api_keys/{own['id']}?tenant=globex").status_code == 200
    assert_problem(operator.post("/v1/api_keys", json={"scope": "read", "tenant": "nobody"}), 404, "not_found", "tenant")


def test_tenant_limits_change_one_by_one(operator: FlaskClient, stranger: Account) -> None:
    """What a change leaves out stays; null goes back to the service's default; names are taken once."""
    path = f"/v1/tenants/{stranger.tenant_id}"
    operator.patch(path, json={"limits": {"max_queued": 3, "gpu_seconds_per_day": 0.5}})
    changed = operator.patch(path, json={"limits": {"max_queued": None, "max_running": 0}}).get_json()
    assert changed["limits"] == {
        "max_queued": None,
        "max_running": 0,
        "requests_per_minute": None,
        "gpu_seconds_per_day": 0.5,
        "results_kept_s": None,
        "live_batches": None,
    }
    assert_problem(operator.patch(path, json={"limits": {"max_queued": -1}}), 400, "invalid_request", "limits.max_queued")
    assert_problem(operator.patch("/v1/tenants/ten_x", json={"limits": {}}), 404, "not_found")
    assert_problem(operator.post("/v1/tenants", json={"name": "other"}), 409, "name_taken", "name")


def test_key_bounds_the_priority_of_its_jobs(client: FlaskClient, app: APIFlask) -> None:
    """A key for bulk work cannot jump the queue, and need not say that it does not."""
    bulk = client_of(app, make_key(client, scope="submit", max_priority="bulk")["key"])
    assert bulk.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["priority"] == "bulk"
    assert bulk.post("/v1/jobs", json={"prompt": "a fox", "priority": "bulk"}).status_code == 202
    for priority in ("standard", "interactive"):
        assert_problem(bulk.post("/v1/jobs", json={"prompt": "a fox", "priority": priority}), 403, "forbidden_priority", "priority")
    standard = client_of(app, make_key(client, scope="submit", max_priority="standard")["key"])
    assert standard.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["priority"] == "standard"


def test_bootstrap_key_of_before_operators_becomes_one(db: Database, settings: ApiSettings, account: Account, app: APIFlask) -> None:
    """Who starts the service with the same bootstrap key again may make tenants; nobody can take over a key by its public half."""
    key = ApiKeyText.parse(account.keys["admin"])
    assert key is not None
    ensure_api_key(db, account.tenant_id, "bootstrap", ApiKeyText(key.id, b"another secret"), ["read", "operator"])
    assert client_of(app, account.keys["admin"]).get("/v1/tenants").status_code == 403
    ensure_api_key(db, account.tenant_id, "bootstrap", key, ["read", "submit", "admin", "operator"])
    assert client_of(app, account.keys["admin"]).get("/v1/tenants").status_code == 200
