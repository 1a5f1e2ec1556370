"""Files whose time is up are found without a look at all the others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_file_expires", "file", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL AND deleted_at IS NULL"))


def downgrade() -> None:
    op.drop_index("ix_file_expires", "file")
