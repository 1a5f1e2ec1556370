"""More files of an image, bounds on their bytes, and how long results are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("image", sa.Column("max_bytes", sa.BigInteger()))
    op.add_column("image", sa.Column("renditions", postgresql.JSONB(), server_default="[]", nullable=False))
    op.add_column("image", sa.Column("rendition_files", postgresql.JSONB(), server_default="{}", nullable=False))
    op.add_column("job", sa.Column("expires_in_s", sa.BigInteger()))
    op.add_column("job", sa.Column("expires_at", sa.DateTime(timezone=True)))
    op.create_index("ix_job_expires", "job", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("ix_job_expires", "job")
    op.drop_column("job", "expires_at")
    op.drop_column("job", "expires_in_s")
    op.drop_column("image", "rendition_files")
    op.drop_column("image", "renditions")
    op.drop_column("image", "max_bytes")
