"""A batch may name a number of failures at which it is paused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch", sa.Column("max_failures", sa.BigInteger(), nullable=True))
    op.add_column("batch", sa.Column("resumed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("batch", "resumed_at")
    op.drop_column("batch", "max_failures")
