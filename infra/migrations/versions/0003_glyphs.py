"""
Texts that are not what the reference's parser finds in the prompt, and what the writer of a request should know about it.

Grids of before have none: their texts are what that parser finds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("grid", sa.Column("glyph_texts", postgresql.ARRAY(sa.Text())))
    op.add_column("job", sa.Column("warnings", postgresql.JSONB(), server_default="[]", nullable=False))


def downgrade() -> None:
    op.drop_column("job", "warnings")
    op.drop_column("grid", "glyph_texts")
