"""Grids whose jobs have not been told yet that the tokens are there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("grid", sa.Column("is_told", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.create_index("ix_grid_untold", "grid", ["finished_at"], postgresql_where=sa.text("NOT is_told"))


def downgrade() -> None:
    op.drop_index("ix_grid_untold", "grid")
    op.drop_column("grid", "is_told")
