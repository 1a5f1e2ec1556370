"""
Clients that repeat a request by themselves and number the tries, but send no `Idempotency-Key`: the tries of one request make one job.

A later try has the content of the first one, and takes its job unless another try of that number has it. Two callers who send the same
content at the same moment may so get each other's job, which is the one that they asked for, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select, and_, func, literal, or_, select, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.tables import ClientTry, Job

_UNANSWERED = timedelta(hours=1)
"""Longer than any client waits for an answer before it tries again."""
_ANSWERED = timedelta(seconds=60)
"""An answer that was lost on its way is asked for again within seconds; the clients wait 8 s at most before a try."""

_now = func.clock_timestamp


@dataclass(frozen=True)
class Try:
    """
    One try of a request.

    Attributes:
        fingerprint: of what was asked.
        number: 0 is the first one.
        elapsed_s: since the try arrived.
    """

    fingerprint: str
    number: int
    elapsed_s: float = 0.0


def find_earlier(db: Database, tenant_id: str, this: Try) -> str | None:
    """The job that an earlier try of this request made; it is this try's from now on."""
    return db.run(lambda session: _take_earlier(session, tenant_id, this)) if this.number else None


def claim_try(session: Session, job: Job, this: Try) -> str | None:
    """Note that the try makes this job; the id of the job that another try of the request has made otherwise."""
    # Two tries may be under way at once: the client has given the first one up, and we do not know of it.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(literal(f"{job.tenant_id} {this.fingerprint}"), 0))))
    other = _take_earlier(session, job.tenant_id, this) or _find_later(session, job.tenant_id, this)
    if other is None:
        session.add(ClientTry(job_id=job.id, tenant_id=job.tenant_id, fingerprint=this.fingerprint, num_retries=this.number))
        session.flush()
    return other


def note_answer(db: Database, job_id: str) -> None:
    """An answer was made for the tries of this job: whoever asks much later with the same content asks for another job."""
    db.run(lambda session: session.execute(update(ClientTry).where(ClientTry.job_id == job_id).values(answered_at=_now())))


def _same(tenant_id: str, this: Try) -> Select[ClientTry]:
    return select(ClientTry).where(ClientTry.tenant_id == tenant_id, ClientTry.fingerprint == this.fingerprint)


def _take_earlier(session: Session, tenant_id: str, this: Try) -> str | None:
    if not this.number:
        return None
    is_fresh = or_(
        and_(ClientTry.answered_at.is_(None), ClientTry.created_at > _now() - _UNANSWERED),
        ClientTry.answered_at > _now() - _ANSWERED,
    )
    found = session.scalars(
        _same(tenant_id, this)
        .where(ClientTry.num_retries < this.number, is_fresh)
        .order_by(ClientTry.answered_at.is_not(None), ClientTry.created_at.desc())
        .limit(1)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if found is None:
        return None
    found.num_retries = this.number
    return found.job_id


def _find_later(session: Session, tenant_id: str, this: Try) -> str | None:
    """A later try that has come and gone while this one was still being looked at."""
    began_at = _now() - timedelta(seconds=this.elapsed_s)
    later = _same(tenant_id, this).where(ClientTry.num_retries > this.number, ClientTry.created_at > began_at)
    found = session.scalars(later.order_by(ClientTry.created_at).limit(1)).one_or_none()
    return None if found is None else found.job_id
