"""The event of a change and the deliveries it causes, written in the change's own transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json
from sqlalchemy.orm import Session

from shared.db import note_changes, note_deliveries, read_rows
from shared.dialects import DIALECTS, dialect_of
from shared.ids import new_id
from shared.job_document import job_document
from shared.lifecycle.drawn import Drawn, read_drawn
from shared.states import TERMINAL_JOB, JobStatus
from shared.tables import Job, WebhookEndpoint
from shared.webhooks import is_wanted

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

ENDPOINT_EVENTS = ("endpoint.disabled", "endpoint.test")
"""What happens to webhook endpoints themselves."""

BATCH_EVENTS = tuple(
    f"batch.{what}" for what in ("completed", "partial", "failed", "canceled", "cancelled", "expired", "paused", "item_failed")
)
DIALECT_EVENTS = tuple(name for dialect in DIALECTS.values() for name in dialect.end_events)
"""By the names of other interfaces; so is `batch.cancelled`."""

QUOTA_WARNING = "quota.warning"
"""A tenant has used most of what it may use."""

EVENT_TYPES = (*JOB_EVENTS, *BATCH_EVENTS, *DIALECT_EVENTS, *ENDPOINT_EVENTS, QUOTA_WARNING)
"""Every type of what is kept: an event has a row and a number, and can be read and delivered for as long as that is there."""

EVENT_FILTERS = ("*", *dict.fromkeys(name.partition(".")[0] + ".*" for name in EVENT_TYPES), *EVENT_TYPES)
"""How somebody asks for types: all, all of a kind, or by name."""

JOB_PROGRESS = "job.progress"
"""How far a job is, told as it moves and kept nowhere. Webhooks have it by its own name only: `*` and `job.*` must flood nobody."""

WEBHOOK_TYPES = (*EVENT_TYPES, JOB_PROGRESS)
WEBHOOK_FILTERS = (*EVENT_FILTERS, JOB_PROGRESS)
"""The same for webhooks."""

DEFAULT_WEBHOOK_EVENTS = tuple(f"job.{status}" for status in sorted(TERMINAL_JOB))
"""What a per-job webhook hears when it names no events: the end, whichever it is."""


# One trip, in plain SQL, and one value for everything: four events are written for every job, under the lock of the tenant's row, and of
# many parameters psycopg would parse the statement anew each time.
_ADD_EVENTS = """
    WITH given AS (SELECT %(given)s::jsonb AS rows), {first} numbered AS (
        -- Locked until the transaction ends: all of a tenant's changes pass here one by one, which is what makes `seq` gap-free.
        UPDATE tenant SET event_seq = event_seq + %(count)s, num_queued = num_queued + %(more_queued)s
        WHERE id = %(tenant)s
        -- Of the row as it is once it is locked: whoever adds an endpoint counts it there, so none is overlooked, and tenants without
        -- endpoints cost no look-up.
        RETURNING event_seq, num_endpoints, num_queued
    ), added AS (
        INSERT INTO event (id, tenant_id, seq, job_id, type, run, data)
        SELECT
            entry->>'id', %(tenant)s, numbered.event_seq - %(count)s + place, entry->>'job_id', %(type)s,
            coalesce((entry->>'run')::bigint, 1), entry->'data'
        FROM given, numbered, jsonb_array_elements(rows->'events') WITH ORDINALITY AS event(entry, place)
    ), delivered AS (
        INSERT INTO webhook_delivery (id, tenant_id, event_id, url, lane, endpoint_id, kind)
        SELECT id, tenant_id, event_id, url, lane, endpoint_id, kind
        FROM given, jsonb_populate_recordset(NULL::webhook_delivery, rows->'deliveries')
    )
    SELECT num_endpoints, num_queued FROM numbered
"""
_RECORD = _ADD_EVENTS.format(first="")
_SUCCEED_AND_RECORD = _ADD_EVENTS.format(
    first="""
    ended AS (
        UPDATE job SET
            status = 'succeeded', version = version + 1,
            completed_at = %(ended_at)s, expires_at = %(ended_at)s + expires_in_s * interval '1 s'
        FROM given, jsonb_array_elements(rows->'events') AS event(entry) WHERE job.id = entry->>'job_id'
    ),"""
)
_ADD_DELIVERIES = """
    INSERT INTO webhook_delivery (id, tenant_id, event_id, url, lane, endpoint_id, kind)
    SELECT id, tenant_id, event_id, url, lane, endpoint_id, kind FROM jsonb_populate_recordset(NULL::webhook_delivery, %(given)s::jsonb)
    RETURNING id
"""
_LISTENERS = "SELECT id, url, events FROM webhook_endpoint WHERE tenant_id = %(tenant)s AND status = 'enabled'"


def count_change(session: Session, job: Job) -> None:
    """A job has changed in a way that is no event."""
    job.version += 1
    note_changes(session, (job.id,))


def record_changes(session: Session, jobs: Sequence[Job], event_type: str) -> None:
    """Jobs of one tenant have changed in the same way: each gets its next version and an event."""
    for job in jobs:
        job.version += 1
    record_events(session, jobs, event_type)
    if event_type in JOB_ENDS:
        _record_other_names(session, jobs)


def _record_other_names(session: Session, jobs: Sequence[Job]) -> None:
    """
    Jobs have ended that are something else besides: a response of another interface, a line of a batch.

    Their events are of no job, so that a job's stream has one end; and they have ids only, so that nothing is left of a job that is erased.
    """
    for job in jobs:
        if (end := dialect_of(job.dialect).end_event(job.id, JobStatus(job.status))) is not None:
            record_event(session, job.tenant_id, *end)
        if job.batch_id is not None and job.status == JobStatus.FAILED:
            record_item_failure(session, job.tenant_id, job.batch_id, (job.error or {}).get("code"), job_id=job.id)


def record_item_failure(session: Session, tenant_id: str, batch_id: str, code: str | None, **which: Any) -> None:
    """
    A request of a batch has failed while the others go on.

    Args:
        which: the job's id, or the line for which there is none.
    """
    record_event(session, tenant_id, "batch.item_failed", {"id": batch_id, "object": "batch", "error": {"code": code}, **which})


def record_events(session: Session, jobs: Sequence[Job], event_type: str) -> int:
    """
    Append an event for each job, as it now is, and a delivery for each webhook and each endpoint that wants it.

    All of them at once: what a hundred jobs wait for together must not cost a hundred round trips under the tenant's lock.

    Args:
        jobs: of one tenant.
    Returns:
        How many jobs of the tenant are queued now.
    """
    if not jobs:
        return 0
    session.flush()
    return _record(session, jobs, event_type, read_drawn(session, [job.id for job in jobs]))


def record_success(session: Session, jobs: Sequence[Job], drawn: Drawn) -> None:
    """
    Write that jobs have succeeded, and their events, by one statement.

    Args:
        jobs: of one tenant, locked by this transaction, as they are after it; not the session's own rows.
        drawn: their images, all of them done.
    """
    _record(session, jobs, "job.succeeded", drawn, ended_at=drawn.read_at)
    _record_other_names(session, jobs)


def _record(session: Session, jobs: Sequence[Job], event_type: str, drawn: Drawn, ended_at: datetime | None = None) -> int:
    tenant_id = jobs[0].tenant_id
    note_changes(session, (tenant_id, *(job.id for job in jobs)))
    events: list[dict[str, Any]] = []
    deliveries: list[dict[str, Any]] = []
    for job in jobs:
        event_id = new_id("evt")
        events.append({"id": event_id, "job_id": job.id, "run": job.run, "data": job_document(job, drawn.images[job.id], drawn.grids)})
        if job.webhook and event_type in job.webhook["events"]:
            deliveries.append(_delivery(tenant_id, event_id, job.webhook["url"], inline_lane(tenant_id, job.webhook["url"]), None))
    return _add(session, tenant_id, event_type, events, deliveries, _more_queued(jobs, event_type), ended_at=ended_at)


def _add(
    session: Session,
    tenant_id: str,
    event_type: str,
    events: Sequence[Mapping[str, Any]],
    deliveries: Sequence[Mapping[str, Any]],
    more_queued: int = 0,
    *,
    tells_listeners: bool = True,
    ended_at: datetime | None = None,
) -> int:
    """
    Number and append events of one type, with these deliveries and those to the endpoints that want them.

    Args:
        ended_at: the jobs of the events succeeded then, which is to be written, too.
    Returns:
        How many jobs of the tenant are queued now.
    """
    given = to_json({"events": events, "deliveries": deliveries}).decode()
    values = {"given": given, "count": len(events), "more_queued": more_queued, "tenant": tenant_id, "type": event_type}
    if deliveries:
        note_deliveries(session)
    statement = _RECORD if ended_at is None else _SUCCEED_AND_RECORD
    [(num_endpoints, num_queued)] = read_rows(session, statement, values | ({} if ended_at is None else {"ended_at": ended_at}))
    if num_endpoints and tells_listeners:
        heard = _for_listeners(session, tenant_id, event_type, [event["id"] for event in events])
        if heard:
            note_deliveries(session)
            read_rows(session, _ADD_DELIVERIES, {"given": to_json(heard).decode()})
    return int(num_queued)


def _more_queued(jobs: Sequence[Job], event_type: str) -> int:
    """By how many the jobs with the status `queued` become more with this event."""
    if event_type == "job.queued":
        return len(jobs)
    if event_type == "job.started":
        return -len(jobs)
    # A job that ends without ever having started was queued until now.
    return -sum(job.status in TERMINAL_JOB and job.started_at is None for job in jobs)


def record_event(session: Session, tenant_id: str, event_type: str, data: dict[str, Any], event_id: str | None = None) -> str:
    """
    Append an event that is about no job, and a delivery for each endpoint that wants it.

    Args:
        data: with an `object` that says what it is.
        event_id: None: a new one.
    Returns:
        The event's id.
    """
    session.flush()
    note_changes(session, (tenant_id,))
    event_id = event_id or new_id("evt")
    _add(session, tenant_id, event_type, [{"id": event_id, "data": data}], [])
    return event_id


def record_test(session: Session, endpoint: WebhookEndpoint, data: dict[str, Any]) -> str:
    """Append an `endpoint.test` for this endpoint alone, whatever it listens to. Returns the delivery's id."""
    note_changes(session, (endpoint.tenant_id,))
    event_id = new_id("evt")
    delivery = {**_delivery(endpoint.tenant_id, event_id, endpoint.url, endpoint.id, endpoint.id), "kind": "test"}
    _add(session, endpoint.tenant_id, "endpoint.test", [{"id": event_id, "data": data}], [delivery], tells_listeners=False)
    return str(delivery["id"])


def inline_lane(tenant_id: str, url: str) -> str:
    """Whom deliveries to a job's own URL wait behind: those of the same tenant to the same host."""
    return f"{tenant_id}/{urlsplit(url).netloc.lower()}"


def _for_listeners(session: Session, tenant_id: str, event_type: str, event_ids: Sequence[str]) -> list[dict[str, Any]]:
    listeners = [row for row in read_rows(session, _LISTENERS, {"tenant": tenant_id}) if is_wanted(event_type, row.events)]
    return [_delivery(tenant_id, event_id, row.url, row.id, row.id) for event_id in event_ids for row in listeners]


def _delivery(tenant_id: str, event_id: str, url: str, lane: str, endpoint_id: str | None) -> dict[str, Any]:
    values = {"id": new_id("whd"), "tenant_id": tenant_id, "event_id": event_id}
    return {**values, "url": url, "lane": lane, "endpoint_id": endpoint_id, "kind": "live"}
