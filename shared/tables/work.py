"""What workers do: grids and images, which jobs may share."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    false,
    func,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.states import WorkState
from shared.tables.base import Base, insert_time, one_of

COST_CLASS = "width_bucket(COALESCE(cost_s, 'Infinity'::double precision), '{%s}'::double precision[])" % (  # noqa: UP031 - braces
    ",".join(f"{2.0**octave:g}" for octave in range(-4, 12))
)
"""SQL: units of one class differ in cost by less than a factor of two; what is not known is in the last one."""


class WorkColumns:
    """What a unit of work carries, whichever stage does it."""

    state: Mapped[str]
    lane: Mapped[int]
    """Index of the priority in `Priority`: smaller is released first."""
    attempt: Mapped[int] = mapped_column(server_default="0")
    """The fencing token: +1 at every claim. A result is written only by the attempt that runs now."""
    num_lost: Mapped[int] = mapped_column(server_default="0")
    """Leases that ran out: work that kills its worker."""
    num_errors: Mapped[int] = mapped_column(server_default="0")
    """Attempts that ended in a retryable error."""
    past_attempts: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    """Those that were over before the unit was; see `shared/lifecycle/past_attempts.py`. Empty for all that succeed at once."""
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    cost_s: Mapped[float | None]
    """Predicted seconds of a worker; unknown until workers have reported their speed."""
    deadline: Mapped[datetime | None]
    """The earliest of the jobs that have asked for it. One that has passed says nothing: that job is over, and others may want it still."""
    trace: Mapped[dict[str, Any] | None]
    """That of the job that it was made for; others that share it have their own."""
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = insert_time()

    storage_key: Mapped[str | None]
    """The artifact in S3, written under the winning attempt's own key."""
    sha256: Mapped[str | None]
    size_bytes: Mapped[int | None]


def _work_constraints(table: str) -> tuple[CheckConstraint | Index, ...]:
    return (
        one_of("state", WorkState),
        CheckConstraint("lane BETWEEN 0 AND 2", name="lane_known"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease_iff_running"),
        CheckConstraint("(state = 'released') = (released_at IS NOT NULL)", name="released_at_iff_released"),
        CheckConstraint("state <> 'done' OR (storage_key IS NOT NULL AND sha256 IS NOT NULL AND size_bytes > 0)", name="done_has_artifact"),
        CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failure_has_reason"),
        Index(f"ix_{table}_ready", "lane", "created_at", "id", postgresql_where=text("state = 'ready'")),
        # For the choice among what does not fit: who waits in a lane, and the oldest of each class of cost, however much waits.
        Index(f"ix_{table}_turn", "lane", "tenant_id", text(COST_CLASS), "created_at", "id", postgresql_where=text("state = 'ready'")),
        Index(f"ix_{table}_due", "lane", "tenant_id", "deadline", postgresql_where=text("state = 'ready' AND deadline IS NOT NULL")),
        Index(f"ix_{table}_released", "lane", "released_at", postgresql_where=text("state = 'released'")),
        Index(f"ix_{table}_lease", "lease_until", postgresql_where=text("state = 'running'")),
    )


class Grid(WorkColumns, Base):
    """One AR run. Requests with the same `key` share it, running or done."""

    __tablename__ = "grid"
    __table_args__ = (
        *_work_constraints("grid"),
        CheckConstraint("token_h > 0 AND token_w > 0", name="size_positive"),
        # As many as the largest draft has, and room to spare: the row is read at every claim.
        CheckConstraint("cardinality(draft_token_ids) BETWEEN 1 AND 512", name="draft_bounded"),
        CheckConstraint("state <> 'held' OR (needs_approval AND draft_token_ids IS NOT NULL)", name="held_has_draft"),
        CheckConstraint("state <> 'done' OR NOT needs_approval", name="done_is_approved"),
        CheckConstraint("NOT wants_preview OR (draft_token_ids IS NOT NULL AND preview IS NULL)", name="preview_needs_draft"),
        Index("ix_grid_sources", "source_file_ids", postgresql_using="gin", postgresql_where=text("source_file_ids <> '{}'")),
        Index("ix_grid_untold", "finished_at", postgresql_where=text("NOT is_told")),
        Index("ix_grid_preview", "lane", "created_at", postgresql_where=text("wants_preview")),
        Index("uq_grid_key", "tenant_id", "key", unique=True, postgresql_where=text("state NOT IN ('failed', 'canceled')")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    key: Mapped[str | None]
    """SHA-256 of everything that decides the tokens. NULL: no other request may find it."""
    prompt: Mapped[str]
    token_h: Mapped[int]
    token_w: Mapped[int]
    seed: Mapped[int]
    temperature: Mapped[float]
    top_p: Mapped[float]
    source_file_ids: Mapped[list[str]]
    lora: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    """`[{name, scale}]` by name, for both stages."""
    glyph_texts: Mapped[list[str] | None]
    """What its pictures are to say. NULL: what the reference's parser finds in the prompt."""
    model_revision: Mapped[str]
    needs_approval: Mapped[bool] = mapped_column(server_default=false())
    """It stops after its draft until its job is approved."""
    num_rejected: Mapped[int] = mapped_column(server_default="0")
    """Drafts that the customer did not want."""
    draft_token_ids: Mapped[list[int] | None]
    """`draft_h * draft_w` ids, row by row: text-to-image goes on from them, whoever wrote them."""
    is_told: Mapped[bool] = mapped_column(server_default=true())
    """False between its finish and the event that tells of it."""
    wants_preview: Mapped[bool] = mapped_column(server_default=false())
    """A picture of the draft is to be drawn."""
    preview: Mapped[dict[str, Any] | None]
    """The picture of the draft, as `shared/job_document.py: preview_entry` has it."""
    preview_attempt: Mapped[int] = mapped_column(server_default="0")
    """The fencing token of the preview: +1 at every claim of it."""
    preview_worker_id: Mapped[str | None]
    preview_lease_until: Mapped[datetime | None]
    text_tokens: Mapped[int | None]
    """Of the prompt that the model read; known when it is done."""
    image_tokens: Mapped[int | None]
    """The same, of the source images."""


class Image(WorkColumns, Base):
    """One decoder run. Requests with the same `key` share it, running or done."""

    __tablename__ = "image"
    __table_args__ = (
        *_work_constraints("image"),
        CheckConstraint("height_px > 0 AND width_px > 0", name="size_positive"),
        CheckConstraint("steps > 0", name="steps_positive"),
        CheckConstraint("format IN ('png', 'jpeg', 'webp')", name="format_known"),
        Index("ix_image_grid", "grid_id"),
        Index("uq_image_key", "tenant_id", "key", unique=True, postgresql_where=text("state NOT IN ('failed', 'canceled')")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    key: Mapped[str | None]
    """SHA-256 of everything that decides the file. NULL: no other request may find it."""
    grid_id: Mapped[str] = mapped_column(ForeignKey("grid.id"))
    seed: Mapped[int]
    steps: Mapped[int]
    guidance_scale: Mapped[float]
    height_px: Mapped[int]
    width_px: Mapped[int]
    format: Mapped[str]
    quality: Mapped[int | None]
    """Of the file, where the format has one."""
    max_bytes: Mapped[int | None]
    """Of the file: its quality is lowered until it fits."""
    renditions: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    """More files that are wanted, as `shared/rendition.py` has them."""
    rendition_files: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    """The stored ones by name: `{storage_key, sha256, size_bytes}`."""
    is_fast: Mapped[bool] = mapped_column(server_default=false())
    """Drawn with the worker's approximations allowed."""
    previews: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    """Pictures of it on the way, as `shared/job_document.py: preview_entry` has them."""
