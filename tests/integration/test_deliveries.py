"""Webhook deliveries in a real Postgres: who may claim what, and what an attempt leaves, for itself and for its endpoint."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from shared.db import Database
from shared.lifecycle import deliveries
from shared.lifecycle.deliveries import Delivery, Outcome, Room
from shared.lifecycle.delivery_statements import CHOOSE
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint, change_endpoint, delete_endpoint, get_endpoint
from shared.lifecycle.new_job import NewJob
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import ensure_tenant
from shared.lifecycle.webhook_secrets import rotate_endpoint_secret
from tests.ledger import execute, query

FAILED = Outcome("pending", retry_in_s=0, status=500, error="status 500", reply=b"oops", latency_ms=3, headers={"X-Attempt": "1"})
DELIVERED = Outcome("delivered", status=204, latency_ms=3)


@pytest.fixture
def due(db: Database, tenant_id: str) -> None:
    """Twelve due deliveries: eight to one host, four to another."""
    add_due(db, tenant_id, 12, "CASE WHEN n <= 8 THEN 'slow' ELSE 'fast' END")


def add_due(db: Database, tenant_id: str, count: int, lane: str, prefix: str = "", **columns: str) -> None:
    """Due deliveries in lanes that an expression of `n` names."""
    job = f"job_{prefix}"
    execute(
        db,
        "INSERT INTO job (id, tenant_id, status, priority, input, params, model, num_images) "
        "VALUES (:job, :tenant, 'queued', 'standard', '{}', '{}', '{}', 1)",
        job=job,
        tenant=tenant_id,
    )
    execute(db, "UPDATE tenant SET event_seq = event_seq + :count WHERE id = :tenant", count=count, tenant=tenant_id)
    execute(
        db,
        "INSERT INTO event (id, tenant_id, seq, job_id, type, data) SELECT 'evt_' || :prefix || n, :tenant, event_seq - n + 1, :job, "
        "'job.queued', '{\"object\": \"x\"}' FROM generate_series(1, :count) n, tenant WHERE tenant.id = :tenant",
        prefix=prefix,
        tenant=tenant_id,
        job=job,
        count=count,
    )
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", {value}" for value in columns.values())
    execute(
        db,
        f"INSERT INTO webhook_delivery (id, tenant_id, event_id, url, lane{names}) "
        f"SELECT 'whd_' || :prefix || n, :tenant, 'evt_' || :prefix || n, 'http://h/' || n, {lane}{values} "
        "FROM generate_series(1, :count) n",
        prefix=prefix,
        tenant=tenant_id,
        count=count,
    )


def claim(db: Database, most: int = 100, lease_s: float = 30, **room: Any) -> list[Delivery]:
    """Claim as a sender does; bodies name the attempt that made them."""
    whole = replace(Room(most, 100, 1000), **room)
    return deliveries.claim_deliveries(db, whole, lease_s, lambda delivery: f"{delivery.id} {delivery.attempt}".encode())


def lanes(claimed: list[Delivery]) -> dict[str, int]:
    return dict(Counter(delivery.lane for delivery in claimed))


def finish(db: Database, *results: tuple[Delivery, Outcome]) -> set[str]:
    return deliveries.finish_deliveries(db, results)


def endpoint(db: Database, tenant_id: str, url: str = "https://a.example/hook", events: tuple[str, ...] = ("*",), **more: Any) -> str:
    """An endpoint's id."""
    new = NewEndpoint(url=url, host="a.example", events=list(events), secret=b"sealed-1", secret_hint="whsec_…abc=", **more)
    return str(add_endpoint(db, tenant_id, new)["id"])


def health(db: Database, endpoint_id: str) -> tuple[Any, ...]:
    """Status, reason, failures, openings, seconds until the breaker closes."""
    columns = (
        "status, disabled_reason, consecutive_failures, breaker_openings, round(extract(epoch from breaker_until - clock_timestamp()))"
    )
    return query(db, f"SELECT {columns} FROM webhook_endpoint WHERE id = :id", id=endpoint_id)[0]


def rows_read(plan: dict[str, Any], table: str) -> float:
    """Rows of a table that a plan has looked at, as `EXPLAIN ANALYZE` tells."""
    below = sum(rows_read(part, table) for part in plan.get("Plans", ()))
    if plan.get("Relation Name") != table:
        return below
    return below + plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))


def test_a_queue_gives_no_more_than_it_has_room_for(db: Database, due: None) -> None:
    """Of each queue the first few, as many as the sender says; of the others as many as of any."""
    assert lanes(claim(db, queue=3)) == {"slow": 3, "fast": 3}
    assert lanes(claim(db, queue=3, queues={"slow live": 0})) == {"fast": 1}
    assert lanes(claim(db, 2, queues={"slow live": 4})) == {"slow": 2}


def test_a_tenant_gives_no_more_than_it_has_room_for(db: Database, tenant_id: str, due: None) -> None:
    """However many queues it has."""
    other = ensure_tenant(db, "other", b"sealed")
    add_due(db, other, 3, "'third'", "other")
    assert Counter(delivery.tenant_id for delivery in claim(db, tenant=2)) == {tenant_id: 2, other: 2}
    assert Counter(delivery.tenant_id for delivery in claim(db, tenants={tenant_id: 1})) == {tenant_id: 1, other: 1}


def test_a_backlog_costs_others_nothing(db: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20,000 deliveries waiting for one host, those of another one are found at once."""
    add_due(db, tenant_id, 20_000, "'dead'", "dead")
    add_due(db, tenant_id, 3, "'well'", "well")
    execute(db, "ANALYZE webhook_delivery")
    run, read = db.run_alone, []

    def explain(sql: str, values: Any) -> list[Any]:
        if sql == CHOOSE:
            [(plan,)] = run(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values)
            read.append(rows_read(plan[0]["Plan"], "webhook_delivery"))
        return run(sql, values)

    monkeypatch.setattr(db, "run_alone", explain)
    assert lanes(claim(db, queue=4)) == {"dead": 4, "well": 3}
    [num_rows] = read
    assert 0 < num_rows < 100


def test_claimed_delivery_is_held_until_its_lease_ends(db: Database, due: None) -> None:
    """A delivery of a sender that died is claimed again with the same bytes, as the next attempt; the late answer is dropped."""
    first = claim(db, lease_s=0)
    again = {delivery.id: delivery for delivery in claim(db)}
    assert {delivery.attempt for delivery in again.values()} == {2}
    assert again[first[0].id].body == first[0].body == f"{first[0].id} 1".encode()
    assert finish(db, (first[0], DELIVERED)) == set()
    assert finish(db, (again[first[0].id], DELIVERED)) == {first[0].id}
    log = query(db, "SELECT attempt, status, error FROM webhook_attempt WHERE delivery_id = :id ORDER BY attempt", id=first[0].id)
    assert log == [(1, None, "the sender ended before it could write down an answer"), (2, 204, None)]


def test_outcomes(db: Database, due: None) -> None:
    """A retry waits, a delivered one is done, an exhausted one is kept, a released one does not count as an attempt; posts are logged."""
    one, two, three, four = claim(db, 4)
    assert finish(db, (one, FAILED), (two, DELIVERED), (three, Outcome("exhausted", error="gone"))) == {one.id, two.id, three.id}
    deliveries.release_deliveries(db, [four])
    again = {delivery.id: delivery for delivery in claim(db)}
    assert (again[one.id].attempt, again[one.id].tries, again[one.id].body) == (2, 2, one.body)
    assert again[four.id].attempt == 1
    assert not {two.id, three.id} & set(again)
    log = query(
        db, "SELECT attempt, url, headers, status, error, reply, latency_ms FROM webhook_attempt WHERE delivery_id = :id", id=one.id
    )
    assert log == [(1, one.url, {"X-Attempt": "1"}, 500, "status 500", b"oops", 3)]
    assert len(query(db, "SELECT FROM webhook_attempt")) == 3


def test_a_body_that_cannot_be_made_holds_up_nobody(db: Database, due: None) -> None:
    """It is claimed without one, and made at the next attempt."""
    claimed = deliveries.claim_deliveries(db, Room(2, 100, 100), 0, lambda delivery: None)
    assert [delivery.body for delivery in claimed] == [None, None]
    assert all(delivery.body for delivery in claim(db))


def test_two_senders_share_the_work(db: Database, due: None) -> None:
    """Senders that claim at the same moment never get the same delivery."""
    claimed: list[str] = []

    def work() -> None:
        while got := claim(db, 2):
            claimed.extend(delivery.id for delivery in got)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed))


def test_an_event_goes_to_every_endpoint_that_wants_it(db: Database, tenant_id: str, new_job: NewJob) -> None:
    """By name, by kind or all; beside the job's own URL, even the same one; never to another tenant's, a disabled or a deleted one."""
    url = "https://example.com/hook"
    wanted = {endpoint(db, tenant_id, url, (names,)) for names in ("*", "job.*", "job.queued")}
    endpoint(db, tenant_id, url, ("job.succeeded", "batch.*"))
    change_endpoint(db, tenant_id, endpoint(db, tenant_id), {"status": "disabled"})
    delete_endpoint(db, tenant_id, endpoint(db, tenant_id))
    endpoint(db, ensure_tenant(db, "other", b"sealed"))
    submit(db, replace(new_job, webhook={"url": url, "events": ["job.queued"]}))
    found = query(db, "SELECT endpoint_id, lane, kind FROM webhook_delivery")
    assert {row[0] for row in found} == {None, *wanted}
    assert len(found) == 4
    assert {row[1] for row in found} == {f"{tenant_id}/example.com", *wanted}


def test_an_endpoints_deliveries_have_its_secret_and_its_newest_url(db: Database, tenant_id: str, new_job: NewJob) -> None:
    """What was changed after the event holds for its delivery, too; the jobs' own URLs are signed with the tenant's secret."""
    mine = endpoint(db, tenant_id, is_thin=True)
    submit(db, replace(new_job, webhook={"url": "https://example.com/", "events": ["job.queued"]}))
    change_endpoint(db, tenant_id, mine, {"url": "https://b.example/new", "host": "b.example"})
    by_endpoint = {delivery.endpoint_id: delivery for delivery in claim(db)}
    assert (by_endpoint[mine].url, by_endpoint[mine].sealed_secrets, by_endpoint[mine].is_thin) == (
        "https://b.example/new",
        (b"sealed-1",),
        True,
    )
    assert (by_endpoint[None].url, by_endpoint[None].sealed_secrets, by_endpoint[None].is_thin) == (
        "https://example.com/",
        (b"sealed",),
        False,
    )


def test_a_jobs_own_url_may_be_signed_by_an_endpoints_secret(db: Database, tenant_id: str, new_job: NewJob) -> None:
    """By the endpoint that the job names, through its rotation; by the tenant's if it is deleted, or another tenant's."""
    mine, gone = (endpoint(db, tenant_id, events=("job.failed",)) for _ in range(2))
    foreign = endpoint(db, ensure_tenant(db, "other", b"sealed"))
    rotate_endpoint_secret(db, tenant_id, mine, b"sealed-2", "whsec_…abc=", 60)
    delete_endpoint(db, tenant_id, gone)
    expected = {mine: (b"sealed-2", b"sealed-1"), gone: (b"sealed",), foreign: (b"sealed",)}
    for secret_id, secrets in expected.items():
        submit(db, replace(new_job, webhook={"url": "https://example.com/", "events": ["job.queued"], "secret_id": secret_id}))
        [delivery] = claim(db)
        assert delivery.sealed_secrets == secrets


def fail(db: Database, endpoint_id: str, times: int, **changes: Any) -> None:
    """So many attempts at this endpoint fail, one after the other, as soon as its breaker allows."""
    for _ in range(times):
        execute(db, "UPDATE webhook_endpoint SET breaker_until = clock_timestamp() WHERE breaker_until IS NOT NULL")
        (delivery,) = claim(db, 1)
        assert delivery.endpoint_id == endpoint_id
        finish(db, (delivery, replace(FAILED, **changes)))


def test_the_breaker_opens_and_closes(db: Database, tenant_id: str) -> None:
    """After five failures nothing is sent for a minute, then one probe; a failing probe doubles the wait, a good one closes it."""
    mine = endpoint(db, tenant_id)
    add_due(db, tenant_id, 6, f"'{mine}'", endpoint_id=f"'{mine}'")
    fail(db, mine, 4)
    assert health(db, mine) == ("enabled", None, 4, 0, None)
    fail(db, mine, 1)
    assert health(db, mine) == ("enabled", None, 5, 1, 60)
    assert claim(db) == []
    # When the time is over, one goes, and as long as it is on its way no other
    execute(db, "UPDATE webhook_endpoint SET breaker_until = clock_timestamp()")
    (probe,) = claim(db)
    assert probe.is_probe
    assert claim(db) == []
    finish(db, (probe, FAILED))
    assert health(db, mine) == ("enabled", None, 6, 2, 120)
    execute(db, "UPDATE webhook_endpoint SET breaker_until = clock_timestamp()")
    (probe,) = claim(db)
    finish(db, (probe, DELIVERED))
    assert health(db, mine) == ("enabled", None, 0, 0, None)
    assert len(claim(db)) == 5


def test_two_senders_send_one_probe(db: Database, tenant_id: str) -> None:
    """Whoever comes first; the other one gets nothing."""
    mine = endpoint(db, tenant_id)
    add_due(db, tenant_id, 12, f"'{mine}'", endpoint_id=f"'{mine}'")
    execute(db, "UPDATE webhook_endpoint SET consecutive_failures = 5, breaker_openings = 1, breaker_until = clock_timestamp()")
    claimed: list[Delivery] = []
    threads = [threading.Thread(target=lambda: claimed.extend(claim(db))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 1


def test_what_fails_beside_the_fifth_does_not_open_it_further(db: Database, tenant_id: str) -> None:
    """Eight that were in flight together are one reason to wait a minute, not eight minutes."""
    mine = endpoint(db, tenant_id)
    add_due(db, tenant_id, 8, f"'{mine}'", endpoint_id=f"'{mine}'")
    finish(db, *((delivery, FAILED) for delivery in claim(db)))
    assert health(db, mine) == ("enabled", None, 8, 1, 60)


def test_gone_disables_and_tells_the_others(db: Database, tenant_id: str) -> None:
    """410 disables the endpoint at once; endpoints that want to know hear of it, what still waited is given up, and it can be enabled."""
    mine, other = endpoint(db, tenant_id), endpoint(db, tenant_id, events=("endpoint.*",))
    endpoint(db, tenant_id, events=("job.*",))
    add_due(db, tenant_id, 3, f"'{mine}'", endpoint_id=f"'{mine}'")
    first, *_ = claim(db, 1)
    finish(db, (first, Outcome("exhausted", status=410, error="status 410", is_gone=True)))
    assert health(db, mine)[:2] == ("disabled", "gone")
    (notice,) = claim(db)
    assert (notice.endpoint_id, notice.event_type) == (other, "endpoint.disabled")
    assert (notice.event_data["id"], notice.event_data["disabled_reason"]) == (mine, "gone")
    assert deliveries.close_deliveries(db, 100) == 2
    assert deliveries.close_deliveries(db, 100) == 0
    states = query(db, "SELECT state, last_error FROM webhook_delivery WHERE endpoint_id = :id AND id <> :first", id=mine, first=first.id)
    assert states == [("exhausted", "the webhook endpoint was disabled or deleted")] * 2
    again = change_endpoint(db, tenant_id, mine, {"status": "enabled"})
    assert again is not None
    assert (again["status"], again["disabled_reason"], again["consecutive_failures"]) == ("enabled", None, 0)


def test_five_days_of_failures_disable(db: Database, tenant_id: str) -> None:
    """Not a moment earlier, and never after something has arrived."""
    mine = endpoint(db, tenant_id)
    add_due(db, tenant_id, 8, f"'{mine}'", endpoint_id=f"'{mine}'")
    fail(db, mine, 5)
    execute(db, "UPDATE webhook_endpoint SET failing_since = clock_timestamp() - interval '119 hours 59 minutes'")
    fail(db, mine, 1)
    assert health(db, mine)[0] == "enabled"
    execute(db, "UPDATE webhook_endpoint SET failing_since = clock_timestamp() - interval '120 hours'")
    fail(db, mine, 1)
    assert health(db, mine)[:2] == ("disabled", "failing")
    assert query(db, "SELECT type, job_id FROM event ORDER BY seq DESC LIMIT 1") == [("endpoint.disabled", None)]
    document = get_endpoint(db, tenant_id, mine)
    assert document is not None
    assert document["status"] == "disabled"


def test_tests_and_our_own_faults_are_not_the_endpoints(db: Database, tenant_id: str) -> None:
    """They leave its breaker alone; a test that arrives closes it."""
    mine = endpoint(db, tenant_id)
    add_due(db, tenant_id, 6, f"'{mine}'", "test", endpoint_id=f"'{mine}'", kind="'test'")
    add_due(db, tenant_id, 6, f"'{mine}'", "live", endpoint_id=f"'{mine}'")
    tests = [delivery for delivery in claim(db, queues={f"{mine} test": 6}) if delivery.kind == "test"]
    finish(db, *((delivery, replace(FAILED, state="exhausted")) for delivery in tests[:5]))
    assert health(db, mine)[2] == 0
    execute(db, "UPDATE webhook_delivery SET lease_until = NULL")
    finish(db, *((delivery, replace(FAILED, is_own_fault=True)) for delivery in claim(db) if delivery.kind == "live"))
    assert health(db, mine)[2] == 0
    execute(
        db, "UPDATE webhook_endpoint SET consecutive_failures = 5, breaker_openings = 1, breaker_until = clock_timestamp() + interval '1 h'"
    )
    execute(db, "UPDATE webhook_delivery SET lease_until = NULL")
    (test,) = claim(db)
    assert (test.kind, test.is_probe) == ("test", False)
    finish(db, (test, DELIVERED))
    assert health(db, mine) == ("enabled", None, 0, 0, None)


def test_replays_do_not_hold_up_what_is_new(db: Database, tenant_id: str) -> None:
    """They wait in a queue of their own, one at a time."""
    mine = endpoint(db, tenant_id)
    add_due(db, tenant_id, 9, f"'{mine}'", "old", endpoint_id=f"'{mine}'", kind="'replay'")
    add_due(db, tenant_id, 2, f"'{mine}'", "new", endpoint_id=f"'{mine}'")
    assert Counter(delivery.kind for delivery in claim(db, queue=4)) == {"live": 2, "replay": 1}
