"""
The OpenAI dialect: uploaded files, batches whose lines become jobs, numbered tries of clients, and prompts counted in tokens.

Nothing has written a batch before, so its statuses change without a word for old rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_LIVE = "status IN ('validating', 'running', 'finalizing', 'canceling')"
_BATCH_COLUMNS = (
    ("idempotency_key", sa.Text()),
    ("fingerprint", sa.Text()),
    ("endpoint", sa.Text()),
    ("completion_window", sa.Text()),
    ("output_expires_s", sa.BigInteger()),
    ("counts", postgresql.JSONB(none_as_null=True)),
    ("usage", postgresql.JSONB(none_as_null=True)),
    ("errors", postgresql.JSONB()),
    ("output_file_id", sa.Text()),
    ("error_file_id", sa.Text()),
    ("expires_at", sa.DateTime(timezone=True)),
    ("started_at", sa.DateTime(timezone=True)),
    ("finalizing_at", sa.DateTime(timezone=True)),
    ("canceling_at", sa.DateTime(timezone=True)),
)


def upgrade() -> None:
    _upgrade_files()
    _upgrade_batches()
    op.add_column("job", sa.Column("dialect", postgresql.JSONB(none_as_null=True), nullable=True))
    op.create_table(
        "client_try",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("num_retries", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_client_try_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_client_try_tenant_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_client_try")),
    )
    op.create_index("ix_client_try_request", "client_try", ["tenant_id", "fingerprint", "created_at"])
    for name in ("text_tokens", "image_tokens"):
        op.add_column("grid", sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in ("image_tokens", "text_tokens"):
        op.drop_column("grid", name)
    op.drop_table("client_try")
    op.drop_column("job", "dialect")
    _downgrade_batches()
    _downgrade_files()


def _upgrade_files() -> None:
    op.add_column("file", sa.Column("filename", sa.Text(), nullable=True))
    for name in ("expires_at", "deleted_at"):
        op.add_column("file", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    _know_purposes("'source', 'batch', 'batch_output', 'vision', 'user_data', 'assistants'")
    where = sa.text("purpose <> 'source' AND deleted_at IS NULL")
    op.create_index("ix_file_tenant", "file", ["tenant_id", "created_at", "id"], postgresql_where=where)


def _downgrade_files() -> None:
    op.drop_index("ix_file_tenant", "file")
    # What was uploaded has no place in the tables of before; its objects stay in S3.
    op.execute("DELETE FROM file WHERE purpose IN ('vision', 'user_data', 'assistants')")
    _know_purposes("'source', 'batch', 'batch_output'")
    for name in ("deleted_at", "expires_at", "filename"):
        op.drop_column("file", name)


def _know_purposes(purposes: str) -> None:
    op.drop_constraint(op.f("ck_file_purpose_known"), "file", type_="check")
    op.create_check_constraint(op.f("ck_file_purpose_known"), "file", f"purpose IN ({purposes})")


def _upgrade_batches() -> None:
    op.drop_constraint(op.f("ck_batch_status_known"), "batch", type_="check")
    op.create_check_constraint(
        op.f("ck_batch_status_known"),
        "batch",
        "status IN ('validating', 'running', 'canceling', 'finalizing', 'completed', 'failed', 'canceled', 'expired')",
    )
    op.create_check_constraint(op.f("ck_batch_completed_iff_final"), "batch", f"(completed_at IS NULL) = ({_LIVE})")
    for name, kind in _BATCH_COLUMNS:
        op.add_column("batch", sa.Column(name, kind, nullable=True))
    for name in ("num_retries", "num_items"):
        op.add_column("batch", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.create_unique_constraint(op.f("uq_batch_tenant_id_idempotency_key"), "batch", ["tenant_id", "idempotency_key"])
    for name in ("output_file_id", "error_file_id"):
        op.create_foreign_key(op.f(f"fk_batch_{name}"), "batch", "file", [name], ["id"])
    op.create_index("ix_batch_live", "batch", ["created_at"], postgresql_where=sa.text(_LIVE))
    op.create_table(
        "batch_item",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("request", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.CheckConstraint("job_id IS NULL OR error IS NULL", name=op.f("ck_batch_item_one_outcome")),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_batch_item_batch_id")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_batch_item_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch_item")),
        sa.UniqueConstraint("batch_id", "custom_id", name=op.f("uq_batch_item_batch_id_custom_id")),
        sa.UniqueConstraint("batch_id", "line", name=op.f("uq_batch_item_batch_id_line")),
    )
    op.create_index(
        "ix_batch_item_pending", "batch_item", ["batch_id", "line"], postgresql_where=sa.text("job_id IS NULL AND error IS NULL")
    )


def _downgrade_batches() -> None:
    op.drop_table("batch_item")
    op.drop_index("ix_batch_live", "batch")
    op.drop_constraint(op.f("ck_batch_completed_iff_final"), "batch", type_="check")
    op.drop_constraint(op.f("uq_batch_tenant_id_idempotency_key"), "batch", type_="unique")
    for name in ("num_items", "num_retries", *(name for name, _ in reversed(_BATCH_COLUMNS))):
        op.drop_column("batch", name)
    op.execute("UPDATE batch SET status = 'running' WHERE status IN ('validating', 'canceling', 'finalizing')")
    op.drop_constraint(op.f("ck_batch_status_known"), "batch", type_="check")
    op.create_check_constraint(
        op.f("ck_batch_status_known"), "batch", "status IN ('running', 'completed', 'canceled', 'failed', 'expired')"
    )
