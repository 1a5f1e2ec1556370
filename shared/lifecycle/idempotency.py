"""One `Idempotency-Key`, one job: the key is claimed in the transaction that writes the job."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.tables import IdempotencyKey, Job


@dataclass(frozen=True)
class Idempotency:
    """An `Idempotency-Key` and the meaning of the request it came with."""

    route: str
    key: str
    fingerprint: str


def find_replay(db: Database, tenant_id: str, idempotency: Idempotency) -> str | None:
    """
    The job that this key made before; a retry needs nothing else of its request.

    Raises:
        RequestError: `idempotency_mismatch`, the key came before with another request.
    """

    def work(session: Session) -> str | None:
        holder = session.get(IdempotencyKey, (tenant_id, idempotency.route, idempotency.key))
        return None if holder is None else _same_request(holder, idempotency)

    return db.run(work)


def claim_key(session: Session, job: Job, idempotency: Idempotency) -> str | None:
    """Take the key for this job; the id of the job that already has it otherwise."""
    taken = session.execute(
        insert(IdempotencyKey)
        .values(key_columns(job.tenant_id, job.id, idempotency))
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )
    if taken.one_or_none() is not None:
        return None
    # The insert above waited for a concurrent one with this key, so its row is committed and visible now.
    holder = session.get_one(IdempotencyKey, (job.tenant_id, idempotency.route, idempotency.key))
    return _same_request(holder, idempotency)


def key_columns(tenant_id: str, job_id: str, idempotency: Idempotency) -> dict[str, str]:
    """The row of a key that a job has."""
    return {
        "tenant_id": tenant_id,
        "route": idempotency.route,
        "key": idempotency.key,
        "fingerprint": idempotency.fingerprint,
        "job_id": job_id,
    }


def _same_request(holder: IdempotencyKey, idempotency: Idempotency) -> str:
    if holder.fingerprint != idempotency.fingerprint:
        raise RequestError("idempotency_mismatch", "this Idempotency-Key came before with a different request", "Idempotency-Key")
    return holder.job_id
