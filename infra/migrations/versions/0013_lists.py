"""Lists: indexes that jobs are found by in the order of their list, whatever they are filtered by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_OF_BATCH = sa.text("batch_id IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_job_batch", table_name="job", postgresql_where=_OF_BATCH)
    op.create_index("ix_job_batch", "job", ["batch_id", "created_at", "id"], postgresql_where=_OF_BATCH)
    op.create_index(
        "ix_job_custom", "job", ["tenant_id", "custom_id", "created_at", "id"], postgresql_where=sa.text("custom_id IS NOT NULL")
    )
    op.create_index(
        "ix_job_metadata",
        "job",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=sa.text("metadata <> '{}'"),
    )


def downgrade() -> None:
    op.drop_index("ix_job_metadata", table_name="job", postgresql_where=sa.text("metadata <> '{}'"))
    op.drop_index("ix_job_custom", table_name="job", postgresql_where=sa.text("custom_id IS NOT NULL"))
    op.drop_index("ix_job_batch", table_name="job", postgresql_where=_OF_BATCH)
    op.create_index("ix_job_batch", "job", ["batch_id"], postgresql_where=_OF_BATCH)
