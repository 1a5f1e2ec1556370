"""Where deliveries come from and how they went: the few calls of the ledger that a sender needs, made for one sender."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shared.db import Database
from shared.lifecycle.deliveries import Delivery, Outcome, claim_deliveries, finish_delivery, keep_body, release_delivery


class Outbox(Protocol):
    """Blocking calls, each one transaction, safe to make from any thread."""

    def claim(self, limit: int, in_flight: Mapping[str, int]) -> list[Delivery]:
        """At most `limit` due deliveries; `in_flight` counts what this sender is posting now, by host."""

    def keep_body(self, delivery: Delivery, body: bytes) -> None:
        """Store the body before its first post."""

    def finish(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Write down how it went. False: it took so long that another sender has it."""

    def release(self, delivery: Delivery) -> None:
        """Give it back as if it had not been claimed."""


class LedgerOutbox:
    """The outbox in Postgres."""

    def __init__(self, db: Database, lease_s: float, max_per_host: int) -> None:
        self._db = db
        self._lease_s = lease_s
        self._max_per_host = max_per_host

    def claim(self, limit: int, in_flight: Mapping[str, int]) -> list[Delivery]:
        return claim_deliveries(self._db, limit, self._lease_s, in_flight, self._max_per_host)

    def keep_body(self, delivery: Delivery, body: bytes) -> None:
        keep_body(self._db, delivery.id, delivery.attempt, body)

    def finish(self, delivery: Delivery, outcome: Outcome) -> bool:
        return finish_delivery(self._db, delivery.id, delivery.attempt, outcome)

    def release(self, delivery: Delivery) -> None:
        release_delivery(self._db, delivery.id, delivery.attempt)
