"""
Native batches: filled by requests instead of a file, open until they are sealed, paused, named, and tried again where they failed.

A batch of before is sealed, as its file is; its lines' errors have no time, and so came before any retry.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_MOMENTS = ("paused_at", "retried_at")


def upgrade() -> None:
    op.add_column("batch", sa.Column("name", sa.Text(), nullable=True))
    op.add_column("batch", sa.Column("defaults", postgresql.JSONB(none_as_null=True), nullable=True))
    op.add_column("batch", sa.Column("is_sealed", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.add_column("batch", sa.Column("holds_work", sa.Boolean(), server_default=sa.false(), nullable=False))
    for name in _MOMENTS:
        op.add_column("batch", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.add_column("batch_item", sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("batch_item", "failed_at")
    for name in (*reversed(_MOMENTS), "holds_work", "is_sealed", "defaults", "name"):
        op.drop_column("batch", name)
