"""Idempotency-Key where no job is made: one request is worked on, its repetitions get its answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apiflask import APIFlask
from flask.testing import FlaskClient

from shared.db import Database
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, post_multipart
from tests.ledger import execute, query

KEY = {"Idempotency-Key": '"order-17"'}
HOOK = {"url": "https://hooks.example/a", "event_types": ["job.*"]}


def test_a_secret_that_was_lost_on_its_way(client: FlaskClient, db: Database) -> None:
    """The answer is told again as it was, with the key that is shown once; the ledger has it sealed."""
    first = client.post("/v1/api_keys", json={"scope": "read", "name": "shop"}, headers=KEY)
    again = client.post("/v1/api_keys", json={"name": "shop", "scope": "read"}, headers={"Idempotency-Key": "order-17"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert again.data == first.data
    assert query(db, "SELECT count(*) FROM api_key WHERE name = 'shop'") == [(1,)]
    [(answer,)] = query(db, "SELECT answer FROM stored_answer")
    assert first.get_json()["key"].encode() not in bytes(answer)


def test_endpoints_are_made_and_rotated_once(client: FlaskClient, db: Database) -> None:
    """A repeated rotation does not rotate again: the secret that the first one told still signs."""
    made = [client.post("/v1/webhook_endpoints", json=HOOK, headers=KEY).get_json() for _ in range(2)]
    assert made[0] == made[1]
    path = f"/v1/webhook_endpoints/{made[0]['id']}/rotate_secret"
    rotated = [client.post(path, headers=KEY).get_json()["signing_secret"] for _ in range(2)]
    assert rotated[0] == rotated[1] != made[0]["signing_secret"]
    assert client.post(path, headers={"Idempotency-Key": "another"}).get_json()["signing_secret"] not in rotated
    assert count_rows(db)["webhook_endpoint"] == 1


def test_what_is_done_to_a_job(client: FlaskClient) -> None:
    """A cancel that is repeated is no error; without the key it is, as ever."""
    job_id = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["id"]
    first, again = (client.post(f"/v1/jobs/{job_id}/cancel", headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.get_json() == first.get_json()
    assert_problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409, "already_terminal")
    retried = [client.post(f"/v1/jobs/{job_id}/retry", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in retried] == [202, 202]
    assert retried[1].headers["Idempotency-Replayed"] == "true"


def test_uploads_are_compared_by_content(client: FlaskClient, db: Database) -> None:
    """The same file in another multipart body is the same request; another file is not."""
    client.environ_base["HTTP_IDEMPOTENCY_KEY"] = "k"

    def upload(data: bytes) -> Any:
        return post_multipart(client, {"purpose": "batch", "file": (data, "a.jsonl")}, "/v1/files")

    assert upload(b"{}").get_json() == upload(b"{}").get_json()
    assert_problem(upload(b"[]"), 422, "idempotency_mismatch", "Idempotency-Key")
    assert count_rows(db)["file"] == 1


def test_other_requests_are_a_mismatch(client: FlaskClient) -> None:
    """Another body, or another thing on the same route, with the same key is 422 and changes nothing; another route is another scope."""
    ids = [client.post("/v1/jobs", json={"prompt": "a fox", "seed": seed}).get_json()["id"] for seed in (1, 2)]
    assert client.post(f"/v1/jobs/{ids[0]}/cancel", headers=KEY).status_code == 200
    assert_problem(client.post(f"/v1/jobs/{ids[1]}/cancel", headers=KEY), 422, "idempotency_mismatch", "Idempotency-Key")
    assert client.get(f"/v1/jobs/{ids[1]}").get_json()["status"] == "queued"
    assert_problem(client.post(f"/v1/jobs/{ids[0]}/cancel", json={}, headers=KEY), 422, "idempotency_mismatch", "Idempotency-Key")
    assert client.post(f"/v1/jobs/{ids[0]}/retry", headers=KEY).status_code == 202


def test_what_is_refused_is_not_kept(client: FlaskClient, db: Database) -> None:
    """A request that was refused is judged again, and leaves its key free."""
    assert_problem(
        client.post("/v1/webhook_endpoints", json={**HOOK, "url": "https://inside.example/"}, headers=KEY), 400, "forbidden_address", "url"
    )
    assert query(db, "SELECT count(*) FROM stored_answer") == [(0,)]
    assert client.post("/v1/webhook_endpoints", json=HOOK, headers=KEY).status_code == 200
    assert_problem(
        client.post("/v1/webhook_endpoints", json=HOOK, headers={"Idempotency-Key": "a\x7f"}), 400, "invalid_request", "Idempotency-Key"
    )
    assert_problem(
        client.post("/v1/webhook_endpoints", json=HOOK, headers={"Idempotency-Key": "k" * 256}), 400, "invalid_request", "Idempotency-Key"
    )


def test_who_may_have_the_answer(client: FlaskClient, app: APIFlask, account: Account, stranger: Account) -> None:
    """A lesser key of the tenant gets no answer that it could not have asked for; another tenant's request is its own."""
    made = client.post("/v1/webhook_endpoints", json=HOOK, headers=KEY).get_json()
    reader, other = client_of(app, account.keys["read"]), client_of(app, stranger.keys["admin"])
    assert_problem(reader.post("/v1/webhook_endpoints", json=HOOK, headers=KEY), 403, "forbidden_scope")
    assert other.post("/v1/webhook_endpoints", json=HOOK, headers=KEY).get_json()["id"] != made["id"]
    assert_problem(client_of(app, "glmq_no").post("/v1/webhook_endpoints", json=HOOK, headers=KEY), 401, "unauthorized")


def test_while_the_first_one_is_being_worked_on(client: FlaskClient, db: Database) -> None:
    """Its repetition is told to come back; if its process has died, the repetition does the work after a while."""
    client.post("/v1/webhook_endpoints", json=HOOK, headers=KEY)
    execute(db, "UPDATE stored_answer SET answer = NULL, scope = NULL, lease_until = clock_timestamp() + interval '1 min'")
    answer = client.post("/v1/webhook_endpoints", json=HOOK, headers=KEY)
    assert assert_problem(answer, 409, "request_in_flight", "Idempotency-Key")["retryable"]
    assert answer.headers["Retry-After"] == "1"
    assert_problem(
        client.post("/v1/webhook_endpoints", json={**HOOK, "name": "b"}, headers=KEY), 422, "idempotency_mismatch", "Idempotency-Key"
    )
    execute(db, "UPDATE stored_answer SET lease_until = clock_timestamp()")
    late = client.post("/v1/webhook_endpoints", json=HOOK, headers=KEY)
    assert late.status_code == 200
    assert "Idempotency-Replayed" not in late.headers
    assert client.post("/v1/webhook_endpoints", json=HOOK, headers=KEY).get_json() == late.get_json()


def test_many_at_once_do_it_once(app: APIFlask, account: Account, client: FlaskClient, db: Database) -> None:
    """Of twenty equal requests at the same moment one is worked on; the others get its answer, or are told to come back for it."""

    def post(_: int) -> Any:
        return client_of(app, account.keys["admin"]).post("/v1/webhook_endpoints", json=HOOK, headers=KEY)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(20)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len({answer.data for answer in answers if answer.status_code == 200}) == 1
    assert count_rows(db)["webhook_endpoint"] == 1


def test_every_post_has_it(client: FlaskClient) -> None:
    """The document names the header on every POST but the estimate, which changes nothing."""
    paths = client.get("/openapi.json").get_json()["paths"]
    posts = {item["post"]["operationId"]: item["post"] for item in paths.values() if "post" in item}
    without = {name for name, post in posts.items() if "Idempotency-Key" not in [one["name"] for one in post["parameters"]]}
    assert without == {"estimate_job"}
    for post in (post for name, post in posts.items() if name not in without):
        assert {"400", "413", "422"} <= set(post["responses"]), post["operationId"]
        done = [answer for status, answer in post["responses"].items() if status < "300"]
        assert any("Idempotency-Replayed" in answer["headers"] for answer in done), post["operationId"]
