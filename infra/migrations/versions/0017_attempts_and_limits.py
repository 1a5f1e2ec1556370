"""The attempts at a unit of work that are over while the unit is not; and how many live batches a tenant may have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_TABLES = ("grid", "image")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("past_attempts", postgresql.JSONB(), nullable=False, server_default="[]"))
    op.add_column("tenant", sa.Column("live_batches", sa.BigInteger(), nullable=True))
    op.create_check_constraint("live_batches_not_negative", "tenant", "live_batches >= 0")


def downgrade() -> None:
    op.drop_column("tenant", "live_batches")
    for table in _TABLES:
        op.drop_column(table, "past_attempts")
