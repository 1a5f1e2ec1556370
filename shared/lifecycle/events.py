"""The event of a change and the deliveries it causes, written in the change's own transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

from sqlalchemy import Table, bindparam, select
from sqlalchemy.orm import Session

from shared.ids import new_id
from shared.job_document import job_document
from shared.states import TERMINAL_JOB
from shared.tables import Event, Grid, Image, Job, Tenant, WebhookDelivery

JOB_EVENTS = (
    "job.queued",
    "job.started",
    "job.tokens_ready",
    "job.requeued",
    *(f"job.{status}" for status in ("succeeded", "failed", "canceled", "expired")),
)
"""Every type a job's events have, in the order of a job's life."""

DEFAULT_WEBHOOK_EVENTS = tuple(f"job.{status}" for status in sorted(TERMINAL_JOB))
"""What a per-job webhook hears when it names no events: the end, whichever it is."""


_TENANTS, _EVENTS = cast(Table, Tenant.__table__), cast(Table, Event.__table__)
# Built once, and of tables: four events are written for every job, and rows of the session's cost twice as much.
_TAKE_SEQ = (
    _TENANTS.update()
    .where(_TENANTS.c.id == bindparam("of_tenant"))
    .values(event_seq=_TENANTS.c.event_seq + 1)
    .returning(_TENANTS.c.event_seq)
)
_ADD_EVENT = _EVENTS.insert()


def record_event(session: Session, job: Job, event_type: str) -> None:
    """Append an event with the job as it now is, and one delivery if the job's webhook wants it."""
    session.flush()
    images, grids = images_and_grids(session, job.id)
    # Locked until the transaction ends: all of a tenant's changes pass here one by one, which is what makes `seq` gap-free.
    seq = session.execute(_TAKE_SEQ, {"of_tenant": job.tenant_id}).scalar_one()
    event_id = new_id("evt")
    values = {"id": event_id, "tenant_id": job.tenant_id, "seq": seq, "job_id": job.id, "type": event_type}
    session.execute(_ADD_EVENT, {**values, "data": job_document(job, images, grids)})
    if job.webhook and event_type in job.webhook["events"]:
        url = job.webhook["url"]
        session.add(
            WebhookDelivery(id=new_id("whd"), tenant_id=job.tenant_id, event_id=event_id, url=url, host=urlsplit(url).netloc.lower())
        )


def images_and_grids(session: Session, job_id: str) -> tuple[Sequence[Image], dict[str, Grid]]:
    """The images of a job by index, and the grids they are drawn from by id."""
    # populate_existing: conditional UPDATEs of this transaction passed by the session's copies.
    fresh = {"populate_existing": True}
    images = session.scalars(select(Image).where(Image.job_id == job_id).order_by(Image.index).execution_options(**fresh)).all()
    wanted = {image.grid_id for image in images}
    grids = session.scalars(select(Grid).where(Grid.id.in_(wanted)).execution_options(**fresh))
    return images, {grid.id: grid for grid in grids}
