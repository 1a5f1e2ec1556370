"""
Pictures on the way: of the draft, drawn as a small piece of work of its own, and of an image between its steps.

Every write here is safe to lose. A late or doubled one is dropped, and no job waits for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from shared.db import Database
from shared.grid import TokenGrid
from shared.job_document import preview_entry
from shared.lifecycle.claims import StoredArtifact, given_texts
from shared.lifecycle.ending import database_now, live_jobs
from shared.lifecycle.events import record_changes
from shared.lifecycle.work import held_unit
from shared.lora import Lora, lora_from_json
from shared.states import TERMINAL_JOB, Stage
from shared.tables import Grid, Image, Job, Output

MAX_PREVIEWS = 4
"""Pictures that one image shows on its way; each is an event with the whole job in it."""

_MAX_TRIES = 3
"""Claims of one draft's preview: one that kills its workers is given up, its job goes on."""
_MAX_LOOKS = 20
"""Previews that nobody wants any more, put away by one look for work."""

_now = func.clock_timestamp


@dataclass(frozen=True)
class ClaimedPreview:
    """A draft to be drawn by the worker that claimed it; `attempt` fences the write."""

    grid_id: str
    attempt: int
    tenant_id: str
    prompt: str
    glyph_texts: tuple[str, ...] | None
    draft_h: int
    draft_w: int
    draft_token_ids: tuple[int, ...]
    model_revision: str
    lora: Lora


def claim_preview(db: Database, worker_id: str, lease_s: float, model_revision: str) -> ClaimedPreview | None:
    """
    Claim a draft whose picture a live job wants; None if there is none, or somebody draws it. Cheap: to be asked when idle.

    Args:
        model_revision: of the worker. A draft of another model is left to a worker that can draw it.
    """

    def work(session: Session) -> ClaimedPreview | None:
        is_free = or_(Grid.preview_lease_until.is_(None), Grid.preview_lease_until < _now())
        is_mine = (Grid.wants_preview, Grid.model_revision == model_revision, is_free)
        oldest = select(Grid).where(*is_mine).order_by(Grid.lane, Grid.created_at).limit(1)
        for _ in range(_MAX_LOOKS):
            grid = session.scalars(oldest.with_for_update(skip_locked=True)).one_or_none()
            if grid is None or grid.draft_token_ids is None:
                return None
            if _is_wanted(session, grid.id) and grid.preview_attempt < _MAX_TRIES * (grid.num_rejected + 1):
                return _claim(session, grid, grid.draft_token_ids, worker_id, lease_s)
            grid.wants_preview = False
            session.flush()
        return None

    return db.run(work)


def finish_draft_preview(db: Database, claim: ClaimedPreview, artifact: StoredArtifact, height_px: int, width_px: int) -> bool:
    """The draft is drawn: jobs that want previews hear of it. False: it came too late, and nothing was written."""

    def work(session: Session) -> bool:
        is_mine = (Grid.wants_preview, Grid.preview_attempt == claim.attempt, Grid.preview_lease_until.is_not(None))
        grid = session.scalars(select(Grid).where(Grid.id == claim.grid_id, *is_mine).with_for_update()).one_or_none()
        if grid is None:
            return False
        grid.preview = preview_entry(None, artifact.storage_key, height_px, width_px, database_now(session))
        grid.wants_preview = False
        grid.preview_worker_id = grid.preview_lease_until = None
        record_changes(session, _curious_jobs(session, grid), "job.draft_ready")
        return True

    return db.run(work)


def add_preview(db: Database, image_id: str, attempt: int, artifact: StoredArtifact, height_px: int, width_px: int, num_done: int) -> bool:
    """
    Show a running image as it is after `num_done` steps. The same step again replaces what an earlier attempt showed.

    Returns:
        False, and nothing was written: the attempt is over, nobody wants previews, or the image has `MAX_PREVIEWS` already.
    """

    def work(session: Session) -> bool:
        image = held_unit(session, Stage.DECODER, image_id, attempt)
        if not isinstance(image, Image):
            return False
        others = [entry for entry in image.previews if entry["step"] != num_done]
        curious = _curious_jobs(session, image)
        if not curious or len(others) >= MAX_PREVIEWS:
            return False
        entry = preview_entry(num_done, artifact.storage_key, height_px, width_px, database_now(session))
        image.previews = sorted([*others, entry], key=lambda shown: shown["step"])
        record_changes(session, curious, "job.preview")
        return True

    return db.run(work)


def _claim(session: Session, grid: Grid, draft_token_ids: list[int], worker_id: str, lease_s: float) -> ClaimedPreview:
    grid.preview_attempt += 1
    grid.preview_worker_id = worker_id
    grid.preview_lease_until = database_now(session) + timedelta(seconds=lease_s)
    shape = TokenGrid(grid.token_h, grid.token_w)
    return ClaimedPreview(
        grid_id=grid.id,
        attempt=grid.preview_attempt,
        tenant_id=grid.tenant_id,
        prompt=grid.prompt,
        glyph_texts=given_texts(grid),
        draft_h=shape.draft_h,
        draft_w=shape.draft_w,
        draft_token_ids=tuple(draft_token_ids),
        model_revision=grid.model_revision,
        lora=lora_from_json(grid.lora),
    )


def _is_wanted(session: Session, grid_id: str) -> bool:
    jobs = select(Job.id).join(Output, Output.job_id == Job.id).join(Image, Image.id == Output.image_id)
    wanting = jobs.where(Image.grid_id == grid_id, Job.wants_previews, Job.status.not_in(TERMINAL_JOB))
    return session.scalar(wanting.limit(1)) is not None


def _curious_jobs(session: Session, unit: Grid | Image) -> list[Job]:
    """The jobs that wait for the unit and want previews, locked."""
    return [job for job in session.scalars(live_jobs(unit)).all() if job.wants_previews]
