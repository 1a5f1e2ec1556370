"""One Idempotency-Key, one job, however often and however many at once."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from apiflask import APIFlask
from flask.testing import FlaskClient

from shared.checkpoint import ModelInfo
from shared.db import Database
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, png, post_multipart
from tests.ledger import execute

KEY = {"Idempotency-Key": '"order-17"'}


def test_replay_answers_with_the_first_job(client: FlaskClient, db: Database) -> None:
    """The same request again is 200 with the same job, marked as a replay, although no seed was named."""
    first = client.post("/v1/jobs", json={"prompt": "a fox", "n": 1}, headers=KEY)
    # Other order of keys, other spelling of the key: the same request.
    again = client.post(
        "/v1/jobs", data=b'{"n":1,"prompt":"a fox"}', content_type="application/json", headers={"Idempotency-Key": "order-17"}
    )
    assert (first.status_code, again.status_code) == (202, 200)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert again.get_json() == first.get_json()
    assert count_rows(db)["job"] == 1


def test_other_request_is_a_mismatch(client: FlaskClient, db: Database) -> None:
    """The key with another request is 422, and stores nothing."""
    client.post("/v1/jobs", json={"prompt": "a fox"}, headers=KEY)
    before = count_rows(db)
    answer = client.post("/v1/jobs", json={"prompt": "a cat"}, headers=KEY)
    assert_problem(answer, 422, "idempotency_mismatch", "Idempotency-Key")
    assert count_rows(db) == before


def test_uploads_are_part_of_the_request(client: FlaskClient) -> None:
    """The same JSON with another picture is another request."""
    request = json.dumps({"prompt": "a fox"})
    client.environ_base["HTTP_IDEMPOTENCY_KEY"] = "k"
    assert post_multipart(client, {"request": request, "image": (png(), "a.png")}).status_code == 202
    assert post_multipart(client, {"request": request, "image": (png(), "b.png")}).status_code == 200
    assert post_multipart(client, {"request": request, "image": (png(colour="blue"), "a.png")}).status_code == 422


def test_mismatch_stores_no_sources(client: FlaskClient, db: Database) -> None:
    """The key is looked at before the images are: a refused request leaves nothing."""
    client.environ_base["HTTP_IDEMPOTENCY_KEY"] = "k"
    client.post("/v1/jobs", json={"prompt": "a fox"})
    before = count_rows(db)
    assert post_multipart(client, {"request": json.dumps({"prompt": "a fox"}), "image": (png(), "a.png")}).status_code == 422
    assert count_rows(db) == before


def test_replay_is_not_judged_again(client: FlaskClient) -> None:
    """A retry finds its job although the deadline of the request has passed meanwhile."""
    # The first request of a process takes its time.
    assert client.post("/v1/jobs", json={"prompt": "a fox"}).status_code == 202
    request = {"prompt": "a fox", "deadline": (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()}
    assert client.post("/v1/jobs", json=request, headers=KEY).status_code == 202
    time.sleep(1.6)
    assert client.post("/v1/jobs", json=request, headers=KEY).status_code == 200
    assert client.post("/v1/jobs", json=request).status_code == 400


def test_keys_of_tenants_do_not_meet(client: FlaskClient, app: APIFlask, stranger: Account) -> None:
    """Two tenants may use the same key."""
    other = client_of(app, stranger.keys["admin"])
    ids = {each.post("/v1/jobs", json={"prompt": "a fox"}, headers=KEY).get_json()["id"] for each in (client, other)}
    assert len(ids) == 2


def test_numbered_tries_make_one_job(client: FlaskClient, db: Database) -> None:
    """Clients that repeat requests by themselves, and count, get the job of the first try; from 0 on it is another request."""

    def post(number: str | None, **more: Any) -> Any:
        return client.post("/v1/jobs", json={"prompt": "a fox", **more}, headers={"X-Stainless-Retry-Count": number} if number else {})

    first, again = post("0"), post("1")
    assert (first.status_code, again.status_code, again.headers["Idempotency-Replayed"]) == (202, 200, "true")
    assert again.get_json()["id"] == first.get_json()["id"]
    others = [post("0"), post(None), post("1", prompt="a cat"), post("x")]
    assert len({answer.get_json()["id"] for answer in (first, *others)}) == 5
    # The client that had its answer long ago does not mean the old job.
    execute(db, "UPDATE client_try SET answered_at = answered_at - interval '2 min'")
    assert post("1").status_code == 202


def test_fifty_at_once_make_one_job(app: APIFlask, account: Account, model: ModelInfo, db: Database) -> None:
    """Fifty equal requests at the same moment: one is 202, the others 200, all with the same body, one row."""

    def post(_: int) -> tuple[int, str]:
        answer = client_of(app, account.keys["submit"]).post("/v1/jobs", json={"prompt": "a fox"}, headers=KEY)
        return answer.status_code, answer.get_data(as_text=True)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(50)))
    assert sorted(status for status, _ in answers) == [200] * 49 + [202]
    assert len({body for _, body in answers}) == 1
    rows = count_rows(db)
    assert (rows["job"], rows["grid"], rows["image"], rows["output"], rows["event"]) == (1, 1, 1, 1, 1)


def test_a_job_under_a_uuid_of_the_client(client: FlaskClient, db: Database) -> None:
    """PUT makes a job once, in any spelling of the UUID; with another request it is a mismatch, and no other id will do."""
    path = "/v1/jobs/0b9c3f5e-7d1a-4c52-9a51-2f6c1d0e8a77"
    first, again = client.put(path, json={"prompt": "a fox"}), client.put(path.replace("0b9c", "0B9C"), json={"prompt": "a fox"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.get_json() == again.get_json()
    assert first.headers["Location"] == f"/v1/jobs/{first.get_json()['id']}"
    assert_problem(client.put(path, json={"prompt": "a cat"}), 422, "idempotency_mismatch", "Idempotency-Key")
    assert_problem(client.put(first.headers["Location"], json={"prompt": "a fox"}), 404, "not_found")
    assert count_rows(db)["job"] == 1
