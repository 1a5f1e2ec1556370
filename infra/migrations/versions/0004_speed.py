"""How fast each worker was lately, for predictions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("speed", postgresql.JSONB()))


def downgrade() -> None:
    op.drop_column("worker", "speed")
