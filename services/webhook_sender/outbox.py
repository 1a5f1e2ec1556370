"""Where deliveries come from and how they went: the few calls of the ledger that a sender needs, made for one sender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shared.db import Database
from shared.lifecycle.deliveries import (
    Delivery,
    Outcome,
    Room,
    claim_deliveries,
    close_deliveries,
    finish_deliveries,
    release_deliveries,
)

_CLOSE_AT_ONCE = 1000


class Outbox(Protocol):
    """Blocking calls, each one transaction, safe to make from any thread."""

    def claim(self, room: Room) -> list[Delivery]:
        """What is due, with bodies, as far as there is room for it."""

    def finish(self, results: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        """Write down how some went. Returns the ids that were written; the others took so long that another sender has them."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give some back as if they had not been claimed."""

    def close_disabled(self) -> bool:
        """Give up what waits for endpoints that are disabled. Is there more?"""


class LedgerOutbox:
    """The outbox in Postgres."""

    def __init__(self, db: Database, lease_s: float, write: Callable[[Delivery], bytes | None]) -> None:
        self._db = db
        self._lease_s = lease_s
        self._write = write

    def claim(self, room: Room) -> list[Delivery]:
        return claim_deliveries(self._db, room, self._lease_s, self._write)

    def finish(self, results: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        return finish_deliveries(self._db, results)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        release_deliveries(self._db, deliveries)

    def close_disabled(self) -> bool:
        return close_deliveries(self._db, _CLOSE_AT_ONCE) >= _CLOSE_AT_ONCE
