"""
Who wants to hear by webhook how far jobs are, while they are drawn; and what there is to tell. Only reads.

Begins at the work that runs now, which is little and has an index: whoever has nobody to tell pays for a look at that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.job_document import Progress
from shared.lifecycle.events import JOB_PROGRESS, inline_lane
from shared.lifecycle.jobs import job_documents
from shared.states import JobStatus
from shared.tables import Job
from shared.trace import TraceContext


@dataclass(frozen=True)
class Watcher:
    """A receiver that wants to hear of a job's progress."""

    endpoint_id: str | None
    """None: the job's own URL."""
    url: str
    lane: str
    """As of deliveries: its endpoint's id, or its tenant and the host of the job's URL."""
    is_thin: bool
    sealed_secrets: tuple[bytes, ...]


@dataclass(frozen=True)
class WatchedJob:
    """
    A job that is being drawn, and who wants to hear how far it is.

    Attributes:
        work_ids: of what runs for it.
    """

    id: str
    tenant_id: str
    work_ids: tuple[str, ...]
    watchers: tuple[Watcher, ...]


@dataclass(frozen=True)
class Moment:
    """
    A job as it was at a moment.

    Attributes:
        document: with links unfinished.
        dialect: what the interface that it came by has noted.
        at: by the database's clock.
    """

    job_id: str
    document: dict[str, Any]
    dialect: dict[str, Any] | None
    trace: TraceContext | None
    at: datetime


# An endpoint whose breaker is open is left in peace, and one that is being tried again hears the delivery that tries it first. Whoever
# does not fit is not always the same one.
_FIND = f"""
    WITH moving AS (
        SELECT id AS work_id, id AS image_id FROM image WHERE state = 'running'
        UNION ALL
        SELECT grid.id, image.id FROM grid JOIN image ON image.grid_id = grid.id WHERE grid.state = 'running'
    ),
    drawn AS (
        SELECT output.job_id, array_agg(DISTINCT moving.work_id) AS work_ids
        FROM moving JOIN output ON output.image_id = moving.image_id GROUP BY output.job_id
    ),
    found AS (
        SELECT job.id AS job_id, job.tenant_id, drawn.work_ids, watcher.*
        FROM drawn JOIN job ON job.id = drawn.job_id AND job.status = 'running'
        CROSS JOIN LATERAL (
            SELECT
                NULL AS endpoint_id, job.webhook->>'url' AS url, false AS is_thin,
                coalesce(signer.secret, tenant.webhook_secret) AS secret,
                CASE WHEN signer.id IS NOT NULL THEN
                         CASE WHEN signer.previous_secret_until > statement_timestamp() THEN signer.previous_secret END
                     WHEN tenant.previous_webhook_secret_until > statement_timestamp() THEN tenant.previous_webhook_secret
                END AS previous_secret
            FROM tenant LEFT JOIN webhook_endpoint AS signer
                ON signer.id = job.webhook->>'secret_id' AND signer.tenant_id = job.tenant_id AND signer.secret <> ''
            WHERE tenant.id = job.tenant_id AND job.webhook->'events' ? '{JOB_PROGRESS}'
            UNION ALL
            SELECT
                id, url, is_thin, secret,
                CASE WHEN previous_secret_until > statement_timestamp() THEN previous_secret END
            FROM webhook_endpoint
            WHERE tenant_id = job.tenant_id AND status = 'enabled' AND breaker_until IS NULL AND '{JOB_PROGRESS}' = ANY(events)
        ) AS watcher
        ORDER BY random() LIMIT %(limit)s
    )
    SELECT * FROM found ORDER BY job_id
"""  # noqa: S608 - our own names


def find_watched(db: Database, limit: int) -> list[WatchedJob]:
    """Running jobs whose progress somebody wants to hear, by id. `limit`: of the watchers of all of them."""
    rows = db.run_alone(_FIND, {"limit": limit})
    return [
        WatchedJob(job_id, tenant_id, tuple(work_ids), tuple(map(_watcher, found)))
        for (job_id, tenant_id, work_ids), found in groupby(rows, lambda row: (row.job_id, row.tenant_id, row.work_ids))
    ]


def read_moments(db: Database, job_ids: Collection[str], progress: Mapping[str, Progress]) -> list[Moment]:
    """
    These jobs as they are, those that have not ended since they were found.

    Args:
        progress: live progress by work id.
    """

    def work(session: Session) -> list[Moment]:
        query = select(Job, func.clock_timestamp()).where(Job.id.in_(job_ids), Job.status == JobStatus.RUNNING)
        rows = [(job, at) for job, at in session.execute(query)]
        documents = job_documents(session, [job for job, _ in rows], lambda _ids: progress)
        return [
            Moment(job.id, document, job.dialect, TraceContext.from_headers(job.trace), at)
            for (job, at), document in zip(rows, documents, strict=True)
        ]

    return db.run(work)


def _watcher(row: Any) -> Watcher:
    return Watcher(
        endpoint_id=row.endpoint_id,
        url=row.url,
        lane=row.endpoint_id or inline_lane(row.tenant_id, row.url),
        is_thin=row.is_thin,
        sealed_secrets=tuple(bytes(secret) for secret in (row.secret, row.previous_secret) if secret is not None),
    )
