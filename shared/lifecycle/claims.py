"""How a worker takes a unit of work: one conditional UPDATE, and everything the worker needs to know of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db import Database, DatabaseDownError
from shared.lifecycle.claim_statement import claim_statement
from shared.lifecycle.ending import database_now
from shared.lifecycle.events import record_changes
from shared.lora import Lora, lora_from_json
from shared.rendition import Rendition
from shared.states import JobStatus
from shared.tables import Grid, Image, Job
from shared.trace import TraceContext

Unit = TypeVar("Unit", Grid, Image)

_now = func.clock_timestamp


@dataclass(frozen=True)
class StoredArtifact:
    """What an attempt left in S3, under a key that names the attempt."""

    storage_key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Source:
    """A source image of a claimed unit: where it is, and what it must be."""

    storage_key: str
    sha256: str


@dataclass(frozen=True)
class ClaimedGrid:
    """A grid whose lease this worker holds; `attempt` fences every later write."""

    id: str
    attempt: int
    tenant_id: str
    trace: TraceContext | None
    prompt: str
    token_h: int
    token_w: int
    seed: int
    temperature: float
    top_p: float
    model_revision: str
    lora: Lora
    sources: tuple[Source, ...]
    job_ids: tuple[str, ...]
    """The jobs that wait for it."""
    new_job_ids: tuple[str, ...]
    """Those of them whose first work this is (`begin`)."""
    draft_token_ids: tuple[int, ...]
    """The draft that an earlier attempt wrote, to go on from; empty if there is none."""
    draft_only: bool
    """Its draft needs approval first: to end with `hold_grid`, not with `finish_grid`."""
    wants_preview: bool
    """A picture of its draft is wanted: to be told of by `record_draft` as soon as it is there."""


@dataclass(frozen=True)
class ClaimedImage:
    """An image whose lease this worker holds, with its finished grid."""

    id: str
    attempt: int
    tenant_id: str
    trace: TraceContext | None
    prompt: str
    glyph_texts: tuple[str, ...] | None
    """What the picture is to say; None: what the reference's parser finds in the prompt."""
    token_h: int
    token_w: int
    seed: int
    steps: int
    guidance_scale: float
    height_px: int
    width_px: int
    format: str
    quality: int | None
    max_bytes: int | None
    renditions: tuple[Rendition, ...]
    """More files of the same picture."""
    model_revision: str
    lora: Lora
    fast: bool
    """The worker's approximations are allowed."""
    sources: tuple[Source, ...]
    job_ids: tuple[str, ...]
    """The jobs that wait for it."""
    new_job_ids: tuple[str, ...]
    """Those of them whose first work this is (`begin`)."""
    grid_artifact: StoredArtifact
    wants_previews: bool
    """Pictures on the way are wanted (`previews.py: add_preview`)."""


def claim_grid(
    db: Database,
    worker_id: str,
    lease_s: float,
    grid_id: str | None = None,
    *,
    model_revision: str | None = None,
    begin_later: bool = False,
) -> ClaimedGrid | None:
    """
    Claim this released grid, or any; None if it is not released (canceled, claimed, a doubled message).

    Args:
        model_revision: of the worker. What was made for another one is left to a live worker that has it; where there is none, whoever
            comes takes it, to fail it with its reason. None: whatever it was made for.
        begin_later: the caller calls `begin` once the engine has the work: a claim alone is one trip to Postgres.
    """
    row = _claim(db, "grid", worker_id, lease_s, grid_id, model_revision)
    if row is None:
        return None
    jobs = _jobs(row)
    claimed = ClaimedGrid(
        id=row.id,
        attempt=row.attempt,
        tenant_id=row.tenant_id,
        trace=TraceContext.from_headers(row.trace),
        prompt=row.prompt,
        token_h=row.token_h,
        token_w=row.token_w,
        seed=row.seed,
        temperature=row.temperature,
        top_p=row.top_p,
        model_revision=row.model_revision,
        lora=lora_from_json(row.lora),
        sources=tuple(Source(*source) for source in row.sources or ()),
        job_ids=tuple(job.id for job in jobs),
        # A draft is what the customer decides by whether the job is to start.
        new_job_ids=() if row.needs_approval else tuple(job.id for job in jobs if job.is_new),
        draft_token_ids=tuple(row.draft_token_ids or ()),
        draft_only=row.needs_approval,
        wants_preview=row.preview is None and not row.source_file_ids and any(job.wants_previews for job in jobs),
    )
    if not begin_later:
        begin(db, claimed.new_job_ids)
    return claimed


def claim_image(
    db: Database,
    worker_id: str,
    lease_s: float,
    image_id: str | None = None,
    *,
    model_revision: str | None = None,
    begin_later: bool = False,
) -> ClaimedImage | None:
    """Claim this released image, or any; None if it is not released. `model_revision`, `begin_later`: as `claim_grid`."""
    row = _claim(db, "image", worker_id, lease_s, image_id, model_revision)
    if row is None:
        return None
    jobs = _jobs(row)
    claimed = ClaimedImage(
        id=row.id,
        attempt=row.attempt,
        tenant_id=row.tenant_id,
        trace=TraceContext.from_headers(row.trace),
        prompt=row.prompt,
        glyph_texts=None if row.glyph_texts is None else tuple(row.glyph_texts),
        token_h=row.token_h,
        token_w=row.token_w,
        seed=row.seed,
        steps=row.steps,
        guidance_scale=row.guidance_scale,
        height_px=row.height_px,
        width_px=row.width_px,
        format=row.format,
        quality=row.quality,
        max_bytes=row.max_bytes,
        renditions=tuple(Rendition.from_json(value) for value in row.renditions),
        model_revision=row.model_revision,
        lora=lora_from_json(row.lora),
        fast=row.is_fast,
        sources=tuple(Source(*source) for source in row.sources or ()),
        job_ids=tuple(job.id for job in jobs),
        new_job_ids=tuple(job.id for job in jobs if job.is_new),
        grid_artifact=StoredArtifact(row.grid_key, row.grid_sha256, row.grid_bytes),
        wants_previews=any(job.wants_previews for job in jobs),
    )
    if not begin_later:
        begin(db, claimed.new_job_ids)
    return claimed


def begin(db: Database, job_ids: Sequence[str]) -> None:
    """
    The first work of these jobs has begun, as their claim told. May be repeated; jobs that have ended meanwhile are left alone.

    A crash before it leaves them queued, and so does a database that is away: whoever claims the work next begins them, and whoever
    finishes it does so at the latest.
    """
    if job_ids:
        queued = select(Job).where(Job.id.in_(job_ids), Job.status == JobStatus.QUEUED).order_by(Job.id).with_for_update()
        with contextlib.suppress(DatabaseDownError):
            db.run(lambda session: start(session, session.scalars(queued).all()))


def given_texts(grid: Grid) -> tuple[str, ...] | None:
    """The texts that were given beside the prompt; None: there are none but those that the reference's parser finds in it."""
    return None if grid.glyph_texts is None else tuple(grid.glyph_texts)


@dataclass(frozen=True)
class _WaitingJob:
    id: str
    is_new: bool
    wants_previews: bool


def _jobs(row: Any) -> list[_WaitingJob]:
    return [_WaitingJob(*values) for values in row.jobs or ()]


def _claim(db: Database, table: str, worker_id: str, lease_s: float, unit_id: str | None, model_revision: str | None) -> Any:
    """The claimed row with what else the worker has to know, or None. Any: a row of the statement below."""
    values = {"holder": worker_id, "lease": timedelta(seconds=lease_s), "unit": unit_id, "revision": model_revision}
    statement = claim_statement(table, is_any=unit_id is None, is_choosy=model_revision is not None)
    # Plain SQL: the session's way to say the same costs five times as long, and an idle service waits for nothing else.
    rows = db.run_alone(statement, values)
    return rows[0] if rows else None


def start(session: Session, jobs: Sequence[Job], at: datetime | None = None) -> None:
    """
    The first work of these jobs has begun, unless some had begun before.

    Args:
        at: when, by the database's clock, if the caller knows it.
    """
    new = [job for job in jobs if job.status == JobStatus.QUEUED]
    if new:
        at = at or database_now(session)
        for job in new:
            job.status = JobStatus.RUNNING
            job.started_at = at
        record_changes(session, new, "job.started")


def finished_artifact(unit: Grid | Image) -> StoredArtifact:
    """The artifact of a unit that is done; a check of the table says that it has one."""
    if unit.storage_key is None or unit.sha256 is None or unit.size_bytes is None:
        raise ValueError(f"{unit.id} is {unit.state} and has no artifact")
    return StoredArtifact(unit.storage_key, unit.sha256, unit.size_bytes)
