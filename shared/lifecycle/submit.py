"""A request becomes rows: one job, its images, and the grids they need, new or found."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db import Database
from shared.errors import RequestError
from shared.grid import TokenGrid
from shared.ids import new_id
from shared.lifecycle.events import record_event
from shared.states import JobStatus, Priority, WorkState
from shared.tables import Grid, IdempotencyKey, Image, Job

NUM_SEEDS = 2**63
"""Seeds are 0 … 2^63-1: what Postgres and both engines can hold."""


@dataclass(frozen=True)
class SourceFile:
    """A stored source image."""

    id: str
    sha256: str


@dataclass(frozen=True)
class Idempotency:
    """An `Idempotency-Key` and the meaning of the request it came with."""

    route: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class NewJob:
    """
    A validated request with every default and seed filled in.

    `height_px` and `width_px` are the result's; `grid` is what the model draws, to be resized if it is another size.
    """

    tenant_id: str
    input: dict[str, Any]
    prompt: str
    height_px: int
    width_px: int
    grid: TokenGrid
    num_images: int
    seed: int
    layout_seed: int
    same_layout: bool
    steps: int
    guidance_scale: float
    temperature: float
    top_p: float
    format: str
    quality: int | None
    sources: tuple[SourceFile, ...]
    model_name: str
    model_revision: str
    priority: Priority = Priority.STANDARD
    webhook: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    custom_id: str | None = None
    deadline: datetime | None = None

    def params(self) -> dict[str, Any]:
        """What the engines follow, as the customer sees it."""
        return {
            "prompt": self.prompt,
            "size": f"{self.width_px}x{self.height_px}",
            "n": self.num_images,
            "seed": self.seed,
            "layout_seed": self.layout_seed,
            "same_layout": self.same_layout,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "format": self.format,
            "format_options": {"quality": self.quality},
            "images": [{"file_id": source.id} for source in self.sources],
        }


def submit(db: Database, new: NewJob, idempotency: Idempotency | None = None) -> tuple[str, bool]:
    """
    Store a job.

    Returns:
        The job's id, and whether it was already there (the same idempotency key came before).
    Raises:
        RequestError: `idempotency_mismatch`, the key came before with another request.
    """
    return db.run(lambda session: submit_in(session, new, idempotency))


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


def _same_request(holder: IdempotencyKey, idempotency: Idempotency) -> str:
    if holder.fingerprint != idempotency.fingerprint:
        raise RequestError("idempotency_mismatch", "this Idempotency-Key came before with a different request", "Idempotency-Key")
    return holder.job_id


def submit_in(session: Session, new: NewJob, idempotency: Idempotency | None) -> tuple[str, bool]:
    """`submit` within a transaction of the caller's."""
    job = Job(
        id=new_id("job"),
        tenant_id=new.tenant_id,
        status=JobStatus.QUEUED,
        priority=new.priority,
        input=new.input,
        params=new.params(),
        model={"name": new.model_name, "revision": new.model_revision},
        num_images=new.num_images,
        webhook=new.webhook,
        request_metadata=new.metadata,
        custom_id=new.custom_id,
        deadline=new.deadline,
    )
    session.add(job)
    session.flush()
    if idempotency is not None and (earlier := _claim_key(session, job, idempotency)) is not None:
        session.expunge(job)
        session.rollback()
        return earlier, True
    lane = list(Priority).index(new.priority)
    for index in range(new.num_images):
        layout_seed = new.layout_seed if new.same_layout else (new.layout_seed + index) % NUM_SEEDS
        grid_id, grid_state = _find_or_add_grid(session, new, layout_seed, lane)
        session.add(
            Image(
                id=new_id("img"),
                tenant_id=new.tenant_id,
                job_id=job.id,
                index=index,
                grid_id=grid_id,
                state=WorkState.READY if grid_state == WorkState.DONE else WorkState.WAITING,
                lane=lane,
                seed=(new.seed + index) % NUM_SEEDS,
                steps=new.steps,
                guidance_scale=new.guidance_scale,
                height_px=new.height_px,
                width_px=new.width_px,
                format=new.format,
                quality=new.quality,
            )
        )
    session.refresh(job)
    record_event(session, job, "job.queued")
    return job.id, False


def _claim_key(session: Session, job: Job, idempotency: Idempotency) -> str | None:
    """Take the key for this job; the id of the job that already has it otherwise."""
    taken = session.execute(
        insert(IdempotencyKey)
        .values(tenant_id=job.tenant_id, route=idempotency.route, key=idempotency.key, fingerprint=idempotency.fingerprint, job_id=job.id)
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )
    if taken.one_or_none() is not None:
        return None
    # The insert above waited for a concurrent one with this key, so its row is committed and visible now.
    holder = session.get_one(IdempotencyKey, (job.tenant_id, idempotency.route, idempotency.key))
    return _same_request(holder, idempotency)


def _find_or_add_grid(session: Session, new: NewJob, layout_seed: int, lane: int) -> tuple[str, str]:
    """The grid with these tokens, whoever asked first; locked, so that it cannot end before the image is written."""
    identity = [
        new.prompt,
        new.grid.token_h,
        new.grid.token_w,
        layout_seed,
        new.temperature,
        new.top_p,
        [source.sha256 for source in new.sources],
        new.model_revision,
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    alive = Grid.state.not_in([WorkState.FAILED, WorkState.CANCELED])
    while True:
        session.execute(
            insert(Grid)
            .values(
                id=new_id("tok"),
                tenant_id=new.tenant_id,
                key=key,
                state=WorkState.READY,
                lane=lane,
                prompt=new.prompt,
                token_h=new.grid.token_h,
                token_w=new.grid.token_w,
                seed=layout_seed,
                temperature=new.temperature,
                top_p=new.top_p,
                source_file_ids=[source.id for source in new.sources],
                model_revision=new.model_revision,
            )
            # The condition as the index has it, in letters: Postgres cannot match parameters of a prepared statement to it.
            .on_conflict_do_nothing(index_elements=[Grid.tenant_id, Grid.key], index_where=text("state NOT IN ('failed', 'canceled')"))
        )
        found = session.execute(
            select(Grid.id, Grid.state).where(Grid.tenant_id == new.tenant_id, Grid.key == key, alive).with_for_update()
        ).one_or_none()
        if found is not None:
            session.execute(update(Grid).where(Grid.id == found.id, Grid.lane > lane).values(lane=lane))
            return found.id, found.state
        # The other holder of the key ended between the two statements; the key is free again.
