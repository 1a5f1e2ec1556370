"""Traces: which trace of a customer's a job and its work belong to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_TABLES = ("job", "grid", "image")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("trace", postgresql.JSONB(none_as_null=True), nullable=True))


def downgrade() -> None:
    for table in _TABLES:
        op.drop_column(table, "trace")
