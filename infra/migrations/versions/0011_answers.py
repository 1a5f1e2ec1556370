"""Answers: a POST that makes no job can be repeated under its Idempotency-Key, too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stored_answer",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("scope", sa.Text(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("(answer IS NULL) = (lease_until IS NOT NULL)", name=op.f("ck_stored_answer_lease_iff_no_answer")),
        sa.CheckConstraint("(answer IS NULL) = (scope IS NULL)", name=op.f("ck_stored_answer_scope_iff_answer")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_stored_answer_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "route", "key", name=op.f("pk_stored_answer")),
    )
    op.create_index("ix_stored_answer_created", "stored_answer", ["created_at"])


def downgrade() -> None:
    op.drop_index("ix_stored_answer_created", table_name="stored_answer")
    op.drop_table("stored_answer")
