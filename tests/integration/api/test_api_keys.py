"""API keys and tenants: who may make them, what is shown of them, and that they stop at once."""

from __future__ import annotations

from functools import partial
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
from tests.ledger import at_once, execute, query

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


def test_a_tenant_is_named_by_id_or_name(operator: FlaskClient) -> None:
    """Wherever a tenant is meant, either will do; so that it is clear which, no name looks like an id."""
    tenant = operator.post("/v1/tenants", json={"name": "globex", "limits": {"max_queued": 5}}).get_json()
    assert operator.get(f"/v1/tenants?name={tenant['id']}").get_json()["data"] == [tenant]
    assert operator.get("/v1/tenants/globex").get_json() == tenant
    assert operator.patch("/v1/tenants/globex", json={"limits": {"max_queued": 5}}).get_json() == tenant
    made = make_key(operator, scope="read", tenant=tenant["id"])
    assert operator.get(f"/v1/api_keys?tenant={tenant['id']}").get_json() == operator.get("/v1/api_keys?tenant=globex").get_json()
    assert operator.delete(f"/v1/api_keys/{made['id']}?tenant={tenant['id']}").status_code == 200
    assert_problem(operator.post("/v1/tenants", json={"name": tenant["id"]}), 400, "invalid_request", "name")
    assert_problem(operator.get("/v1/tenants/%00"), 404, "not_found")


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


@pytest.mark.parametrize(
    ("change", "code", "of_wrong_body"),
    [
        ("UPDATE api_key SET revoked_at = now()", "unauthorized", "unauthorized"),
        ("UPDATE api_key SET secret_sha256 = decode('00', 'hex')", "unauthorized", "unauthorized"),
        ("UPDATE api_key SET scopes = '{read}'", "forbidden_scope", "forbidden_scope"),
        ("UPDATE api_key SET max_priority = 'bulk'", "forbidden_priority", "invalid_request"),
        ("UPDATE tenant SET max_queued = 1", "queue_full", "invalid_request"),
        ("UPDATE tenant SET max_queued = 5", None, "invalid_request"),
    ],
)
def test_what_is_known_of_a_key_is_made_sure_of(
    client: FlaskClient, db: Database, change: str, code: str | None, of_wrong_body: str
) -> None:
    """A process remembers a key for a moment; what has changed since, wherever it was changed, counts at the next submit all the same."""
    fox = {"prompt": "a fox", "priority": "standard"}
    assert client.post("/v1/jobs", json=fox).status_code == 202
    execute(db, change)
    assert client.post("/v1/jobs", json=fox).get_json(force=True).get("code") == code
    assert client.post("/v1/jobs", json={**fox, "steps": 0}).get_json(force=True)["code"] == of_wrong_body
    assert len(query(db, "SELECT id FROM job")) == 1 + (code is None)


def test_submits_at_once_are_each_their_own(app: APIFlask, client: FlaskClient, db: Database, account: Account) -> None:
    """Of what is written by one statement each request has its own job, alike or not; bounds and numbers are exact."""
    execute(db, "UPDATE tenant SET max_queued = 20")
    clients = [client_of(app, account.keys[scope]) for scope in ("submit", "admin")]

    def submit(index: int) -> Any:
        headers = {"Idempotency-Key": f"k{index // 2}"} if index < 8 else {}
        prompt = f"fox {index // 2}" if index < 8 else "alike" if index < 12 else f"fox {index}"
        return clients[index % 2].post("/v1/jobs", json={"prompt": prompt, "seed": 1}, headers=headers)

    answers = at_once([partial(submit, index) for index in range(40)])
    accepted = [answer.get_json()["id"] for answer in answers if answer.status_code == 202]
    assert {answer.status_code for answer in answers} <= {200, 202, 429}
    assert sorted(accepted) == sorted(job_id for (job_id,) in query(db, "SELECT id FROM job"))
    assert len(accepted) == 20
    # The twentieth brings a warning, too.
    assert [seq for (seq,) in query(db, "SELECT seq FROM event ORDER BY seq")] == list(range(1, 22))
    assert query(db, "SELECT num_queued FROM tenant WHERE id = :id", id=account.tenant_id) == [(20,)]
