"""Webhook deliveries in a real Postgres: who may claim what, and what an attempt leaves."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle import deliveries
from shared.lifecycle.deliveries import Outcome


@pytest.fixture
def due(db: Database, tenant_id: str) -> None:
    """Twelve due deliveries: eight to one host, four to another."""
    statements = [
        "INSERT INTO job (id, tenant_id, status, priority, input, params, model, num_images) "
        "VALUES ('job_1', :tenant, 'queued', 'standard', '{}', '{}', '{}', 1)",
        "INSERT INTO event (id, tenant_id, seq, job_id, type, data) "
        "SELECT 'evt_' || n, :tenant, n, 'job_1', 'job.queued', '{}' FROM generate_series(1, 12) n",
        "INSERT INTO webhook_delivery (id, tenant_id, event_id, url, host) "
        "SELECT 'whd_' || n, :tenant, 'evt_' || n, 'http://h/' || n, CASE WHEN n <= 8 THEN 'slow' ELSE 'fast' END "
        "FROM generate_series(1, 12) n",
    ]

    def insert(session: Session) -> None:
        for statement in statements:
            session.execute(text(statement), {"tenant": tenant_id})

    db.run(insert)


def hosts(claimed: list[deliveries.Delivery]) -> dict[str, int]:
    return {host: sum(delivery.host == host for delivery in claimed) for host in ("slow", "fast")}


def test_no_host_has_more_in_flight_than_allowed(db: Database, due: None) -> None:
    """What a sender has in flight counts against the host's room."""
    assert hosts(deliveries.claim_deliveries(db, 100, 30, {}, 3)) == {"slow": 3, "fast": 3}
    assert hosts(deliveries.claim_deliveries(db, 100, 30, {"slow": 3, "fast": 2}, 3)) == {"slow": 0, "fast": 1}
    assert hosts(deliveries.claim_deliveries(db, 2, 30, {"fast": 3}, 3)) == {"slow": 2, "fast": 0}


def test_claimed_delivery_is_held_until_its_lease_ends(db: Database, due: None) -> None:
    """A delivery of a sender that died is claimed again, as the next attempt; the late answer is dropped."""
    first = deliveries.claim_deliveries(db, 100, 0, {}, 100)
    again = {delivery.id: delivery for delivery in deliveries.claim_deliveries(db, 100, 30, {}, 100)}
    assert {delivery.attempt for delivery in again.values()} == {2}
    assert not deliveries.finish_delivery(db, first[0].id, 1, Outcome("delivered", status=200))
    assert deliveries.finish_delivery(db, first[0].id, 2, Outcome("delivered", status=200))


def test_outcomes(db: Database, due: None) -> None:
    """A retry waits, a delivered one is done, an exhausted one is kept, a released one does not count as an attempt."""
    one, two, three, four = deliveries.claim_deliveries(db, 4, 30, {}, 100)
    deliveries.keep_body(db, one.id, one.attempt, b"{}")
    deliveries.finish_delivery(db, one.id, 1, Outcome("pending", retry_in_s=0, status=500, reply=b"oops"))
    deliveries.finish_delivery(db, two.id, 1, Outcome("delivered", status=204, latency_ms=3))
    deliveries.finish_delivery(db, three.id, 1, Outcome("exhausted", error="gone"))
    deliveries.release_delivery(db, four.id, 1)
    again = {delivery.id: delivery for delivery in deliveries.claim_deliveries(db, 100, 30, {}, 100)}
    assert (again[one.id].attempt, again[one.id].body) == (2, b"{}")
    assert again[four.id].attempt == 1
    assert not {two.id, three.id} & set(again)


def test_two_senders_share_the_work(db: Database, due: None) -> None:
    """Senders that claim at the same moment never get the same delivery."""
    claimed: list[str] = []

    def claim() -> None:
        while got := deliveries.claim_deliveries(db, 2, 30, {}, 100):
            claimed.extend(delivery.id for delivery in got)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed))
