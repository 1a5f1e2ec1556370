"""How a worker takes a unit of work: one conditional UPDATE, and everything the worker needs to know of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Interval, bindparam, func, select, update
from sqlalchemy.orm import Session

from shared.db import Database
from shared.lifecycle.ending import database_now, live_jobs
from shared.lifecycle.events import record_changes
from shared.lora import Lora, lora_from_json
from shared.rendition import Rendition
from shared.states import JobStatus, WorkState
from shared.tables import File, Grid, Image, Job

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
    grid_artifact: StoredArtifact
    wants_previews: bool
    """Pictures on the way are wanted (`previews.py: add_preview`)."""


def claim_grid(db: Database, worker_id: str, lease_s: float, grid_id: str | None = None) -> ClaimedGrid | None:
    """Claim this released grid, or any; None if it is not released (canceled, claimed, a doubled message)."""

    def work(session: Session) -> ClaimedGrid | None:
        grid = _claim(session, Grid, worker_id, lease_s, grid_id)
        if grid is None:
            return None
        jobs = session.scalars(live_jobs(grid)).all()
        # A draft is what the customer decides by whether the job is to start.
        if not grid.needs_approval:
            start(session, jobs, grid.started_at)
        return ClaimedGrid(
            id=grid.id,
            attempt=grid.attempt,
            tenant_id=grid.tenant_id,
            prompt=grid.prompt,
            token_h=grid.token_h,
            token_w=grid.token_w,
            seed=grid.seed,
            temperature=grid.temperature,
            top_p=grid.top_p,
            model_revision=grid.model_revision,
            lora=lora_from_json(grid.lora),
            sources=_sources(session, grid),
            job_ids=tuple(job.id for job in jobs),
            draft_token_ids=tuple(grid.draft_token_ids or ()),
            draft_only=grid.needs_approval,
            wants_preview=grid.preview is None and not grid.source_file_ids and any(job.wants_previews for job in jobs),
        )

    return db.run(work)


def claim_image(db: Database, worker_id: str, lease_s: float, image_id: str | None = None) -> ClaimedImage | None:
    """Claim this released image, or any; None if it is not released."""

    def work(session: Session) -> ClaimedImage | None:
        image = _claim(session, Image, worker_id, lease_s, image_id)
        if image is None:
            return None
        grid = session.get_one(Grid, image.grid_id)
        jobs = session.scalars(live_jobs(image)).all()
        start(session, jobs, image.started_at)
        artifact = finished_artifact(grid)
        return ClaimedImage(
            id=image.id,
            attempt=image.attempt,
            tenant_id=image.tenant_id,
            prompt=grid.prompt,
            glyph_texts=given_texts(grid),
            token_h=grid.token_h,
            token_w=grid.token_w,
            seed=image.seed,
            steps=image.steps,
            guidance_scale=image.guidance_scale,
            height_px=image.height_px,
            width_px=image.width_px,
            format=image.format,
            quality=image.quality,
            max_bytes=image.max_bytes,
            renditions=tuple(Rendition.from_json(value) for value in image.renditions),
            model_revision=grid.model_revision,
            lora=lora_from_json(grid.lora),
            fast=image.is_fast,
            sources=_sources(session, grid),
            job_ids=tuple(job.id for job in jobs),
            grid_artifact=artifact,
            wants_previews=any(job.wants_previews for job in jobs),
        )

    return db.run(work)


def given_texts(grid: Grid) -> tuple[str, ...] | None:
    """The texts that were given beside the prompt; None: there are none but those that the reference's parser finds in it."""
    return None if grid.glyph_texts is None else tuple(grid.glyph_texts)


def _claim(session: Session, row: type[Unit], worker_id: str, lease_s: float, unit_id: str | None) -> Unit | None:
    told: dict[str, Any] = {"holder": worker_id, "lease": timedelta(seconds=lease_s)}
    if unit_id is not None:
        told["unit_id"] = unit_id
    claimed: Unit | None = session.scalar(_claim_statement(row, is_any=unit_id is None), told)
    return claimed


@functools.cache
def _claim_statement(row: Any, is_any: bool) -> Any:
    """Built once for each table: building it costs as much as running it. Any: the type of what it returns is that of the table's rows."""
    candidates = select(row.id).where(row.state == WorkState.RELEASED).with_for_update(skip_locked=True).limit(1)
    if is_any:
        candidates = candidates.order_by(row.lane, row.released_at, row.created_at, row.id)
    else:
        candidates = candidates.where(row.id == bindparam("unit_id"))
    return (
        update(row)
        # Equal to, not in: a scalar subquery is computed once, and with it the limit holds.
        .where(row.id == candidates.scalar_subquery())
        .values(
            state=WorkState.RUNNING,
            attempt=row.attempt + 1,
            worker_id=bindparam("holder"),
            lease_until=_now() + bindparam("lease", type_=Interval),
            released_at=None,
            started_at=_now(),
        )
        .returning(row)
        .execution_options(synchronize_session=False, populate_existing=True)
    )


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


def _sources(session: Session, grid: Grid) -> tuple[Source, ...]:
    if not grid.source_file_ids:
        return ()
    files = {file.id: file for file in session.scalars(select(File).where(File.id.in_(grid.source_file_ids)))}
    return tuple(Source(files[file_id].storage_key, files[file_id].sha256) for file_id in grid.source_file_ids)


def finished_artifact(unit: Grid | Image) -> StoredArtifact:
    """The artifact of a unit that is done; a check of the table says that it has one."""
    if unit.storage_key is None or unit.sha256 is None or unit.size_bytes is None:
        raise ValueError(f"{unit.id} is {unit.state} and has no artifact")
    return StoredArtifact(unit.storage_key, unit.sha256, unit.size_bytes)
