"""Webhook endpoints over HTTP: what their owner can do with them, and nobody else."""

from __future__ import annotations

import base64
import threading
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from services.api.app import create_app
from services.api.settings import ApiSettings
from shared.db import Database
from shared.lifecycle.deliveries import Delivery, Outcome, Room, claim_deliveries, finish_deliveries
from shared.lifecycle.endpoints import MAX_ENDPOINTS
from shared.sealing import Sealer
from tests.integration.api.conftest import Account, assert_problem, client_of
from tests.ledger import execute, query

URL = "https://hooks.example/glmq"
UNKNOWN = "we_" + "0" * 26


def create(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/webhook_endpoints", json={"url": URL, **fields})
    assert answer.status_code == 200, answer.get_json()
    return dict(answer.get_json())


def claim(db: Database, count: int = 100) -> list[Delivery]:
    return claim_deliveries(db, Room(count, 100, 100), 30, lambda delivery: b'{"id":"x"}')


def deliver(db: Database, **outcome: Any) -> list[Delivery]:
    """Everything due goes out, with this outcome."""
    claimed = claim(db)
    finish_deliveries(db, [(delivery, Outcome(**{"state": "delivered", "status": 204, **outcome})) for delivery in claimed])
    return claimed


def test_create_read_change_delete(client: FlaskClient) -> None:
    """An endpoint lives as its owner says; the secret is shown once."""
    asked = ["job.*", "job.*", "batch.completed", "job.progress"]
    made = create(client, name="studio", event_types=asked, metadata={"team": "a"}, description="Ours")
    secret = made.pop("signing_secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert made["signing_secret_hint"] == f"whsec_…{secret[-5:]}"
    assert (made["object"], made["url"], made["name"], made["status"]) == ("webhook_endpoint", URL, "studio", "enabled")
    assert (made["event_types"], made["metadata"], made["thin"]) == (asked[1:], {"team": "a"}, False)
    assert isinstance(made["created_at"], int)
    path = f"/v1/webhook_endpoints/{made['id']}"
    assert client.get(path).get_json() == made
    for change in (client.patch, client.post):
        changed = change(path, json={"name": "atelier", "thin": True, "metadata": {}, "url": "https://HOOKS.example:443/b"}).get_json()
        assert changed == {
            **made,
            "name": "atelier",
            "thin": True,
            "metadata": {},
            "url": "https://hooks.example/b",
            "updated_at": changed["updated_at"],
        }
    assert client.patch(path, json={}).get_json() == changed
    assert client.patch(path, json={"status": "disabled"}).get_json()["disabled_reason"] == "manual"
    assert client.post(f"{path}/enable").get_json()["status"] == "enabled"
    assert client.delete(path).get_json() == {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True}
    for call in (client.get, client.delete):
        assert_problem(call(path), 404, "not_found")
    assert client.get("/v1/webhook_endpoints").get_json()["data"] == []


def test_null_is_what_a_new_one_has(client: FlaskClient) -> None:
    """A change to null undoes what was said of a field, as it does of batches; what an endpoint cannot be without stays."""
    bare = create(client)
    bare.pop("signing_secret")
    path = f"/v1/webhook_endpoints/{bare['id']}"
    assert client.patch(path, json={}).get_json() == bare
    told = {"name": "studio", "description": "Ours", "event_types": ["job.failed"], "thin": True, "metadata": {"a": "1"}}
    assert {name: client.patch(path, json=told).get_json()[name] for name in told} == told
    assert client.patch(path, json=dict.fromkeys(told)).get_json() | {"updated_at": bare["updated_at"]} == bare
    for name in ("url", "status"):
        assert_problem(client.patch(path, json={name: None}), 400, "invalid_request", name)


def test_an_endpoint_hears_everything_unless_it_says_otherwise(client: FlaskClient, db: Database) -> None:
    """Without types it gets all of them."""
    mine = create(client)
    job = client.post("/v1/jobs", json={"prompt": "a fox"}).get_json()["id"]
    (delivery,) = claim(db)
    assert (delivery.endpoint_id, delivery.event_type, delivery.event_data["id"]) == (mine["id"], "job.queued", job)


def test_pages(client: FlaskClient) -> None:
    """Newest first, by cursor; a deleted endpoint still marks its place."""
    ids = [create(client, name=str(number))["id"] for number in range(5)][::-1]
    first = client.get("/v1/webhook_endpoints?limit=2")
    page = first.get_json()
    assert ([row["id"] for row in page["data"]], page["has_more"], page["last_id"]) == (ids[:2], True, ids[1])
    assert first.headers["Link"].endswith(f'/v1/webhook_endpoints?limit=2&after={ids[1]}>; rel="next"')
    client.delete(f"/v1/webhook_endpoints/{ids[1]}")
    rest = client.get(f"/v1/webhook_endpoints?limit=3&after={ids[1]}").get_json()
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert [row["id"] for row in client.get("/v1/webhook_endpoints?order=asc&limit=1").get_json()["data"]] == [ids[4]]
    assert_problem(client.get("/v1/webhook_endpoints?after=x"), 400, "invalid_request", "after")
    assert_problem(client.get(f"/v1/webhook_endpoints?after={UNKNOWN}"), 400, "invalid_request", "after")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "url"),
        ({"url": "ftp://hooks.example/"}, "url"),
        ({"url": "https://user:pass@hooks.example/"}, "url"),
        ({"url": 7}, "url"),
        ({"url": "https://hooks.example/" + "x" * 4096}, "url"),
        ({"url": URL, "event_types": []}, "event_types"),
        ({"url": URL, "event_types": ["job.nothing"]}, "event_types.0"),
        ({"url": URL, "event_types": ["video.completed"]}, "event_types.0"),
        ({"url": URL, "event_types": "*"}, "event_types"),
        ({"url": URL, "name": "x" * 257}, "name"),
        ({"url": URL, "metadata": {"a": 1}}, "metadata.a"),
        ({"url": URL, "thin": "yes"}, "thin"),
        ({"url": URL, "event_type": ["*"]}, "event_type"),
    ],
)
def test_wrong_endpoints_are_refused(refusing: FlaskClient, fields: dict[str, Any], param: str) -> None:
    """The field is named, and nothing is stored."""
    assert_problem(refusing.post("/v1/webhook_endpoints", json=fields), 400, "invalid_request", param)


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.7",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.168.1.1",
        "0.0.0.0",  # noqa: S104 - an address that must be refused
        "2130706434",
        "0x7f000002",
        "[::1]",
        "[::ffff:10.0.0.7]",
        "[64:ff9b::a00:7]",
        "[2002:a00:7::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "inside.example",
        "both.example",
        "hooks.example:22",
    ],
)
def test_inside_addresses_are_refused_at_registration(refusing: FlaskClient, host: str) -> None:
    """By number in any spelling, through tunnels, by name, if any address of the name is inside, and on other ports."""
    body = assert_problem(refusing.post("/v1/webhook_endpoints", json={"url": f"https://{host}/"}), 400, "forbidden_address", "url")
    assert "10.0.0.7" not in body["detail"] or host.startswith(("10.", "[::ffff"))


def test_a_new_url_is_checked_too(client: FlaskClient) -> None:
    """An operator's allow-list holds for endpoints as for jobs."""
    path = f"/v1/webhook_endpoints/{create(client)['id']}"
    assert_problem(client.patch(path, json={"url": "http://10.0.0.7/"}), 400, "forbidden_address", "url")
    assert client.get(path).get_json()["url"] == URL
    assert client.patch(path, json={"url": "http://127.0.0.1:9999/"}).get_json()["url"] == "http://127.0.0.1:9999/"


def test_secrets_are_sealed_and_never_shown_again(client: FlaskClient, db: Database, settings: ApiSettings) -> None:
    """Not in any answer after the first, not in the rows."""
    made = create(client)
    secret = made["signing_secret"]
    for answer in (client.get(f"/v1/webhook_endpoints/{made['id']}"), client.get("/v1/webhook_endpoints")):
        assert secret not in answer.get_data(as_text=True)
    ((sealed,),) = query(db, "SELECT secret FROM webhook_endpoint")
    assert secret.encode() not in bytes(sealed)
    assert Sealer(settings.secret_key.get_secret_value()).unseal(bytes(sealed)) == secret


def secrets_of(db: Database, settings: ApiSettings) -> tuple[str, ...]:
    """What the next delivery is signed with."""
    (delivery,) = claim(db, 1)
    execute(db, "UPDATE webhook_delivery SET lease_until = NULL")
    return tuple(map(Sealer(settings.secret_key.get_secret_value()).unseal, delivery.sealed_secrets))


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, 86_400),
        ({}, 86_400),
        ({"overlap_s": 60}, 60),
        ({"overlap_s": 0}, 0),
        ({"keep_old_secret_active_for_24_hours": True}, 86_400),
        ({"keep_old_secret_active_for_24_hours": False}, 0),
    ],
)
def test_rotation(client: FlaskClient, db: Database, settings: ApiSettings, asked: dict[str, Any] | None, seconds: int) -> None:
    """Both secrets sign until the old one ends, then the new one alone."""
    made = create(client)
    client.post("/v1/jobs", json={"prompt": "a fox"})
    path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
    rotated = client.post(path, json=asked).get_json() if asked is not None else client.post(path).get_json()
    new = rotated["signing_secret"]
    assert new != made["signing_secret"]
    assert secrets_of(db, settings) == ((new, made["signing_secret"]) if seconds else (new,))
    until = rotated["previous_secret_until"]
    assert until is None if seconds == 0 else abs(until - rotated["updated_at"] - seconds) <= 1
    execute(db, "UPDATE webhook_endpoint SET previous_secret_until = clock_timestamp() WHERE previous_secret_until IS NOT NULL")
    assert secrets_of(db, settings) == (new,)


def test_wrong_rotations(client: FlaskClient) -> None:
    """An overlap is bounded, and said once."""
    path = f"/v1/webhook_endpoints/{create(client)['id']}/rotate_secret"
    assert_problem(client.post(path, json={"overlap_s": -1}), 400, "invalid_request", "overlap_s")
    assert_problem(client.post(path, json={"overlap_s": 10**7}), 400, "invalid_request", "overlap_s")
    doubled = client.post(path, json={"overlap_s": 1, "keep_old_secret_active_for_24_hours": True})
    assert doubled.status_code == 400


def test_the_default_secret_rotates(client: FlaskClient, db: Database, settings: ApiSettings, account: Account) -> None:
    """It signs what goes to jobs' own URLs, and so does the one before for as long as is asked."""
    client.post("/v1/jobs", json={"prompt": "a fox", "webhook": {"url": URL, "events": ["job.queued"]}})
    rotated = client.post("/v1/webhooks/default/secret/rotate", json={"overlap_s": 60}).get_json()
    assert client.get("/v1/webhooks/default/secret").get_json() == {"key": rotated["key"]}
    assert rotated["previous_until"] is not None
    assert secrets_of(db, settings) == (rotated["key"], account.secret)
    again = client.post("/v1/webhooks/default/secret/rotate", json={"overlap_s": 0}).get_json()
    assert again["previous_until"] is None
    assert secrets_of(db, settings) == (again["key"],)


def test_strangers_and_scopes(app: APIFlask, client: FlaskClient, account: Account, stranger: Account, db: Database) -> None:
    """Another tenant's endpoint and delivery are unknown ones; only admin keys change endpoints."""
    made = create(client)
    client.post("/v1/jobs", json={"prompt": "a fox"})
    (delivery,) = deliver(db)
    other = client_of(app, stranger.keys["admin"])
    since = "since=2020-01-01T00:00:00Z"
    details = set()
    for endpoint_id in (made["id"], UNKNOWN, "we_x", "job_" + made["id"][3:]):
        path = f"/v1/webhook_endpoints/{endpoint_id}"
        answers = [
            other.get(path),
            other.patch(path, json={"name": "x"}),
            other.post(path, json={"name": "x"}),
            other.delete(path),
            *(other.post(f"{path}/{action}") for action in ("enable", "rotate_secret", "test", f"replay?{since}")),
            other.get(f"{path}/deliveries"),
        ]
        details |= {assert_problem(answer, 404, "not_found")["detail"] for answer in answers}
    assert details == {"there is no such webhook endpoint"}
    for path in (f"/v1/webhook_endpoints/{made['id']}/deliveries/{delivery.id}", f"/v1/webhook_deliveries/{delivery.id}"):
        assert_problem(other.get(path), 404, "not_found")
        assert_problem(other.post(f"{path}/replay"), 404, "not_found")
    assert other.get("/v1/webhook_deliveries").get_json()["data"] == []
    assert_problem(other.get(f"/v1/webhook_deliveries?after={delivery.id}"), 400, "invalid_request", "after")
    path = f"/v1/webhook_endpoints/{made['id']}"
    reader, submitter = client_of(app, account.keys["read"]), client_of(app, account.keys["submit"])
    for who in (reader, submitter):
        assert who.get(path).status_code == 200
        assert_problem(who.post("/v1/webhook_endpoints", json={"url": URL}), 403, "forbidden_scope")
        assert_problem(who.delete(path), 403, "forbidden_scope")
        assert_problem(who.post(f"{path}/rotate_secret"), 403, "forbidden_scope")
        assert_problem(who.post("/v1/webhooks/default/secret/rotate"), 403, "forbidden_scope")
    assert_problem(reader.post(f"{path}/replay?{since}"), 403, "forbidden_scope")
    assert submitter.post(f"{path}/replay?{since}").status_code == 202


def test_no_more_than_so_many(client: FlaskClient, db: Database, account: Account) -> None:
    """Two requests for the last place get one."""
    execute(
        db,
        "INSERT INTO webhook_endpoint (id, tenant_id, url, host, events, secret, status) "
        "SELECT 'we_' || n, :tenant, 'https://h/', 'h', '{*}', 'x', 'enabled' FROM generate_series(1, :count) n",
        tenant=account.tenant_id,
        count=MAX_ENDPOINTS - 1,
    )
    statuses: list[int] = []
    calls = [
        threading.Thread(target=lambda: statuses.append(client.post("/v1/webhook_endpoints", json={"url": URL}).status_code))
        for _ in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert sorted(statuses) == [200, 422, 422, 422]
    assert_problem(client.post("/v1/webhook_endpoints", json={"url": URL}), 422, "too_many_endpoints")


def test_a_test_tells_what_the_receiver_said(client: FlaskClient, db: Database) -> None:
    """It is delivered once, to this endpoint alone, with the type that was asked for; the answer waits for the receiver's."""
    mine = create(client, event_types=["job.succeeded"])
    create(client)

    def answer() -> None:
        while not (claimed := claim(db)):
            pass
        seen.extend(claimed)
        finish_deliveries(db, [(claimed[0], Outcome("exhausted", status=500, error="status 500", latency_ms=7))])

    for asked, shown in (({}, "endpoint.test"), ({"event_type": "batch.completed"}, "batch.completed")):
        seen: list[Delivery] = []
        sender = threading.Thread(target=answer)
        sender.start()
        told = client.post(f"/v1/webhook_endpoints/{mine['id']}/test", json=asked)
        sender.join()
        assert told.status_code == 200
        body = told.get_json()
        assert (body["object"], body["success"], body["status_code"], body["latency_ms"]) == ("webhook_endpoint.test", True, 500, 7)
        assert (body["event_type"], seen[0].event_data["event_type"], seen[0].event_type) == (shown, shown, "endpoint.test")
        assert [delivery.endpoint_id for delivery in seen] == [mine["id"]]
    client.patch(f"/v1/webhook_endpoints/{mine['id']}", json={"status": "disabled"})
    assert_problem(client.post(f"/v1/webhook_endpoints/{mine['id']}/test"), 422, "endpoint_disabled")
    assert {"endpoint.test", "job.progress"} <= set(client.get("/v1/webhook_event_types").get_json()["data"])
    # Nothing of it is kept: it is in neither the log nor the feed.
    for path, param in (("/v1/webhook_deliveries?event_type", "event_type"), ("/v1/events?types", "types.0")):
        assert_problem(client.get(f"{path}=job.progress"), 400, "invalid_request", param)


def test_the_log_tells_every_attempt(client: FlaskClient, db: Database) -> None:
    """Of endpoints and of jobs' own URLs: request, answer, latency, by page and by filter."""
    mine = create(client)
    job = client.post("/v1/jobs", json={"prompt": "a fox", "webhook": {"url": URL, "events": ["job.queued"]}}).get_json()["id"]
    deliver(db, state="pending", status=500, error="status 500", reply=b"\xffoops", latency_ms=12, headers={"X-Attempt": "1"})
    deliver(db, reply=b"ok")
    listed = client.get(f"/v1/webhook_endpoints/{mine['id']}/deliveries").get_json()["data"]
    (row,) = listed
    assert (row["job_id"], row["event_type"], row["status"], row["num_attempts"]) == (job, "job.queued", "delivered", 2)
    detail = client.get(f"/v1/webhook_endpoints/{mine['id']}/deliveries/{row['id']}").get_json()
    assert {name: detail[name] for name in row} == row
    assert detail["request_body"] == '{"id":"x"}'
    first, second = detail["attempts"]
    assert (first["status_code"], first["error"], first["latency_ms"]) == (500, "status 500", 12)
    assert (first["response_body"], first["request_headers"]) == ("\ufffdoops", {"X-Attempt": "1"})
    assert (second["attempt"], second["status_code"], second["response_body"]) == (2, 204, "ok")
    own = [row for row in client.get(f"/v1/webhook_deliveries?job={job}").get_json()["data"] if row["endpoint_id"] is None]
    assert [(row["url"], row["status"]) for row in own] == [(URL, "delivered")]
    assert client.get(f"/v1/webhook_deliveries/{own[0]['id']}").get_json()["attempts"]
    for condition, count in (
        ("status=delivered", 2),
        ("status=pending,exhausted", 0),
        ("event_type=job.queued", 2),
        ("event_type=job.failed", 0),
        (f"endpoint={mine['id']}", 1),
        (f"event={row['event_id']}", 2),
        ("job=job_x", 0),
        ("limit=1", 1),
    ):
        assert len(client.get(f"/v1/webhook_deliveries?{condition}").get_json()["data"]) == count, condition
    page = client.get("/v1/webhook_deliveries?limit=1").get_json()
    assert page["has_more"]
    assert len(client.get(f"/v1/webhook_deliveries?after={page['last_id']}").get_json()["data"]) == 1
    assert_problem(client.get("/v1/webhook_deliveries?status=lost"), 400, "invalid_request", "status.0")


def test_replay_of_one(client: FlaskClient, db: Database) -> None:
    """The same id and bytes, with the secret of now, by a new schedule; twice asked, once sent."""
    mine = create(client)
    client.post("/v1/jobs", json={"prompt": "a fox"})
    (first,) = deliver(db, state="exhausted", status=500)
    path = f"/v1/webhook_endpoints/{mine['id']}/deliveries/{first.id}/replay"
    for _ in range(2):
        told = client.post(path)
        assert (told.status_code, told.get_json()["status"], told.get_json()["kind"]) == (202, "pending", "replay")
    (again,) = claim(db)
    assert (again.event_id, again.body, again.attempt, again.tries, again.kind) == (first.event_id, first.body, 2, 1, "replay")
    assert client.post(path).status_code == 202
    assert claim(db) == []
    finish_deliveries(db, [(again, Outcome("delivered", status=200))])
    client.patch(f"/v1/webhook_endpoints/{mine['id']}", json={"status": "disabled"})
    assert_problem(client.post(path), 422, "endpoint_disabled")


def test_replay_of_a_range(client: FlaskClient, db: Database) -> None:
    """What was delivered, given up or missed between two moments goes out once more; asked again for the same range, nothing does."""
    mine = create(client, event_types=["job.queued"])
    path = f"/v1/webhook_endpoints/{mine['id']}"
    jobs = [client.post("/v1/jobs", json={"prompt": "a fox", "seed": number}).get_json()["id"] for number in range(2)]
    deliver(db, state="exhausted", status=500)
    client.patch(path, json={"status": "disabled"})
    jobs.append(client.post("/v1/jobs", json={"prompt": "a fox", "seed": 2}).get_json()["id"])
    client.post(f"{path}/enable")
    jobs.append(client.post("/v1/jobs", json={"prompt": "a fox", "seed": 3}).get_json()["id"])
    deliver(db)
    times = [row[0] for row in query(db, "SELECT created_at FROM event WHERE type = 'job.queued' ORDER BY seq")]

    def replay(since: Any, until: Any = None, **more: str) -> dict[str, Any]:
        asked = {"since": since.isoformat(), **({} if until is None else {"until": until.isoformat()}), **more}
        told = client.post(f"{path}/replay", query_string=asked)
        assert told.status_code == 202, told.get_json()
        return dict(told.get_json())

    def sent() -> list[str]:
        return [delivery.event_data["id"] for _ in range(9) for delivery in sorted(deliver(db), key=lambda one: one.event_seq)]

    assert replay(times[1], times[3], status="missed")["replayed"] == 1
    assert sent() == [jobs[2]]
    whole = replay(times[1], times[3])
    assert (whole["replayed"], whole["has_more"]) == (1, False)
    assert sent() == [jobs[1]]
    assert replay(times[1], times[3])["replayed"] == 0
    assert replay(times[0])["replayed"] == 4
    assert client.post(f"{path}/replay?since=x").get_json()["errors"][0]["parameter"] == "since"
    assert sorted(sent()) == sorted(jobs)
    assert replay(times[0], status="exhausted")["replayed"] == 0
    assert_problem(client.post(f"{path}/replay"), 400, "invalid_request", "since")
    assert_problem(client.post(f"{path}/replay?since=yesterday"), 400, "invalid_request", "since")
    assert client.post(f"{path}/replay?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z").status_code == 400


def test_a_long_range_goes_in_parts(client: FlaskClient, db: Database, account: Account) -> None:
    """No call sets more than a bounded number going, and the calls together set all of them going, once."""
    client.post("/v1/jobs", json={"prompt": "a fox"})
    execute(
        db,
        "INSERT INTO event (id, tenant_id, seq, type, data) "
        "SELECT 'evt_' || n, :tenant, 1 + n, 'job.succeeded', '{\"object\": \"x\"}' FROM generate_series(1, 2300) n",
        tenant=account.tenant_id,
    )
    execute(db, "UPDATE tenant SET event_seq = 2301 WHERE id = :tenant", tenant=account.tenant_id)
    path = f"/v1/webhook_endpoints/{create(client, event_types=['job.succeeded'])['id']}/replay"
    first = client.post(f"{path}?since=2020-01-01T00:00:00Z").get_json()
    counts = [first["replayed"]]
    while first["has_more"]:
        first = client.post(path, query_string={"since": first["since"], "until": first["until"]}).get_json()
        counts.append(first["replayed"])
    assert sum(counts) == 2300
    assert max(counts) <= 1001
    assert query(db, "SELECT count(*) FROM webhook_delivery") == [(2300,)]


def test_a_slow_name_server_holds_up_nobody_else(settings: ApiSettings, account: Account, model: object) -> None:
    """While as many requests as are worked on at once wait for a name server, others are answered."""
    asked, answers = threading.Semaphore(0), threading.Event()

    def slow(host: str, port: int) -> list[str]:
        asked.release()
        answers.wait(20)
        return ["93.184.216.34"]

    app = create_app(settings.model_copy(update={"api_threads": 2}), slow)
    sent = [("/v1/webhook_endpoints", {"url": URL}), ("/v1/jobs", {"prompt": "a fox", "webhook": URL})]
    statuses: list[int] = []

    def post(path: str, body: dict[str, Any]) -> None:
        statuses.append(client_of(app, account.keys["admin"]).post(path, json=body).status_code)

    threads = [threading.Thread(target=post, args=one) for one in sent]
    try:
        for thread in threads:
            thread.start()
        assert all(asked.acquire(timeout=10) for _ in sent)
        assert client_of(app, account.keys["read"]).get("/v1/models").status_code == 200
        assert statuses == []
    finally:
        answers.set()
        for thread in threads:
            thread.join()
        app.extensions["glmq"].close()
    assert sorted(statuses) == [200, 202]
