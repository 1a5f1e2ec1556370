"""
Records: the first tables, and the moves of states that the database itself allows.

The moves stand here in full, as `shared/states.py` had them on this day; a test compares the two, so that a change there
comes with a migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MOVES = {
    "grid": {
        "new": ("ready",),
        "ready": ("released", "canceled"),
        "released": ("running", "ready", "canceled"),
        "running": ("done", "ready", "failed", "canceled"),
        "done": ("ready",),
    },
    "image": {
        "new": ("waiting", "ready"),
        "waiting": ("ready", "failed", "canceled"),
        "ready": ("released", "waiting", "canceled"),
        "released": ("running", "ready", "waiting", "canceled"),
        "running": ("done", "ready", "waiting", "failed", "canceled"),
    },
    "job": {
        "new": ("queued",),
        "queued": ("running", "failed", "canceled", "expired"),
        "running": ("succeeded", "failed", "canceled", "expired"),
    },
}

_CHECK_MOVE = """
CREATE FUNCTION check_move() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    column_name text := TG_ARGV[0];
    old_state text := CASE TG_OP WHEN 'INSERT' THEN 'new' ELSE to_jsonb(OLD) ->> column_name END;
    new_state text := to_jsonb(NEW) ->> column_name;
BEGIN
    IF old_state <> new_state AND NOT EXISTS (
        SELECT FROM allowed_move WHERE machine = TG_TABLE_NAME AND origin = old_state AND target = new_state
    ) THEN
        RAISE EXCEPTION '% %: move from % to % is not allowed', TG_TABLE_NAME, NEW.id, old_state, new_state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""

_CHECK_JOB = """
CREATE FUNCTION check_job_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version <= OLD.version THEN
        RAISE EXCEPTION 'job %: version % does not follow %', NEW.id, NEW.version, OLD.version USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""

_CHECK_ATTEMPT = """
CREATE FUNCTION check_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.attempt < OLD.attempt THEN
        RAISE EXCEPTION '% %: attempt % is below %', TG_TABLE_NAME, NEW.id, NEW.attempt, OLD.attempt USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""

_KEEP_EVENTS = """
CREATE FUNCTION keep_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'event %: events are never changed or deleted', OLD.id USING ERRCODE = 'check_violation';
END $$
"""


def upgrade() -> None:
    op.create_table(
        "tenant",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("event_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("webhook_secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenant")),
        sa.UniqueConstraint("name", name=op.f("uq_tenant_name")),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("slots", sa.BigInteger(), nullable=False),
        sa.Column("model", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("stage IN ('ar', 'decoder')", name=op.f("ck_worker_stage_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_index("ix_worker_seen", "worker", ["stage", "seen_at"], unique=False)
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("scopes <@ ARRAY['read', 'submit', 'admin'] AND cardinality(scopes) > 0", name=op.f("ck_api_key_scopes_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_api_key_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
    )
    op.create_index(op.f("ix_api_key_tenant_id"), "api_key", ["tenant_id"], unique=False)
    op.create_table(
        "file",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("height_px", sa.BigInteger(), nullable=True),
        sa.Column("width_px", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("purpose <> 'source' OR (height_px > 0 AND width_px > 0)", name=op.f("ck_file_source_has_size")),
        sa.CheckConstraint("purpose IN ('source', 'batch', 'batch_output')", name=op.f("ck_file_purpose_known")),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_file_size_not_negative")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_file_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file")),
        sa.UniqueConstraint("storage_key", name=op.f("uq_file_storage_key")),
    )
    op.create_index("uq_file_source", "file", ["tenant_id", "sha256"], unique=True, postgresql_where=sa.text("purpose = 'source'"))
    op.create_table(
        "grid",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("token_h", sa.BigInteger(), nullable=False),
        sa.Column("token_w", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("top_p", sa.Double(), nullable=False),
        sa.Column("source_file_ids", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("model_revision", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lane", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_lost", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_errors", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("cost_s", sa.Double(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'released') = (released_at IS NOT NULL)", name=op.f("ck_grid_released_at_iff_released")),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_grid_lease_iff_running")),
        sa.CheckConstraint(
            "state <> 'done' OR (storage_key IS NOT NULL AND sha256 IS NOT NULL AND size_bytes > 0)", name=op.f("ck_grid_done_has_artifact")
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_grid_failure_has_reason")),
        sa.CheckConstraint(
            "state IN ('waiting', 'ready', 'released', 'running', 'done', 'failed', 'canceled')", name=op.f("ck_grid_state_known")
        ),
        sa.CheckConstraint("lane BETWEEN 0 AND 2", name=op.f("ck_grid_lane_known")),
        sa.CheckConstraint("token_h > 0 AND token_w > 0", name=op.f("ck_grid_size_positive")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_grid_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grid")),
    )
    op.create_index("ix_grid_lease", "grid", ["lease_until"], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_index("ix_grid_ready", "grid", ["lane", "created_at", "id"], unique=False, postgresql_where=sa.text("state = 'ready'"))
    op.create_index("ix_grid_released", "grid", ["lane", "released_at"], unique=False, postgresql_where=sa.text("state = 'released'"))
    op.create_index(
        "uq_grid_key", "grid", ["tenant_id", "key"], unique=True, postgresql_where=sa.text("state NOT IN ('failed', 'canceled')")
    )
    op.create_table(
        "usage",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("work_id", sa.Text(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("stage IN ('ar', 'decoder')", name=op.f("ck_usage_stage_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_usage_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage")),
    )
    op.create_index("ix_usage_tenant", "usage", ["tenant_id", "created_at"], unique=False)
    op.create_index("ix_usage_work", "usage", ["work_id"], unique=False)
    op.create_table(
        "webhook_endpoint",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("events", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("status IN ('enabled', 'disabled')", name=op.f("ck_webhook_endpoint_status_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_webhook_endpoint_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoint")),
    )
    op.create_index(op.f("ix_webhook_endpoint_tenant_id"), "webhook_endpoint", ["tenant_id"], unique=False)
    op.create_table(
        "batch",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('running', 'completed', 'canceled', 'failed', 'expired')", name=op.f("ck_batch_status_known")),
        sa.ForeignKeyConstraint(["input_file_id"], ["file.id"], name=op.f("fk_batch_input_file_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_batch_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
    )
    op.create_index("ix_batch_tenant", "batch", ["tenant_id", "created_at", "id"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("input", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("model", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("num_images", sa.BigInteger(), nullable=False),
        sa.Column("webhook", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(completed_at IS NULL) = (status IN ('queued', 'running'))", name=op.f("ck_job_completed_iff_final")),
        sa.CheckConstraint("priority IN ('interactive', 'standard', 'bulk')", name=op.f("ck_job_priority_known")),
        sa.CheckConstraint("status <> 'failed' OR error IS NOT NULL", name=op.f("ck_job_failure_has_reason")),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')", name=op.f("ck_job_status_known")
        ),
        sa.CheckConstraint("num_images BETWEEN 1 AND 10", name=op.f("ck_job_num_images_in_range")),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_job_batch_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_job_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    op.create_index("ix_job_batch", "job", ["batch_id"], unique=False, postgresql_where=sa.text("batch_id IS NOT NULL"))
    op.create_index(
        "ix_job_deadline",
        "job",
        ["deadline"],
        unique=False,
        postgresql_where=sa.text("deadline IS NOT NULL AND status IN ('queued', 'running')"),
    )
    op.create_index("ix_job_live", "job", ["priority", "created_at"], unique=False, postgresql_where=sa.text("status = 'queued'"))
    op.create_index("ix_job_tenant", "job", ["tenant_id", "created_at", "id"], unique=False)
    op.create_index("ix_job_tenant_status", "job", ["tenant_id", "status", "created_at", "id"], unique=False)
    op.create_table(
        "event",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_event_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_event_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
        sa.UniqueConstraint("tenant_id", "seq", name=op.f("uq_event_tenant_id_seq")),
    )
    op.create_index("ix_event_job", "event", ["job_id", "seq"], unique=False)
    op.create_index(
        "uq_event_end",
        "event",
        ["job_id"],
        unique=True,
        postgresql_where=sa.text("type IN ('job.succeeded', 'job.failed', 'job.canceled', 'job.expired')"),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_idempotency_key_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_idempotency_key_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "route", "key", name=op.f("pk_idempotency_key")),
    )
    op.create_table(
        "image",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("grid_id", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("guidance_scale", sa.Double(), nullable=False),
        sa.Column("height_px", sa.BigInteger(), nullable=False),
        sa.Column("width_px", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("quality", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lane", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_lost", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_errors", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("cost_s", sa.Double(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'released') = (released_at IS NOT NULL)", name=op.f("ck_image_released_at_iff_released")),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_image_lease_iff_running")),
        sa.CheckConstraint("format IN ('png', 'jpeg', 'webp')", name=op.f("ck_image_format_known")),
        sa.CheckConstraint(
            "state <> 'done' OR (storage_key IS NOT NULL AND sha256 IS NOT NULL AND size_bytes > 0)",
            name=op.f("ck_image_done_has_artifact"),
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_image_failure_has_reason")),
        sa.CheckConstraint(
            "state IN ('waiting', 'ready', 'released', 'running', 'done', 'failed', 'canceled')", name=op.f("ck_image_state_known")
        ),
        sa.CheckConstraint("height_px > 0 AND width_px > 0", name=op.f("ck_image_size_positive")),
        sa.CheckConstraint("lane BETWEEN 0 AND 2", name=op.f("ck_image_lane_known")),
        sa.CheckConstraint("steps > 0", name=op.f("ck_image_steps_positive")),
        sa.ForeignKeyConstraint(["grid_id"], ["grid.id"], name=op.f("fk_image_grid_id")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_image_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_image_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("job_id", "index", name=op.f("uq_image_job_id_index")),
    )
    op.create_index("ix_image_grid", "image", ["grid_id"], unique=False)
    op.create_index("ix_image_lease", "image", ["lease_until"], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_index("ix_image_ready", "image", ["lane", "created_at", "id"], unique=False, postgresql_where=sa.text("state = 'ready'"))
    op.create_index("ix_image_released", "image", ["lane", "released_at"], unique=False, postgresql_where=sa.text("state = 'released'"))
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_status", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_reply", sa.LargeBinary(), nullable=True),
        sa.Column("last_latency_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'exhausted')", name=op.f("ck_webhook_delivery_state_known")),
        sa.ForeignKeyConstraint(["endpoint_id"], ["webhook_endpoint.id"], name=op.f("fk_webhook_delivery_endpoint_id")),
        sa.ForeignKeyConstraint(["event_id"], ["event.id"], name=op.f("fk_webhook_delivery_event_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_webhook_delivery_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_delivery")),
        sa.UniqueConstraint("event_id", "url", name=op.f("uq_webhook_delivery_event_id_url")),
    )
    op.create_index("ix_webhook_delivery_due", "webhook_delivery", ["next_at"], unique=False, postgresql_where=sa.text("state = 'pending'"))
    moves = op.create_table(
        "allowed_move",
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("machine", "origin", "target", name="pk_allowed_move"),
    )
    op.bulk_insert(
        moves,
        [
            {"machine": machine, "origin": origin, "target": target}
            for machine, table in _MOVES.items()
            for origin, targets in table.items()
            for target in targets
        ],
    )
    for function in (_CHECK_MOVE, _CHECK_JOB, _CHECK_ATTEMPT, _KEEP_EVENTS):
        op.execute(function)
    for table, column in (("grid", "state"), ("image", "state"), ("job", "status")):
        op.execute(
            f"CREATE TRIGGER {table}_move BEFORE INSERT OR UPDATE OF {column} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION check_move('{column}')"
        )
    op.execute("CREATE TRIGGER job_version BEFORE UPDATE ON job FOR EACH ROW EXECUTE FUNCTION check_job_version()")
    for table in ("grid", "image"):
        op.execute(f"CREATE TRIGGER {table}_attempt BEFORE UPDATE OF attempt ON {table} FOR EACH ROW EXECUTE FUNCTION check_attempt()")
    op.execute("CREATE TRIGGER event_kept BEFORE UPDATE OR DELETE ON event FOR EACH ROW EXECUTE FUNCTION keep_event()")


def downgrade() -> None:
    for table, trigger in (
        ("event", "event_kept"),
        ("image", "image_attempt"),
        ("grid", "grid_attempt"),
        ("job", "job_version"),
        ("job", "job_move"),
        ("image", "image_move"),
        ("grid", "grid_move"),
    ):
        op.execute(f"DROP TRIGGER {trigger} ON {table}")
    for function in ("keep_event", "check_attempt", "check_job_version", "check_move"):
        op.execute(f"DROP FUNCTION {function}()")
    op.drop_table("allowed_move")
    op.drop_index("ix_webhook_delivery_due", table_name="webhook_delivery", postgresql_where=sa.text("state = 'pending'"))
    op.drop_table("webhook_delivery")
    op.drop_index("ix_image_released", table_name="image", postgresql_where=sa.text("state = 'released'"))
    op.drop_index("ix_image_ready", table_name="image", postgresql_where=sa.text("state = 'ready'"))
    op.drop_index("ix_image_lease", table_name="image", postgresql_where=sa.text("state = 'running'"))
    op.drop_index("ix_image_grid", table_name="image")
    op.drop_table("image")
    op.drop_table("idempotency_key")
    op.drop_index(
        "uq_event_end",
        table_name="event",
        postgresql_where=sa.text("type IN ('job.succeeded', 'job.failed', 'job.canceled', 'job.expired')"),
    )
    op.drop_index("ix_event_job", table_name="event")
    op.drop_table("event")
    op.drop_index("ix_job_tenant_status", table_name="job")
    op.drop_index("ix_job_tenant", table_name="job")
    op.drop_index("ix_job_live", table_name="job", postgresql_where=sa.text("status = 'queued'"))
    op.drop_index("ix_job_deadline", table_name="job", postgresql_where=sa.text("deadline IS NOT NULL AND status IN ('queued', 'running')"))
    op.drop_index("ix_job_batch", table_name="job", postgresql_where=sa.text("batch_id IS NOT NULL"))
    op.drop_table("job")
    op.drop_index("ix_batch_tenant", table_name="batch")
    op.drop_table("batch")
    op.drop_index(op.f("ix_webhook_endpoint_tenant_id"), table_name="webhook_endpoint")
    op.drop_table("webhook_endpoint")
    op.drop_index("ix_usage_work", table_name="usage")
    op.drop_index("ix_usage_tenant", table_name="usage")
    op.drop_table("usage")
    op.drop_index("uq_grid_key", table_name="grid", postgresql_where=sa.text("state NOT IN ('failed', 'canceled')"))
    op.drop_index("ix_grid_released", table_name="grid", postgresql_where=sa.text("state = 'released'"))
    op.drop_index("ix_grid_ready", table_name="grid", postgresql_where=sa.text("state = 'ready'"))
    op.drop_index("ix_grid_lease", table_name="grid", postgresql_where=sa.text("state = 'running'"))
    op.drop_table("grid")
    op.drop_index("uq_file_source", table_name="file", postgresql_where=sa.text("purpose = 'source'"))
    op.drop_table("file")
    op.drop_index(op.f("ix_api_key_tenant_id"), table_name="api_key")
    op.drop_table("api_key")
    op.drop_index("ix_worker_seen", table_name="worker")
    op.drop_table("worker")
    op.drop_table("tenant")
