"""
Every row glmq keeps. The migrations in infra/migrations make these tables; `shared/lifecycle` is the only writer of states.

All times are UTC with time zone. Sizes are pixels, height before width.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.states import BatchStatus, JobStatus, Priority, Stage, WorkState


def _one_of(column: str, values: type[JobStatus] | type[BatchStatus] | type[WorkState] | type[Priority] | type[Stage]) -> CheckConstraint:
    names = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({names})", name=f"{column}_known")


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this plain class attribute
        str: Text,
        int: BigInteger,
        float: Double,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
        list[int]: ARRAY(SmallInteger),
        list[dict[str, Any]]: JSONB,
    }


def _created_at() -> Mapped[datetime]:
    return mapped_column(server_default=func.clock_timestamp())


class Tenant(Base):
    """
    A customer. `event_seq` is the number of its last event: taking the next one locks this row, so numbers have no gaps.

    A limit that is NULL is the service's default; 0 is none at all. `shared/lifecycle/quotas.py` says what they mean.
    """

    __tablename__ = "tenant"
    __table_args__ = tuple(
        CheckConstraint(f"{name} >= 0", name=f"{name}_not_negative")
        for name in ("max_queued", "max_running", "requests_per_minute", "gpu_seconds_per_day", "results_kept_s", "live_batches")
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    event_seq: Mapped[int] = mapped_column(server_default="0")
    webhook_secret: Mapped[bytes]
    """Signs deliveries to per-job URLs; sealed by `shared/sealing.py`."""
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    gpu_seconds_per_day: Mapped[float | None]
    results_kept_s: Mapped[int | None]
    """Of jobs that do not say it themselves; what holds when a job is written stays with the job."""
    live_batches: Mapped[int | None]
    num_queued: Mapped[int] = mapped_column(server_default="0")
    """Jobs with the status `queued`; kept by the statement that takes `event_seq`."""
    previous_webhook_secret: Mapped[bytes | None]
    previous_webhook_secret_until: Mapped[datetime | None]
    """Until then deliveries are signed by the secret before this one, too."""
    num_endpoints: Mapped[int] = mapped_column(server_default="0")
    """How many webhook endpoints are enabled: whoever records an event learns with its number whether there is anybody to look up."""
    created_at: Mapped[datetime] = _created_at()


class ApiKey(Base):
    """A key of a tenant. The secret half is stored as a hash only."""

    __tablename__ = "api_key"
    __table_args__ = (
        CheckConstraint("scopes <@ ARRAY['read', 'submit', 'admin', 'operator'] AND cardinality(scopes) > 0", name="scopes_known"),
        CheckConstraint("max_priority IN ('interactive', 'standard', 'bulk')", name="max_priority_known"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """The public half of the key."""
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[bytes]
    scopes: Mapped[list[str]]
    max_priority: Mapped[str] = mapped_column(server_default="interactive")
    """The most urgent lane that its jobs may take."""
    created_at: Mapped[datetime] = _created_at()
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class File(Base):
    """An object of a tenant in S3: a normalised source image, or a file that was uploaded as it is or made by a batch."""

    __tablename__ = "file"
    __table_args__ = (
        CheckConstraint("purpose IN ('source', 'batch', 'batch_output', 'vision', 'user_data', 'assistants')", name="purpose_known"),
        Index("ix_file_tenant", "tenant_id", "created_at", "id", postgresql_where=text("purpose <> 'source' AND deleted_at IS NULL")),
        Index("ix_file_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND deleted_at IS NULL")),
        CheckConstraint("size_bytes >= 0", name="size_not_negative"),
        CheckConstraint("purpose <> 'source' OR (height_px > 0 AND width_px > 0)", name="source_has_size"),
        # The same picture sent twice is stored once.
        Index("uq_file_source", "tenant_id", "sha256", unique=True, postgresql_where=text("purpose = 'source'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    purpose: Mapped[str]
    storage_key: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    content_type: Mapped[str]
    height_px: Mapped[int | None]
    width_px: Mapped[int | None]
    filename: Mapped[str | None]
    """As it was uploaded; sources have none."""
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """The row stays for the batches that name it; the object is gone."""
    created_at: Mapped[datetime] = _created_at()


_BATCH_IS_LIVE = "status IN ('validating', 'running', 'finalizing', 'canceling')"


class Batch(Base):
    """
    Many jobs submitted as one: first its lines are checked, then they become jobs, then their results become files.

    A crash leaves it in any of these steps, and each of them may be done again. `BatchStatus` says what each status means.
    """

    __tablename__ = "batch"
    __table_args__ = (
        _one_of("status", BatchStatus),
        CheckConstraint(f"(completed_at IS NULL) = ({_BATCH_IS_LIVE})", name="completed_iff_final"),
        Index("ix_batch_tenant", "tenant_id", "created_at", "id"),
        Index("ix_batch_live", "created_at", postgresql_where=text(_BATCH_IS_LIVE)),
        UniqueConstraint("tenant_id", "idempotency_key"),
        Index("ix_batch_keyed", "created_at", postgresql_where=text("idempotency_key IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    status: Mapped[str]
    input_file_id: Mapped[str | None] = mapped_column(ForeignKey("file.id"))
    request_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str | None]
    """Of the request that made it."""
    num_retries: Mapped[int] = mapped_column(server_default="0")
    """The number of the last try of that request, as clients count that send no key."""
    endpoint: Mapped[str | None]
    """The route whose bodies its lines hold."""
    name: Mapped[str | None]
    """Its owner's."""
    defaults: Mapped[dict[str, Any] | None]
    """Of a batch without an input file: members of a job request that its lines inherit."""
    is_sealed: Mapped[bool] = mapped_column(server_default=true())
    """It gets no more lines. Until then it does not end, unless its time is up."""
    paused_at: Mapped[datetime | None]
    """Since then no line of it becomes a job, and none of its work begins. NULL: it goes on."""
    resumed_at: Mapped[datetime | None]
    """When it last went on."""
    max_failures: Mapped[int | None]
    """It is paused when so many of its lines have failed since it went on. NULL: it never is."""
    holds_work: Mapped[bool] = mapped_column(server_default=false())
    """Work of its jobs is being held back, or has been: before it goes on, that is to be let go."""
    retried_at: Mapped[datetime | None]
    """Lines that had failed by then are tried again."""
    completion_window: Mapped[str | None]
    output_expires_s: Mapped[int | None]
    """How long its files are kept after they are made; NULL: until they are deleted."""
    num_items: Mapped[int] = mapped_column(server_default="0")
    counts: Mapped[dict[str, Any] | None]
    """`{completed, failed, items}`, once it has ended; until then they are counted. `items`, by status, is not in those of before."""
    usage: Mapped[dict[str, Any] | None]
    """What all its jobs cost, once it has ended."""
    errors: Mapped[list[dict[str, Any]] | None]
    """What was wrong with which line, if nothing was run because of it."""
    output_file_id: Mapped[str | None] = mapped_column(ForeignKey("file.id"))
    error_file_id: Mapped[str | None] = mapped_column(ForeignKey("file.id"))
    created_at: Mapped[datetime] = _created_at()
    expires_at: Mapped[datetime | None]
    """Its jobs' deadline."""
    started_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    canceling_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    """When it ended, however it ended."""


class BatchItem(Base):
    """
    A line of a batch. It becomes a job, or has an error, once and in one transaction.

    `line` counts from 1, blank lines too, so that it is the line of the customer's file.
    """

    __tablename__ = "batch_item"
    __table_args__ = (
        CheckConstraint("job_id IS NULL OR error IS NULL", name="one_outcome"),
        UniqueConstraint("batch_id", "custom_id"),
        UniqueConstraint("batch_id", "line"),
        Index("ix_batch_item_pending", "batch_id", "line", postgresql_where=text("job_id IS NULL AND error IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.id"))
    line: Mapped[int]
    custom_id: Mapped[str]
    request: Mapped[dict[str, Any]]
    """The body of the request, as it was sent."""
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    error: Mapped[dict[str, Any] | None]
    """`{code, message, param, status}`: why it did not become a job."""
    failed_at: Mapped[datetime | None]
    """When that was noted; NULL also for the errors of before."""


class Job(Base):
    """What a customer asked for. `version` grows by one at every change."""

    __tablename__ = "job"
    __table_args__ = (
        _one_of("status", JobStatus),
        _one_of("priority", Priority),
        CheckConstraint("num_images BETWEEN 1 AND 10", name="num_images_in_range"),
        CheckConstraint("(completed_at IS NULL) = (status IN ('queued', 'running'))", name="completed_iff_final"),
        CheckConstraint("status <> 'failed' OR error IS NOT NULL", name="failure_has_reason"),
        CheckConstraint("approval_deadline IS NULL OR approval_s IS NOT NULL", name="approval_deadline_if_approval"),
        CheckConstraint("erased_at IS NULL OR completed_at IS NOT NULL", name="erased_is_over"),
        Index("ix_job_tenant", "tenant_id", "created_at", "id"),
        Index("ix_job_tenant_status", "tenant_id", "status", "created_at", "id"),
        Index("ix_job_deadline", "deadline", postgresql_where=text("deadline IS NOT NULL AND status IN ('queued', 'running')")),
        Index(
            "ix_job_approval",
            "approval_deadline",
            postgresql_where=text("approval_deadline IS NOT NULL AND status IN ('queued', 'running')"),
        ),
        Index("ix_job_live", "priority", "created_at", postgresql_where=text("status = 'queued'")),
        Index("ix_job_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND erased_at IS NULL")),
        Index("ix_job_batch", "batch_id", "created_at", "id", postgresql_where=text("batch_id IS NOT NULL")),
        Index("ix_job_custom", "tenant_id", "custom_id", "created_at", "id", postgresql_where=text("custom_id IS NOT NULL")),
        Index(
            "ix_job_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where=text("metadata <> '{}'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batch.id"))
    status: Mapped[str]
    priority: Mapped[str]
    version: Mapped[int] = mapped_column(server_default="1")
    input: Mapped[dict[str, Any]]
    """The request as it was sent."""
    params: Mapped[dict[str, Any]]
    """The request with every default and seed filled in; what the engines follow."""
    model: Mapped[dict[str, Any]]
    """`{name, revision}` of the checkpoint that the defaults came from."""
    num_images: Mapped[int]
    webhook: Mapped[dict[str, Any] | None]
    """`{url, events}` of the per-job callback."""
    request_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    custom_id: Mapped[str | None]
    warnings: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    """What its writer should know about the request; `Notice` in shared/quoting/reading.py."""
    deadline: Mapped[datetime | None]
    expires_in_s: Mapped[int | None]
    """How long its results are kept after its end; NULL: until they are deleted."""
    expires_at: Mapped[datetime | None]
    """When its results are erased; NULL before its end, and if they are kept."""
    wants_previews: Mapped[bool] = mapped_column(server_default=false())
    approval_s: Mapped[float | None]
    """How long its drafts wait for approval; NULL: they need none."""
    approval_deadline: Mapped[datetime | None]
    """The job expires if nobody has decided on its drafts by then. NULL while none wait."""
    trace: Mapped[dict[str, Any] | None]
    """The trace context of the request that made it, as `shared/trace.py` hands it on."""
    dialect: Mapped[dict[str, Any] | None]
    """What the interface that the job came by needs to answer in its own words; NULL: the native one."""
    redecode_of: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    """The job whose layouts it draws once more."""
    error: Mapped[dict[str, Any] | None]
    run: Mapped[int] = mapped_column(server_default="1")
    """1, and one more with every retry. Each run ends once."""
    erased_at: Mapped[datetime | None]
    """Its owner had it erased, or its time was up: nothing is left of what was asked and drawn, and nobody may read it."""
    created_at: Mapped[datetime] = _created_at()
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]


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
    created_at: Mapped[datetime] = _created_at()

    storage_key: Mapped[str | None]
    """The artifact in S3, written under the winning attempt's own key."""
    sha256: Mapped[str | None]
    size_bytes: Mapped[int | None]


def _work_constraints(table: str) -> tuple[CheckConstraint | Index, ...]:
    return (
        _one_of("state", WorkState),
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


class Output(Base):
    """Image `index` of a job, which other jobs may have too."""

    __tablename__ = "output"
    __table_args__ = (Index("ix_output_image", "image_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("image.id"))
    is_cached: Mapped[bool] = mapped_column(server_default=false())
    """The image was done before the job came; it cost the job nothing."""


class Event(Base):
    """
    Something that happened to a job, or to a tenant's webhook endpoint; gap-free by `seq` within its tenant.

    Never changed but for an erased job's, and deleted only by `shared/lifecycle/retention.py`, oldest first.
    """

    __tablename__ = "event"
    __table_args__ = (
        UniqueConstraint("tenant_id", "seq"),
        Index("ix_event_job", "job_id", "seq"),
        # Exactly one end per run of a job is a constraint, not a hope.
        Index(
            "uq_event_end",
            "job_id",
            "run",
            unique=True,
            postgresql_where=text("type IN ('job.succeeded', 'job.failed', 'job.canceled', 'job.expired')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    seq: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    """NULL: the event is not about a job."""
    type: Mapped[str]
    run: Mapped[int] = mapped_column(server_default="1")
    """Of the job."""
    data: Mapped[dict[str, Any]]
    """What the event is about as it was at that moment, without presigned URLs."""
    created_at: Mapped[datetime] = _created_at()


class WebhookEndpoint(Base):
    """A URL that a tenant registered for its events, and how it has been answering."""

    __tablename__ = "webhook_endpoint"
    __table_args__ = (
        CheckConstraint("status IN ('enabled', 'disabled', 'deleted')", name="status_known"),
        CheckConstraint("(status = 'disabled') = (disabled_reason IS NOT NULL)", name="disabled_has_reason"),
        CheckConstraint("disabled_reason IN ('manual', 'gone', 'failing')", name="disabled_reason_known"),
        CheckConstraint("cardinality(events) > 0", name="events_named"),
        Index("ix_webhook_endpoint_tenant", "tenant_id", "created_at", "id", postgresql_where=text("status <> 'deleted'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str] = mapped_column(server_default="")
    description: Mapped[str] = mapped_column(server_default="")
    url: Mapped[str]
    host: Mapped[str]
    """Host and port of the URL."""
    events: Mapped[list[str]]
    """Event types, kinds of types such as `job.*`, or `*`."""
    is_thin: Mapped[bool] = mapped_column(server_default=false())
    """It gets ids and versions, and fetches the rest."""
    request_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    secret: Mapped[bytes]
    """Signs its deliveries; sealed, and empty once the endpoint is deleted."""
    secret_hint: Mapped[str] = mapped_column(server_default="")
    """The end of the secret, for a person who has several."""
    previous_secret: Mapped[bytes | None]
    previous_secret_until: Mapped[datetime | None]
    """Until then deliveries are signed by the secret before this one, too."""
    status: Mapped[str]
    """A deleted endpoint stays as the owner of its deliveries; nobody sees it any more."""
    disabled_reason: Mapped[str | None]
    """`manual`, `gone` (it answered 410) or `failing` (nothing arrived for days)."""
    disabled_at: Mapped[datetime | None]
    consecutive_failures: Mapped[int] = mapped_column(server_default="0")
    failing_since: Mapped[datetime | None]
    """When the first of them was."""
    breaker_openings: Mapped[int] = mapped_column(server_default="0")
    """How often in a row the circuit breaker has opened."""
    breaker_until: Mapped[datetime | None]
    """Nothing is sent before; then one delivery at a time, until one arrives. NULL: closed."""
    created_at: Mapped[datetime] = _created_at()
    updated_at: Mapped[datetime] = _created_at()
    """When its owner last changed it."""


class WebhookDelivery(Base):
    """One event on its way to one URL; written in the transaction that wrote the event."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'exhausted')", name="state_known"),
        CheckConstraint("kind IN ('live', 'replay', 'test')", name="kind_known"),
        # One per event and endpoint, and one per event for the job's own URL.
        UniqueConstraint("event_id", "endpoint_id", postgresql_nulls_not_distinct=True),
        Index("ix_webhook_delivery_due", "lane", "kind", "next_at", "id", postgresql_where=text("state = 'pending'")),
        Index("ix_webhook_delivery_tenant", "tenant_id", "created_at", "id"),
        Index("ix_webhook_delivery_endpoint", "endpoint_id", "created_at", "id", postgresql_where=text("endpoint_id IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    event_id: Mapped[str] = mapped_column(ForeignKey("event.id"))
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoint.id"))
    """NULL: to the job's own URL."""
    url: Mapped[str]
    """Of the job's webhook; of an endpoint, what its URL was when the event happened."""
    lane: Mapped[str]
    """Whom it waits behind: its endpoint's id, or its tenant and the host of the job's URL."""
    kind: Mapped[str] = mapped_column(server_default="live")
    """Replays and tests wait in lanes of their own: a thousand replays hold up no new event."""
    state: Mapped[str] = mapped_column(server_default="pending")
    body: Mapped[bytes | None]
    """Made at the first claim and sent unchanged ever after."""
    attempt: Mapped[int] = mapped_column(server_default="0")
    """The fencing token, and the number of the attempt that the receiver is told."""
    tries: Mapped[int] = mapped_column(server_default="0")
    """Attempts of the present schedule; a replay begins a new one."""
    next_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    lease_until: Mapped[datetime | None]
    """Held by a sender until then."""
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    replayed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _created_at()
    delivered_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """One post of a delivery, as it went; append-only."""

    __tablename__ = "webhook_attempt"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_delivery.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str]
    headers: Mapped[dict[str, Any]]
    """Of the request, without the signatures; its body is the delivery's."""
    status: Mapped[int | None]
    error: Mapped[str | None]
    reply: Mapped[bytes | None]
    """The first 2 KiB."""
    latency_ms: Mapped[int | None]
    created_at: Mapped[datetime] = _created_at()
    """When it was written down."""


class IdempotencyKey(Base):
    """A key that a customer sent with a POST, and the job it made."""

    __tablename__ = "idempotency_key"
    __table_args__ = (Index("ix_idempotency_key_created", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    """SHA-256 of the request's meaning; another one with the same key is refused."""
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    created_at: Mapped[datetime] = _created_at()


class StoredAnswer(Base):
    """A key that a customer sent with a POST that makes no job, and the answer that the request got; or that it is being worked on."""

    __tablename__ = "stored_answer"
    __table_args__ = (
        CheckConstraint("(answer IS NULL) = (lease_until IS NOT NULL)", name="lease_iff_no_answer"),
        CheckConstraint("(answer IS NULL) = (scope IS NULL)", name="scope_iff_answer"),
        Index("ix_stored_answer_created", "created_at"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    """SHA-256 of the request's meaning; another one with the same key is refused."""
    lease_until: Mapped[datetime | None]
    """Until then a request is being worked on; who finds it later may do the work again."""
    scope: Mapped[str | None]
    """Whose holder may have the answer."""
    answer: Mapped[bytes | None]
    """Status, headers and body; sealed, since secrets that are shown once are in some of them."""
    created_at: Mapped[datetime] = _created_at()


class ClientTry(Base):
    """
    A request of a client that numbers its tries but names them by no key, and the job it made.

    A later try with the same content is the same request, if no other try of its number has taken this row already.
    """

    __tablename__ = "client_try"
    __table_args__ = (
        Index("ix_client_try_request", "tenant_id", "fingerprint", "created_at"),
        Index("ix_client_try_created", "created_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    fingerprint: Mapped[str]
    num_retries: Mapped[int]
    """The number of the last try that belongs to it; the first one is 0."""
    answered_at: Mapped[datetime | None]
    """When an answer was made; whether it arrived is not known."""
    created_at: Mapped[datetime] = _created_at()


class DoomedObject(Base):
    """Objects in S3 that belong to nobody any more, and are to be deleted."""

    __tablename__ = "doomed_object"
    __table_args__ = (Index("ix_doomed_object_due", "due_at"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    prefix: Mapped[str]
    """Every object whose key begins so."""
    due_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    """Not before: a worker that has not heard yet may still write there."""


class Worker(Base):
    """A GPU worker that reported in: what it loaded, and when it was last seen."""

    __tablename__ = "worker"
    __table_args__ = (_one_of("stage", Stage), Index("ix_worker_seen", "stage", "seen_at"))

    id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    slots: Mapped[int]
    model: Mapped[dict[str, Any]]
    """What it loaded: of an AR worker its `ModelInfo`, of a decoder worker the revision and the size of the DiT."""
    speed: Mapped[dict[str, Any] | None]
    """How fast it was lately, as `Speed` in shared/cost.py has it."""
    started_at: Mapped[datetime] = _created_at()
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    stopped_at: Mapped[datetime | None]


class Usage(Base):
    """What a finished unit of work cost; append-only."""

    __tablename__ = "usage"
    __table_args__ = (_one_of("stage", Stage), Index("ix_usage_tenant", "tenant_id", "created_at"), Index("ix_usage_work", "work_id"))

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    stage: Mapped[str]
    work_id: Mapped[str]
    units: Mapped[int]
    """AR: tokens sampled. Decoder: denoising steps."""
    seconds: Mapped[float]
    """Wall time of the winning attempt."""
    created_at: Mapped[datetime] = _created_at()
