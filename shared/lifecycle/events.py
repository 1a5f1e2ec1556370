"""The event of a change and the deliveries it causes, written in the change's own transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast
from urllib.parse import urlsplit

from sqlalchemy import Table, bindparam, select
from sqlalchemy.orm import Session

from shared.db import note_changes
from shared.ids import new_id
from shared.job_document import JobImage, job_document
from shared.states import TERMINAL_JOB
from shared.tables import Event, Grid, Image, Job, Output, Tenant, WebhookDelivery

JOB_ENDS = ("job.succeeded", "job.failed", "job.canceled", "job.expired")

JOB_EVENTS = (
    "job.queued",
    "job.awaiting_approval",
    "job.approved",
    "job.rejected",
    "job.started",
    "job.draft_ready",
    "job.tokens_ready",
    "job.preview",
    "job.requeued",
    *JOB_ENDS,
)
"""Every type a job's events have, in the order of a job's life."""

DEFAULT_WEBHOOK_EVENTS = tuple(f"job.{status}" for status in sorted(TERMINAL_JOB))
"""What a per-job webhook hears when it names no events: the end, whichever it is."""


_TENANTS, _EVENTS = cast(Table, Tenant.__table__), cast(Table, Event.__table__)
# Built once, and of tables: four events are written for every job, and rows of the session's cost twice as much.
_TAKE_SEQS = (
    _TENANTS.update()
    .where(_TENANTS.c.id == bindparam("of_tenant"))
    .values(event_seq=_TENANTS.c.event_seq + bindparam("count"))
    .returning(_TENANTS.c.event_seq)
)
_ADD_EVENTS = _EVENTS.insert()
_OUTPUTS = (
    select(Output.job_id, Output.is_cached, Image, Grid)
    .join(Image, Image.id == Output.image_id)
    .join(Grid, Grid.id == Image.grid_id)
    .where(Output.job_id.in_(bindparam("of_jobs", expanding=True)))
    .order_by(Output.job_id, Output.index)
    # populate_existing: conditional UPDATEs of this transaction passed by the session's copies.
    .execution_options(populate_existing=True)
)


def count_change(session: Session, job: Job) -> None:
    """A job has changed in a way that is no event."""
    job.version += 1
    note_changes(session, (job.id,))


def record_changes(session: Session, jobs: Sequence[Job], event_type: str) -> None:
    """Jobs of one tenant have changed in the same way: each gets its next version and an event."""
    for job in jobs:
        job.version += 1
    record_events(session, jobs, event_type)


def record_events(session: Session, jobs: Sequence[Job], event_type: str) -> None:
    """
    Append an event for each job, as it now is, and a delivery for each whose webhook wants it.

    All of them at once: what a hundred jobs wait for together must not cost a hundred round trips under the tenant's lock.

    Args:
        jobs: of one tenant.
    """
    if not jobs:
        return
    session.flush()
    note_changes(session, (jobs[0].tenant_id, *(job.id for job in jobs)))
    images, grids = images_and_grids(session, [job.id for job in jobs])
    # Locked until the transaction ends: all of a tenant's changes pass here one by one, which is what makes `seq` gap-free.
    last_seq = session.execute(_TAKE_SEQS, {"of_tenant": jobs[0].tenant_id, "count": len(jobs)}).scalar_one()
    events = []
    for seq, job in enumerate(jobs, last_seq - len(jobs) + 1):
        event_id = new_id("evt")
        values = {"id": event_id, "tenant_id": job.tenant_id, "seq": seq, "job_id": job.id, "type": event_type}
        events.append({**values, "data": job_document(job, images[job.id], grids)})
        if job.webhook and event_type in job.webhook["events"]:
            url = job.webhook["url"]
            session.add(
                WebhookDelivery(id=new_id("whd"), tenant_id=job.tenant_id, event_id=event_id, url=url, host=urlsplit(url).netloc.lower())
            )
    session.execute(_ADD_EVENTS, events)
    session.flush()


def images_and_grids(session: Session, job_ids: Collection[str]) -> tuple[dict[str, list[JobImage]], dict[str, Grid]]:
    """The images of each job by index, and the grids they are drawn from by id."""
    images: dict[str, list[JobImage]] = {job_id: [] for job_id in job_ids}
    grids: dict[str, Grid] = {}
    for job_id, is_cached, image, grid in session.execute(_OUTPUTS, {"of_jobs": list(job_ids)}):
        images[job_id].append(JobImage(image, is_cached))
        grids[grid.id] = grid
    return images, grids
