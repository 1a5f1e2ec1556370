"""
One `Idempotency-Key`, one answer, for requests that make no job: taken before the request is worked on, kept with its answer afterwards.

Two requests of one key never run side by side. What a request writes is not in one transaction with its answer: one whose process is
killed between the two is worked on again by whoever repeats it after `LEASE_S`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.lifecycle.idempotency import Idempotency
from shared.tables import StoredAnswer

LEASE_S = 60
"""Longer than any of these requests takes; the slowest one waits 20 s for a webhook's receiver."""

_now = func.clock_timestamp


@dataclass(frozen=True)
class Begun:
    """The caller has the key, and is to work on the request. `lease_until` says whose it is."""

    lease_until: datetime


@dataclass(frozen=True)
class KeptAnswer:
    """The request was answered before. `scope`: what a key needs to see the answer, which is sealed."""

    scope: str
    sealed: bytes


def begin(db: Database, tenant_id: str, once: Idempotency) -> Begun | KeptAnswer:
    """
    Take the key for a request, or find the answer that the request had.

    Raises:
        RequestError: `idempotency_mismatch`, the key came before with another request; `request_in_flight`, with this one, just now.
    """

    def work(session: Session) -> Begun | KeptAnswer:
        lease_until = _now() + timedelta(seconds=LEASE_S)
        key = {"tenant_id": tenant_id, "route": once.route, "key": once.key}
        taken = insert(StoredAnswer).values(**key, fingerprint=once.fingerprint, lease_until=lease_until)
        was_given_up = and_(StoredAnswer.lease_until < _now(), StoredAnswer.fingerprint == once.fingerprint)
        taken = taken.on_conflict_do_update(
            index_elements=list(key), set_={"lease_until": lease_until, "created_at": _now()}, where=was_given_up
        )
        mine = session.scalars(taken.returning(StoredAnswer.lease_until)).one_or_none()
        if mine is not None:
            return Begun(mine)
        row = session.get(StoredAnswer, tuple(key.values()))
        if row is not None and row.fingerprint != once.fingerprint:
            raise RequestError("idempotency_mismatch", "this Idempotency-Key came before with a different request", "Idempotency-Key")
        # Given back in the meantime: the client comes again in a moment, as it does while another one has it.
        if row is None or row.answer is None or row.scope is None:
            raise RequestError("request_in_flight", "the same request with this Idempotency-Key is being worked on", "Idempotency-Key")
        return KeptAnswer(row.scope, row.answer)

    return db.run(work)


def keep(db: Database, tenant_id: str, once: Idempotency, begun: Begun, answer: KeptAnswer) -> None:
    """Keep the answer for whoever repeats the request. Nothing, if another one has taken the request over."""
    kept = update(StoredAnswer).where(*_mine(tenant_id, once, begun))
    db.run(lambda session: session.execute(kept.values(scope=answer.scope, answer=answer.sealed, lease_until=None)))


def give_back(db: Database, tenant_id: str, once: Idempotency, begun: Begun) -> None:
    """The request was refused or failed: it may be made again, and so may another one with this key."""
    db.run(lambda session: session.execute(delete(StoredAnswer).where(*_mine(tenant_id, once, begun))))


def _mine(tenant_id: str, once: Idempotency, begun: Begun) -> tuple[ColumnElement[bool], ...]:
    return (
        StoredAnswer.tenant_id == tenant_id,
        StoredAnswer.route == once.route,
        StoredAnswer.key == once.key,
        StoredAnswer.lease_until == begun.lease_until,
    )
